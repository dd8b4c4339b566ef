"""One command, one table: Backchannel on Redis beside its peers; server and producer are processes of their own.

Run from the project's root: `make bench-redis` (or `python -m benchmarks.run_redis --help`). The server has one core;
producer, Redis and the load share the other. A Valkey of its own is started for each workload, unless `REDIS_URL`
names one (its database is flushed).
"""

import argparse
import gc
import os
import sys
import traceback
from collections.abc import Callable

from benchmarks import report, workloads
from benchmarks.load import socketio, sse
from benchmarks.peers import nchan
from benchmarks.processes import LOAD_CORE, ROOT, Valkey
from benchmarks.publishing import publishing
from benchmarks.subjects import Joined, Subject
from benchmarks.workloads import Figures

OURS = "Backchannel"
RECIPE = "plain recipe, channels_redis pub/sub"
REFERENCE = "nchan"


def _peer(module: str) -> tuple[str, str]:
    return f"benchmarks.peers.{module}:application", f"benchmarks.peers.{module}"


SUBJECTS = [
    Subject(
        OURS, "project.asgi:application", "benchmarks.backchannel", events=200_000, broadcast_events=500,
        is_backchannel=True,
    ),
    Subject(RECIPE, *_peer("recipe_redis")),
    Subject("sse-starlette, redis-py", *_peer("starlette_sse")),
    Subject(
        "django-eventstream", *_peer("eventstream"), dialect=sse(b"event: stream-open"),
        path=lambda session, stream: f"/sse/stream?channel=bench-{session}",
    ),
    Subject(
        "python-socketio", *_peer("socketio_server"), dialect=socketio(),
        path=lambda session, stream: f"/socket.io/?EIO=4&transport=websocket&user_session_id=bench-{session}",
    ),
    Subject(
        REFERENCE, "nginx", "benchmarks.peers.nchan", dialect=sse(b": hi"), start=nchan.serve,
        publishes_through=nchan.serve,
    ),
]  # fmt: skip
WORKLOADS: list[tuple[Callable[..., Figures], int]] = [
    (workloads.full_speed, 1000), (workloads.backlog, 1000), (workloads.paced, 1000), (workloads.broadcast, 1000),
    (workloads.idle, 2000),
]  # fmt: skip
PACKAGES = (
    "redis", "hiredis", "channels-redis", "starlette", "sse-starlette", "django-eventstream", "python-socketio",
    "websockets",
)  # fmt: skip


def measure(subjects: list[Subject], only: str, runs: int, scale: float) -> dict[str, list[Figures]]:
    """Run every workload on every subject, taking turns, so that a noisy minute hits all of them."""
    results: dict[str, list[Figures]] = {subject.name: [] for subject in subjects}
    for run in range(runs):
        figures: dict[str, Figures] = {subject.name: {} for subject in subjects}
        for workload, size in [*WORKLOADS, (_publishing, 0)]:
            for subject in subjects if only in workload.__name__ else ():
                print(
                    f"run {run + 1}/{runs}: {workload.__name__}: {subject.name}", file=sys.stderr, flush=True
                )
                try:
                    row = workload(Joined, subject, int(size * scale))
                except (RuntimeError, OSError):
                    # A peer that cannot do a workload has no figure in its row; the others still have theirs.
                    traceback.print_exc()
                    continue
                print("  " + "; ".join(f"{k} {report.number(v)}" for k, v in row.items()), file=sys.stderr)
                figures[subject.name].update(row)
        for name, rows in figures.items():
            results[name].append(rows)
    return results


def _publishing(make: object, subject: Subject, size: int) -> Figures:
    return publishing(subject)


def table(results: dict[str, list[Figures]]) -> str:
    """Return the results as Markdown: medians, then how far ours is ahead of the recipe and of the best peer."""
    medians = report.medians(results)
    names = list(medians)
    lines = [
        f"| | {' | '.join(names)} | to the plain recipe | to the best Python peer |",
        "|---|" + "---:|" * (len(names) + 2),
    ]
    for key in dict.fromkeys(key for name in names for key in medians[name]):
        cells = [report.number(medians[name][key]) if key in medians[name] else "-" for name in names]
        peers = [
            medians[name][key] for name in names if name not in (OURS, REFERENCE) and key in medians[name]
        ]
        ours = medians.get(OURS, {}).get(key, 0)
        recipe = report.ratio(key, ours, medians.get(RECIPE, {}).get(key, 0))
        best = report.ratio(key, ours, (max if report.is_rate(key) else min)(peers, default=0))
        lines.append(f"| {key} | {' | '.join(cells)} | {recipe} | {best} |")
    return "\n".join(lines)


def chosen(pattern: str) -> list[Subject]:
    """Return the subjects to measure; nchan only where it is installed."""
    subjects = [s for s in SUBJECTS if any(word in s.name.lower() for word in pattern.lower().split(","))]
    if any(s.name == REFERENCE for s in subjects) and not nchan.is_installed():
        print("nchan is not installed (Debian: nginx, libnginx-mod-nchan): it is left out", file=sys.stderr)
        return [s for s in subjects if s.name != REFERENCE]
    return subjects


def main() -> None:
    """Measure and print; `--write` also keeps the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the sessions and streams")
    parser.add_argument("--subjects", default="", help="words of the names of those to measure, by commas")
    parser.add_argument("--workload", default="", help="part of the name of the one workload to measure")
    parser.add_argument(
        "--realtime", action="store_true", help="let nothing else on the machine come in between (root)"
    )
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS-REDIS.md")
    options = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    if options.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    # The load keeps nothing that has cycles; a collection here would be measured as the server's latency.
    gc.disable()
    with Valkey() as store:
        version = store.version()
    results = measure(chosen(options.subjects), options.workload, options.runs, options.scale)
    versions = report.machine(*PACKAGES)
    how = " with real-time priority, on a machine with other work" if options.realtime else ""
    sessions, idle = int(1000 * options.scale), int(2000 * options.scale)
    sizes = f"{sessions:,} sessions, {sessions:,} streams of one session, {idle:,} idle streams"
    text = f"Medians of {options.runs} runs{how} ({sizes}). {versions}, {version}.\n\n{table(results)}\n"
    print(text)
    if options.write:
        report.keep(ROOT / "benchmarks" / "RESULTS-REDIS.md", text)


if __name__ == "__main__":
    main()
