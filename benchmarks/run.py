"""One command, one table: Backchannel beside the plain recipe, the server on one core, the load on another.

Run from the project's root: `make bench` (or `python -m benchmarks.run --help`).
"""

import argparse
import asyncio
import gc
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load import Load

ROOT = Path(__file__).resolve().parent.parent
SERVER_CORE, LOAD_CORE = 0, 1
PACED_RATE = 4000
Figures = dict[str, float]


@dataclass
class Subject:
    """One measured server: how to start it, and how much of the load it can be given."""

    name: str
    application: str
    env: dict[str, str] = field(default_factory=dict)
    full_speed_events: int = 200_000
    broadcast_events: int = 500
    needs_database: bool = True


BACKCHANNEL = "benchmarks.backchannel_server:application"
SUBJECTS = [
    Subject("Backchannel, recorder off", BACKCHANNEL, {"SINKS": ""}),
    Subject("Backchannel, recorder on", BACKCHANNEL, {}),
    Subject(
        "consumer per connection, Channels' in-memory layer", "benchmarks.recipe_server:application",
        full_speed_events=5_000, broadcast_events=100, needs_database=False,
    ),
]  # fmt: skip


class Server:
    """A measured server in a process of its own, bound to one core."""

    def __init__(self, subject: Subject, sessions: int) -> None:
        self.subject = subject
        self.folder = tempfile.mkdtemp(prefix="backchannel-bench-")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.env = {
            **os.environ, **subject.env, "DATA_DIR": self.folder, "LOG_LEVEL": "WARNING", "MESSAGE_RATE": "",
            "DATABASE_URL": f"sqlite:///{self.folder}/bench.sqlite3",
        }  # fmt: skip
        if subject.needs_database:
            self._prepare(sessions)

    def _prepare(self, sessions: int) -> None:
        script = (
            "from relay.models import Session; Session.objects.bulk_create("
            f"Session(session_id=f'bench-{{n}}') for n in range({sessions}))"
        )
        for arguments in (["migrate", "--verbosity", "0"], ["shell", "--verbosity", "0", "-c", script]):
            subprocess.run([sys.executable, "manage.py", *arguments], cwd=ROOT, env=self.env, check=True)

    def __enter__(self) -> "Server":
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "uvicorn", self.subject.application, "--port", str(self.port),
                "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning",
                "--timeout-graceful-shutdown", "2", "--backlog", "4096",
            ],
            cwd=ROOT, env=self.env, preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                httpx.get(self.url("/bench/state"), timeout=1)
                return self
            except httpx.HTTPError:
                time.sleep(0.1)
        raise RuntimeError(f"{self.subject.name} did not start")

    def __exit__(self, *exc: object) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def ask(self, path: str, body: Any = None) -> dict[str, float]:
        async with httpx.AsyncClient(timeout=180) as client:
            response = await client.post(self.url(path), content=json.dumps(body))
            return dict(response.json())


def stream_path(session: int, stream: int = 0) -> str:
    return f"/sse/stream?stream_id=bench-{session}-{stream}&user_session_id=bench-{session}"


# --- the workloads ----------------------------------------------------------------------------------------------


async def emit(
    server: Server, load: Load, sessions: list[str], events: int, rate: float, receivers: int
) -> Figures:
    """Emit events, wait for them, and tell what both sides saw."""
    load.lost = load.out_of_order = load.received = 0
    before = await server.ask("/bench/state")
    began = time.perf_counter()
    await server.ask(f"/bench/emit?events={events}&rate={rate}", sessions)
    ended = await load.wait(events * receivers)
    after = await server.ask("/bench/state")
    seconds = ended - began
    return {
        "per_second": load.received / seconds,
        "cpu_us": (after["cpu_seconds"] - before["cpu_seconds"]) * 1e6 / max(1, load.received),
        "lost_percent": 100 * (events * receivers - load.received) / (events * receivers),
        "disorder": load.out_of_order,
    }


async def full_speed(subject: Subject, sessions: int) -> Figures:
    """Many sessions with one stream each, as fast as one producer can."""
    with Server(subject, sessions) as server:
        load = Load(server.port)
        connect_rate = await load.open([stream_path(n) for n in range(sessions)])
        names = [f"bench-{n}" for n in range(sessions)]
        figures = await emit(server, load, names, subject.full_speed_events, 0, 1)
        load.close()
    return {
        "connects/s": connect_rate,
        "events/s, full speed": figures["per_second"],
        "CPU µs/event, full speed": figures["cpu_us"],
        "lost %, full speed": figures["lost_percent"],
        "doubled or disordered, full speed": figures["disorder"],
    }


async def paced(subject: Subject, sessions: int) -> Figures:
    """The same sessions at a steady rate; latency from the producer's call to the client's socket."""
    with Server(subject, sessions) as server:
        load = Load(server.port)
        await load.open([stream_path(n) for n in range(sessions)])
        names = [f"bench-{n}" for n in range(sessions)]
        await emit(server, load, names[:10], 1000, PACED_RATE, 1)
        for transport in load.transports:
            transport.get_protocol().next_number = 0  # type: ignore[attr-defined]
        load.take_latency = True
        load.latencies_us = type(load.latencies_us)("d")
        figures = await emit(server, load, names, PACED_RATE * 8, PACED_RATE, 1)
        latencies = sorted(load.latencies_us)
        load.close()
    return {
        "CPU µs/event at 4,000/s": figures["cpu_us"],
        "p50 ms at 4,000/s": latencies[len(latencies) // 2] / 1000,
        "p99 ms at 4,000/s": latencies[int(len(latencies) * 0.99)] / 1000,
        "lost %, at 4,000/s": figures["lost_percent"],
        "doubled or disordered, at 4,000/s": figures["disorder"],
    }


async def broadcast(subject: Subject, streams: int) -> Figures:
    """One session with many streams."""
    with Server(subject, 1) as server:
        load = Load(server.port)
        await load.open([stream_path(0, n) for n in range(streams)])
        figures = await emit(server, load, ["bench-0"], subject.broadcast_events, 0, streams)
        load.close()
    return {
        "deliveries/s, one session": figures["per_second"],
        "lost %, one session": figures["lost_percent"],
        "doubled or disordered, one session": figures["disorder"],
    }


async def idle(subject: Subject, streams: int) -> Figures:
    """Idle streams: what each costs, and how soon the first event comes after a while of silence."""
    with Server(subject, streams) as server:
        load = Load(server.port)
        await load.open([stream_path(n) for n in range(50)])
        before = await server.ask("/bench/state")
        await load.open([stream_path(n) for n in range(50, streams)])
        await asyncio.sleep(2)
        after = await server.ask("/bench/state")
        first = []
        load.take_latency = True
        for n in range(20):
            await asyncio.sleep(0.1)
            load.received = 0
            await server.ask("/bench/emit?events=1&rate=0", [f"bench-{n}"])
            await load.wait(1)
            first.append(load.latencies_us[-1] / 1000)
        load.close()
    return {
        "KiB per idle stream": (after["rss_kib"] - before["rss_kib"]) / (streams - 50),
        "first event after idle, ms": statistics.median(first),
    }


# --- the table --------------------------------------------------------------------------------------------------

Workload = Callable[[Subject, int], Coroutine[Any, Any, Figures]]
WORKLOADS: list[tuple[Workload, int]] = [(full_speed, 1000), (paced, 1000), (broadcast, 1000), (idle, 2000)]


def measure(runs: int, scale: float) -> dict[str, list[Figures]]:
    """Run every workload on every subject, taking turns, so that a noisy minute hits all of them."""
    results: dict[str, list[Figures]] = {subject.name: [] for subject in SUBJECTS}
    for run in range(runs):
        for subject in SUBJECTS:
            figures: Figures = {}
            for workload, size in WORKLOADS:
                print(
                    f"run {run + 1}/{runs}: {subject.name}: {workload.__name__}", file=sys.stderr, flush=True
                )
                figures.update(asyncio.run(workload(subject, int(size * scale))))
            results[subject.name].append(figures)
    return results


def table(results: dict[str, list[Figures]], runs: int) -> str:
    """Return the results as Markdown: medians, with the ratio to the plain recipe."""
    names = list(results)
    medians = {
        name: {key: statistics.median(f[key] for f in runs_) for key in runs_[0]}
        for name, runs_ in results.items()
    }
    recipe = medians[names[-1]]
    lines = [f"| | {' | '.join(names)} | ratio |", "|---|" + "---:|" * (len(names) + 1)]
    for key in recipe:
        cells = [_number(medians[name][key]) for name in names]
        lines.append(f"| {key} | {' | '.join(cells)} | {_ratio(key, medians[names[0]][key], recipe[key])} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"


def _ratio(key: str, ours: float, theirs: float) -> str:
    if key.startswith(("lost", "doubled")) or not ours or not theirs:
        return ""
    return (
        f"{ours / theirs:.1f}×"
        if "/s" in key and "µs" not in key and "ms" not in key
        else f"{theirs / ours:.1f}× less"
    )


def machine() -> str:
    """Say which machine and which versions these are."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    packages = ", ".join(
        f"{p} {version(p)}" for p in ("django", "channels", "uvicorn", "uvloop", "httptools", "msgspec")
    )
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}"


def keep(text: str) -> None:
    """Put the table into RESULTS.md in the place of the one before; what else stands there stays."""
    results = ROOT / "benchmarks" / "RESULTS.md"
    before, _, rest = results.read_text(encoding="utf-8").partition("Medians of ")
    _, _, after = rest.partition("\n\nRatios ")
    results.write_text(f"{before}{text.strip()}\n\nRatios {after}", encoding="utf-8")


def main() -> None:
    """Measure and print; `--write` also keeps the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the sessions and streams")
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.md")
    options = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    # The load keeps nothing that has cycles; a collection here would be measured as the server's latency.
    gc.disable()
    results = measure(options.runs, options.scale)
    text = f"Medians of {options.runs} runs. {machine()}.\n\n{table(results, options.runs)}\n"
    print(text)
    if options.write:
        keep(text)


if __name__ == "__main__":
    main()
