"""The workloads: each starts a subject afresh, loads it, and returns figures by the name of their row."""

import statistics
import time

from benchmarks.load import Load, attentive
from benchmarks.subjects import Bench, BenchMaker, Subject

PACED_RATE = 4000
PACED_SECONDS = 8
Figures = dict[str, float]


def emit(
    bench: Bench,
    load: Load,
    sessions: list[str],
    events: int,
    rate: float,
    receivers: int,
    *,
    backlog: bool = False,
) -> Figures:
    """Have events published, read them, and tell what all sides saw; `backlog` holds the server back meanwhile."""
    cpu, store, own = bench.server.cpu_seconds(), bench.store_cpu_seconds(), time.process_time()
    expected = events * receivers
    produced: Figures = {}
    if backlog:
        bench.server.freeze()
    began = time.perf_counter()
    bench.begin(sessions, events, rate)
    if backlog:
        produced = bench.finish()
        own, began = time.process_time(), time.perf_counter()
        bench.server.thaw()
    seconds = load.wait(expected) - began
    own = time.process_time() - own
    produced = produced or bench.finish()
    received = max(1, load.received)
    return {
        "per_second": load.received / seconds,
        "cpu_us": (bench.server.cpu_seconds() - cpu) * 1e6 / received,
        "store_cpu_us": (bench.store_cpu_seconds() - store) * 1e6 / events,
        "producer_cpu_us": produced.get("cpu_seconds", 0.0) * 1e6 / events,
        "load_percent": 100 * own / seconds,
        "lost_percent": 100 * (expected - load.received) / expected,
        "disorder": load.out_of_order,
    }


def _names(sessions: int) -> list[str]:
    return [f"bench-{n}" for n in range(sessions)]


def _open(bench: Bench, subject: Subject, sessions: range, streams: int = 1) -> tuple[Load, float]:
    load = Load(bench.port, subject.dialect)
    rate = load.open([subject.path(session, stream) for session in sessions for stream in range(streams)])
    return load, rate


def full_speed(make: BenchMaker, subject: Subject, sessions: int) -> Figures:
    """Many sessions with one stream each, as fast as one producer can."""
    with make(subject, sessions) as bench:
        load, connect_rate = _open(bench, subject, range(sessions))
        figures = emit(bench, load, _names(sessions), subject.events, 0, 1)
        load.close()
    return {
        "connects/s": connect_rate,
        "events/s, full speed": figures["per_second"],
        "CPU µs/event, full speed": figures["cpu_us"],
        "lost %, full speed": figures["lost_percent"],
        "doubled or disordered, full speed": figures["disorder"],
    }


def backlog(make: BenchMaker, subject: Subject, sessions: int) -> Figures:
    """The server alone: it is held back while one producer publishes, and let go when all waits for it."""
    with make(subject, sessions) as bench:
        load, _ = _open(bench, subject, range(sessions))
        load.rest(0.5)
        figures = emit(bench, load, _names(sessions), subject.events, 0, 1, backlog=True)
        load.close()
    return {
        "events/s, server alone": figures["per_second"],
        "CPU µs/event, server alone": figures["cpu_us"],
        "lost %, server alone": figures["lost_percent"],
        "doubled or disordered, server alone": figures["disorder"],
    }


def paced(make: BenchMaker, subject: Subject, sessions: int) -> Figures:
    """The same sessions at a steady rate; latency from the producer's call to the client's socket."""
    with make(subject, sessions) as bench:
        load, _ = _open(bench, subject, range(sessions))
        emit(bench, load, _names(10), 1000, PACED_RATE, 1)
        load.begin(take_latency=True, renumber=True)
        with attentive():
            figures = emit(bench, load, _names(sessions), PACED_RATE * PACED_SECONDS, PACED_RATE, 1)
        latencies = sorted(load.latencies_us) or [0.0]
        load.close()
    return {
        "CPU µs/event at 4,000/s": figures["cpu_us"],
        "p50 ms at 4,000/s": latencies[len(latencies) // 2] / 1000,
        "p99 ms at 4,000/s": latencies[int(len(latencies) * 0.99)] / 1000,
        "lost %, at 4,000/s": figures["lost_percent"],
        "doubled or disordered, at 4,000/s": figures["disorder"],
        "Redis' CPU µs/event at 4,000/s": figures["store_cpu_us"],
        "producer's CPU µs/event at 4,000/s": figures["producer_cpu_us"],
        "the load's own share of its core, % at 4,000/s": figures["load_percent"],
    }


def broadcast(make: BenchMaker, subject: Subject, streams: int) -> Figures:
    """One session with many streams."""
    with make(subject, 1) as bench:
        load, _ = _open(bench, subject, range(1), streams)
        figures = emit(bench, load, _names(1), subject.broadcast_events, 0, streams)
        load.close()
    return {
        "deliveries/s, one session": figures["per_second"],
        "lost %, one session": figures["lost_percent"],
        "doubled or disordered, one session": figures["disorder"],
    }


def idle(make: BenchMaker, subject: Subject, streams: int) -> Figures:
    """Idle streams: what each costs, and how soon the first event comes after a while of silence."""
    first_streams = min(50, streams // 2)
    with make(subject, streams) as bench:
        load, _ = _open(bench, subject, range(first_streams))
        before = bench.server.rss_kib()
        load.open([subject.path(n, 0) for n in range(first_streams, streams)])
        load.rest(2)
        after = bench.server.rss_kib()
        first = []
        with attentive():
            for n in range(20):
                load.rest(0.1)
                load.begin(take_latency=True)
                bench.begin([f"bench-{n}"], 1, 0)
                load.wait(1)
                bench.finish()
                first += [latency / 1000 for latency in load.latencies_us]
        load.close()
    return {
        "KiB per idle stream": (after - before) / (streams - first_streams),
        "first event after idle, ms": statistics.median(first or [0.0]),
    }
