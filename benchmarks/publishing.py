"""What a publish costs its producer and Redis: alone, and piled up. No server listens; each has a core of its own."""

from benchmarks.subjects import Joined, Subject
from benchmarks.workloads import Figures

PILE = 1000


def publishing(subject: Subject, alone: int = 4000, piled: int = 40_000) -> Figures:
    """Publish one at a time, each awaited; then a thousand at once, again and again."""
    with Joined(subject, 0, serves=False) as bench:
        _ask(bench, do="alone", count=200)
        one = _ask(bench, do="alone", count=alone)
        _ask(bench, do="piled", count=PILE, at_once=PILE)
        many = _ask(bench, do="piled", count=piled, at_once=PILE)
    return {
        "a publish alone, µs": one["seconds"] * 1e6 / alone,
        "a publish alone, µs of CPU": one["cpu_seconds"] * 1e6 / alone,
        "a publish alone, µs of Redis' CPU": one["store"] * 1e6 / alone,
        "publishes/s, piled up": piled / many["seconds"],
        "a publish piled up, µs of CPU": many["cpu_seconds"] * 1e6 / piled,
        "a publish piled up, µs of Redis' CPU": many["store"] * 1e6 / piled,
    }


def _ask(bench: Joined, **order: object) -> Figures:
    before = bench.store_cpu_seconds()
    bench.producer.begin(**order)
    answer = bench.producer.answer()
    return {**answer, "store": bench.store_cpu_seconds() - before}
