"""Tables and their columns: delimited text read into one, and what each column holds."""

import csv
import heapq
import io
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Literal

from .wording import printable, shortened

Kind = Literal["number", "text", "date", "empty"]

KEPT_ROWS = 50_000
KEPT_CELLS = 500_000
KEPT_COLUMNS = 200
"""What of a table is analysed; an answer says so where there was more. Sorting 50,000 numbers takes about
10 ms, for which the event loop waits."""

LONGEST_LINE = 131_072

DELIMITERS = ",;\t|"
DELIMITER_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "nil", "-", "--", "?", "#n/a"})
LARGEST = 1e100
"""Larger numbers are taken for text: sums of them would overflow."""

_EXPONENT = r"(?:[eE][-+]?\d{1,3})?"
_POINT = re.compile(
    rf"[-+]?(?:\d{{1,3}}(?:[, '\u00a0\u202f]\d{{3}})+|\d+)(?:\.\d*)?{_EXPONENT}|[-+]?\.\d+{_EXPONENT}",
    re.ASCII,
)
_COMMA = re.compile(r"[-+]?(?:\d{1,3}(?:[. '\u00a0\u202f]\d{3})+|\d+)(?:,\d+)?", re.ASCII)
_GAPS = str.maketrans("", "", " '\u00a0\u202f")
_UNITS = " \t\u00a0€$£¥%"
_IDENTIFIER = re.compile(r"0\d+")
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.{0,20})?")
_DATE_SHAPE = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}([T ].{0,24})?")
_DATE_FORMATS = (
    "%d.%m.%Y",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%Y/%m/%d",
    "%d-%m-%Y",
    "%d.%m.%Y %H:%M",
    "%m/%d/%Y %H:%M",
)


class TableUnreadable(Exception):
    """Delimited text is no table; the message is a sentence's end for people."""


@dataclass(slots=True)
class Column:
    """One column: its cells as they were written (None: missing), and what they are.

    `values` holds a number per row for a number column (None: missing or no number), `moments` a time per row
    for a date column.
    """

    name: str
    cells: list[str | None]
    kind: Kind = "empty"
    count: int = 0
    missing: int = 0
    odd: int = 0
    distinct: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    values: list[float | None] = field(default_factory=list)
    moments: list[datetime | None] = field(default_factory=list)
    minimum: float = 0.0
    maximum: float = 0.0
    total: float = 0.0
    mean: float = 0.0
    median: float = 0.0
    first: str = ""
    last: str = ""

    def top(self, limit: int) -> list[tuple[str, int]]:
        """The most frequent values as written, most frequent first; ties in order of their value."""
        return heapq.nsmallest(limit, self.counts.items(), key=lambda item: (-item[1], item[0]))


@dataclass(slots=True)
class Table:
    """Columns of one length; `note` says how it was read, `complete` is False where rows were left out."""

    columns: list[Column]
    rows: int
    complete: bool = True
    note: str = ""
    uneven: int = 0

    def column(self, name: str) -> Column | None:
        """Find a column by its exact name."""
        return next((column for column in self.columns if column.name == name), None)

    def of_kind(self, *kinds: Kind) -> list[Column]:
        """The columns of these kinds, in order."""
        return [column for column in self.columns if column.kind in kinds]


def read_delimited(text: str, delimiter: str = "", complete: bool = True) -> Table:
    """Read CSV or the like; TableUnreadable says what was wrong and where.

    `delimiter` is sniffed when it is not given; `complete` False says that `text` is cut off.
    """
    if not complete:
        text = text[: text.rfind("\n") + 1]
    delimiter = delimiter or sniff_delimiter(text) or ","
    reader = csv.reader(_bounded_lines(text), delimiter=delimiter)
    rows = (row for row in reader if any(cell.strip() for cell in row))
    try:
        opening = list(islice(rows, 2))
        if not opening:
            raise TableUnreadable("it has no rows")
        if max(map(len, opening)) > KEPT_COLUMNS:
            raise TableUnreadable(f"it has more than {KEPT_COLUMNS} columns")
        headed = is_header(opening)
        names = unique_names(opening[0] if headed else [""] * len(opening[0]))
        table = build_table(names, chain(opening[1:] if headed else opening, rows))
    except csv.Error as error:
        raise TableUnreadable(f"line {reader.line_num} breaks off: {error}") from error
    table.complete = table.complete and complete
    table.note = f"{DELIMITER_NAMES[delimiter]}-separated" + ("" if headed else ", without a header row")
    return table


def _bounded_lines(text: str) -> Iterator[str]:
    """Yield the lines; a longer one than a table has would be cut into millions of cells in one call."""
    for place, line in enumerate(io.StringIO(text, newline=""), 1):
        if len(line) > LONGEST_LINE:
            raise TableUnreadable(f"line {place} is longer than {LONGEST_LINE:,} characters")
        yield line


def build_table(names: list[str], rows: Iterable[list[str]]) -> Table:
    """Make a table of the first rows; short ones are filled up with missing cells, long ones cut.

    Rows are taken one by one: many lists at once would keep the garbage collector busy, and all threads.
    """
    width = len(names)
    limit = min(KEPT_ROWS, KEPT_CELLS // width)
    cells: list[list[str | None]] = [[] for _ in names]
    count = uneven = 0
    complete = True
    for row in rows:
        if count == limit:
            complete = False
            break
        count += 1
        uneven += len(row) != width
        for place, column in enumerate(cells):
            column.append(missing_or(row[place]) if place < len(row) else None)
    columns = [profile_column(Column(name, column)) for name, column in zip(names, cells, strict=True)]
    return Table(columns, count, complete, uneven=uneven)


def sniff_delimiter(text: str) -> str:
    """Find the delimiter that cuts the first lines into the same number of cells; "" when none does.

    csv.Sniffer guesses by regular expressions that can take minutes on a hostile line.
    """
    lines = [line for line in text[:16_384].split("\n")[:40] if line.strip()]
    if len(text) > 16_384 and len(lines) > 1:
        lines.pop()
    best, best_score = "", 0.0
    for delimiter in DELIMITERS:
        try:
            widths = [len(row) for row in csv.reader(lines, delimiter=delimiter) if row]
        except csv.Error:
            continue
        if not widths:
            continue
        width, agreeing = Counter(widths).most_common(1)[0]
        score = agreeing / len(widths) + width / 1000 if width > 1 else 0.0
        if score > best_score and agreeing / len(widths) >= 0.6:
            best, best_score = delimiter, score
    return best


def is_header(opening: list[list[str]]) -> bool:
    """Tell whether the first row names the columns: no numbers or dates in it, and no name twice."""
    first = [cell.strip() for cell in opening[0]]
    named = [cell for cell in first if cell]
    plain = all(parse_number(cell) is None and not _DATE_SHAPE.fullmatch(cell) for cell in named)
    return bool(named) and plain and len(set(named)) == len(named)


def unique_names(given: Iterable[str]) -> list[str]:
    """Name columns: unnamed ones by their number, a second one of a name `name (2)`."""
    names: list[str] = []
    taken: set[str] = set()
    for place, cell in enumerate(given, 1):
        base = name = shortened(cell.strip(), 80) or f"column {place}"
        again = 2
        while name in taken:
            name, again = f"{base} ({again})", again + 1
        taken.add(name)
        names.append(name)
    return names


def missing_or(cell: str) -> str | None:
    """Return a cell without blanks around it, None where it stands for "missing"."""
    cell = cell.strip()
    return None if len(cell) <= 4 and cell.lower() in MISSING else cell


def profile_column(column: Column) -> Column:
    """Find out what a column holds, and its figures."""
    present = [cell for cell in column.cells if cell is not None]
    column.count = len(present)
    column.missing = len(column.cells) - len(present)
    column.counts = Counter(present)
    column.distinct = len(column.counts)
    if present and not _as_numbers(column, present) and not _as_dates(column):
        column.kind = "text"
    return column


def parse_number(cell: str, decimal: str = ".") -> float | None:
    """Read a number as people write it: `1,240.5`, `€ 3`, `12 %`, `1e6`; with `decimal=","`: `1.240,5`."""
    bare = cell.strip(_UNITS) if len(cell) < 60 else ""
    if not (_POINT if decimal == "." else _COMMA).fullmatch(bare):
        return None
    bare = bare.translate(_GAPS)
    bare = bare.replace(",", "") if decimal == "." else bare.replace(".", "").replace(",", ".")
    value = float(bare)
    return value if abs(value) < LARGEST else None


def _as_numbers(column: Column, present: list[str]) -> bool:
    """Make it a number column when nine cells of ten are numbers; the others are counted as odd."""
    if any(_IDENTIFIER.fullmatch(cell) for cell in islice(column.counts, 1000)):
        return False  # a leading zero: postal codes, article numbers
    for decimal in (".", ","):
        parsed = {cell: parse_number(cell, decimal) for cell in column.counts}
        numbers = [value for cell in present if (value := parsed[cell]) is not None]
        if len(numbers) >= 0.9 * len(present):
            break
    else:
        return False
    column.kind = "number"
    column.odd = len(present) - len(numbers)
    column.values = [None if cell is None else parsed[cell] for cell in column.cells]
    column.total = math.fsum(numbers)
    column.mean = column.total / len(numbers)
    column.median = statistics.median(numbers)
    column.minimum, column.maximum = min(numbers), max(numbers)
    return True


def _as_dates(column: Column) -> bool:
    """Make it a date column when every cell is a date in one notation."""
    if not all(len(cell) < 40 and _DATE_SHAPE.fullmatch(cell) for cell in column.counts):
        return False
    parsed = next((found for found in _date_readings(column.counts) if found), None)
    if parsed is None:
        return False
    column.kind = "date"
    column.moments = [None if cell is None else parsed[cell] for cell in column.cells]
    column.first = min(parsed, key=lambda cell: parsed[cell])
    column.last = max(parsed, key=lambda cell: parsed[cell])
    return True


def _date_readings(cells: Iterable[str]) -> Iterator[dict[str, datetime]]:
    """Yield the cells as times, in each notation that all of them have."""
    if all(_ISO_DATE.fullmatch(cell) for cell in cells):
        with suppress(ValueError, OverflowError):
            yield {cell: _naive(datetime.fromisoformat(cell)) for cell in cells}
    for notation in _DATE_FORMATS:
        try:
            yield {cell: datetime.strptime(cell, notation) for cell in cells}
        except ValueError:
            continue


def _naive(moment: datetime) -> datetime:
    """Times with and without a zone must compare: all are taken in UTC."""
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def text_cells(values: Iterable[object]) -> list[str]:
    """Write values of other sources (JSON scalars) as cells."""
    return [_cell(value) for value in values]


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{len(value)} items]"
    if isinstance(value, dict):
        return f"{{{len(value)} keys}}"
    return printable(str(value))
