"""From figures to a table: medians, ratios, and which machine it was."""

import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path

from benchmarks.workloads import Figures

NEUTRAL = ("lost", "doubled", "the load")
"""Rows without a better and a worse, or where nothing is the only good."""


def medians(results: dict[str, list[Figures]]) -> dict[str, Figures]:
    """Return the median of every figure of every subject."""
    return {
        name: {key: statistics.median(figures[key] for figures in runs) for key in runs[0]}
        for name, runs in results.items()
        if runs
    }


def number(value: float) -> str:
    """Write a figure as precisely as it is worth."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"


def is_rate(key: str) -> bool:
    """Tell whether more is better."""
    return "/s" in key.partition(",")[0] and "µs" not in key and "ms " not in key


def ratio(key: str, ours: float, theirs: float) -> str:
    """Say how far ours is ahead: above 1 is better, whatever the row."""
    if key.startswith(NEUTRAL) or not ours or not theirs:
        return ""
    return f"{(ours / theirs if is_rate(key) else theirs / ours):.1f}×"


def machine(*packages: str) -> str:
    """Say which machine and which versions these are."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    names = ("django", "channels", "uvicorn", "uvloop", "httptools", "msgspec", *packages)
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def keep(path: Path, text: str) -> None:
    """Put a table into a file in the place of the one before; what else stands there stays."""
    before, _, rest = path.read_text(encoding="utf-8").partition("Medians of ")
    _, _, after = rest.partition("\n\nRatios ")
    path.write_text(f"{before}{text.strip()}\n\nRatios {after}", encoding="utf-8")
