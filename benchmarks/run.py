"""One command, one table: Backchannel in one process beside the plain recipe; server and load have a core each.

Run from the project's root: `make bench` (or `python -m benchmarks.run --help`).
"""

import argparse
import gc
import os
import sys
from collections.abc import Callable

from benchmarks import report, workloads
from benchmarks.processes import LOAD_CORE, ROOT
from benchmarks.subjects import OneProcess, Subject
from benchmarks.workloads import Figures

BACKCHANNEL = "benchmarks.backchannel_server:application"
SUBJECTS = [
    Subject(
        "Backchannel, recorder off", BACKCHANNEL, env={"SINKS": "", "REDIS_URL": ""}, events=200_000,
        broadcast_events=500, is_backchannel=True,
    ),
    Subject(
        "Backchannel, recorder on", BACKCHANNEL, env={"REDIS_URL": ""}, events=200_000, broadcast_events=500,
        is_backchannel=True,
    ),
    Subject(
        "consumer per connection, Channels' in-memory layer", "benchmarks.peers.recipe_memory:application",
        events=5_000,
    ),
]  # fmt: skip
WORKLOADS: list[tuple[Callable[..., Figures], int]] = [
    (workloads.full_speed, 1000), (workloads.paced, 1000), (workloads.broadcast, 1000), (workloads.idle, 2000),
]  # fmt: skip
ELSEWHERE = ("Redis", "producer", "the load")
"""Rows that make no sense where the producer is the server."""


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
                figures.update(workload(OneProcess, subject, int(size * scale)))
            results[subject.name].append({k: v for k, v in figures.items() if not k.startswith(ELSEWHERE)})
    return results


def table(results: dict[str, list[Figures]]) -> str:
    """Return the results as Markdown: medians, with the ratio to the plain recipe."""
    medians = report.medians(results)
    names = list(medians)
    lines = [f"| | {' | '.join(names)} | ratio |", "|---|" + "---:|" * (len(names) + 1)]
    for key, theirs in medians[names[-1]].items():
        cells = [report.number(medians[name][key]) for name in names]
        lines.append(f"| {key} | {' | '.join(cells)} | {report.ratio(key, medians[names[0]][key], theirs)} |")
    return "\n".join(lines)


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
    text = f"Medians of {options.runs} runs. {report.machine()}.\n\n{table(results)}\n"
    print(text)
    if options.write:
        report.keep(ROOT / "benchmarks" / "RESULTS.md", text)


if __name__ == "__main__":
    main()
