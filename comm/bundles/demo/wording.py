"""How the bundles put values into Markdown: numbers, sizes, code spans, and text that can't break a page."""

import math
import re
from collections.abc import Iterable

LONGEST_VALUE = 60
"""Characters of a value that are shown; more would bury the sentence around it."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~])")


def printable(text: str) -> str:
    """Replace what can't be encoded or shown: lone surrogates, control characters; tabs and newlines stay."""
    return _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def shortened(text: str, limit: int = LONGEST_VALUE) -> str:
    """Put a text on one line and cut it at `limit` characters, with an ellipsis."""
    line = " ".join(printable(text[: limit * 4]).split())
    return line if len(line) <= limit and len(text) <= limit * 4 else line[: limit - 1].rstrip() + "…"


def escaped(text: str) -> str:
    """Return a short text so that Markdown and HTML show it as it is."""
    return _MARKUP.sub(r"\\\1", shortened(text)).replace("<", "&lt;")


def code(text: str) -> str:
    """Return a short text as a code span, whatever backticks it has."""
    line = shortened(text) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def number(value: float) -> str:
    """Write a number for people: thousands separated, at most two decimals, small ones in four digits."""
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}" if abs(value) < 1e15 else f"{value:.6g}"
    if abs(value) >= 1e15 or abs(value) < 0.01:
        return f"{value:.4g}"
    return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.4f}".rstrip("0")


def size(count: int) -> str:
    """Write a number of bytes: `812 bytes`, `4.2 KB`, `25.0 MB`."""
    if count < 1024:
        return counted(count, "byte")
    if count < 1024 * 1024:
        return f"{count / 1024:,.1f} KB"
    return f"{count / (1024 * 1024):,.1f} MB"


def counted(count: int, noun: str, plural: str = "") -> str:
    """Write a count with its noun: `1 row`, `1,200 rows`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def listed(items: Iterable[str], last: str = "and") -> str:
    """Join items as a sentence does: `a, b and c`."""
    parts = list(items)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}" if parts else ""


def duration(seconds: float) -> str:
    """Write a reading time: `12 seconds`, `3 minutes`."""
    if seconds < 60:
        return counted(max(1, round(seconds)), "second")
    minutes = round(seconds / 60)
    return counted(minutes, "minute") if minutes < 120 else f"{number(round(minutes / 60, 1))} hours"
