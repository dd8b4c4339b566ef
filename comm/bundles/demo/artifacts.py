"""What goes on the canvas beside an answer: a chart of the data as SVG, and a table as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .charts import Points, bar_chart, histogram, line_chart, markdown_table
from .figures import group_figures
from .prose import TextProfile
from .questions import Question, aside_from, group_in, names_in
from .reading import Document
from .sections import COLUMN_HEAD, COLUMN_NUMERIC, column_rows
from .tables import Column, Table
from .wording import duration, number, shortened

LONGEST_LINE = 200
"""Points of a line; neighbours are averaged beyond."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One thing on the canvas; `name` is its own within the turn."""

    name: str
    title: str
    format: Literal["svg", "markdown"]
    text: str


def artifacts_of(question: Question, document: Document, first: int) -> list[Artifact]:
    """Make the artifacts of a document, numbered from `first`."""
    drawn: list[tuple[str, str, Literal["svg", "markdown"]]] = []
    if document.tables:
        table = document.tables[0][1]
        chart = chart_of(aside_from(question, document.name), table)
        if chart:
            drawn.append((*chart, "svg"))
        drawn.append(("columns", markdown_table(COLUMN_HEAD, column_rows(table), COLUMN_NUMERIC), "markdown"))
    elif document.prose is not None:
        frequent = document.prose.frequent(12)
        if len(frequent) >= 3:
            points = [(word, float(count)) for word, count in frequent]
            drawn.append(("most frequent words", bar_chart("Most frequent words", points), "svg"))
        drawn.append(("figures", _figures(document.prose), "markdown"))
    elif document.structure is not None:
        rows = [[key, f"{count:,}"] for key, count in document.structure.keys.most_common(30)]
        if rows:
            drawn.append(("keys", markdown_table(["key", "occurrences"], rows, [1]), "markdown"))
    found = []
    for place, (subject, text, format_) in enumerate(drawn, first):
        title = f"{shortened(document.name, 40)}: {subject}"
        found.append(Artifact(f"{'chart' if format_ == 'svg' else 'table'}-{place}", title, format_, text))
    return found


def chart_of(question: Question, table: Table) -> tuple[str, str] | None:
    """Draw the chart that fits a table and what was asked of it; return its subject and the SVG."""
    named = names_in(question, table)
    group = group_in(question, named)
    numbers = [column for column in named if column.kind == "number" and column is not group]
    subject = numbers[0] if numbers else next(iter(table.of_kind("number")), None)
    time = next(iter(table.of_kind("date")), None)
    wanted = [column for column in named if column.kind == "text" and column is not subject]
    parts = group or next(iter(wanted), None) or _parting(table)
    if subject is None:
        return _bars_of_counts(parts or next(iter(table.of_kind("text")), None))
    if time is not None and group is None and not wanted and time.distinct > 2:
        title = f"{subject.name} over {time.name}"
        return title, line_chart(title, over_time(time, subject))
    if parts is not None:
        function = next(
            (name for name in question.functions if name in ("sum", "median", "max", "min")), "mean"
        )
        title = f"{'average' if function == 'mean' else function} of {subject.name} per {parts.name}"
        return title, bar_chart(title, group_figures(parts, subject, function)[:24])
    title = f"distribution of {subject.name}"
    return title, histogram(title, [value for value in subject.values if value is not None])


def over_time(time: Column, subject: Column) -> Points:
    """Average a column per moment, in order of time; neighbours are joined where there are too many."""
    parts: dict[object, tuple[str, list[float]]] = {}
    rows = zip(time.moments, time.cells, subject.values, strict=True)
    for moment, cell, value in rows:
        if moment is not None and value is not None:
            parts.setdefault(moment, (cell or "", []))[1].append(value)
    ordered = [parts[moment] for moment in sorted(parts, key=str)]
    joined = -(-len(ordered) // LONGEST_LINE) or 1
    groups = [ordered[start : start + joined] for start in range(0, len(ordered), joined)]
    return [(group[0][0], _mean([value for _, values in group for value in values])) for group in groups]


def _parting(table: Table) -> Column | None:
    """The text column that divides the rows into few groups, if there is one."""
    fitting = [column for column in table.of_kind("text") if 2 <= column.distinct <= 24]
    return next(iter(fitting), None)


def _bars_of_counts(column: Column | None) -> tuple[str, str] | None:
    if column is None:
        return None
    title = f"most frequent values of {column.name}"
    return title, bar_chart(title, [(value, float(count)) for value, count in column.top(20)])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _figures(profile: TextProfile) -> str:
    rows = [
        ["words", f"{profile.words:,}"],
        ["different words", f"{len(profile.counts):,}"],
        ["sentences", f"{profile.sentences:,}"],
        ["paragraphs", f"{profile.paragraphs:,}"],
        ["lines", f"{profile.lines:,}"],
        ["characters", f"{profile.characters:,}"],
        ["reading time", duration(profile.reading_seconds)],
    ]
    if profile.numbers is not None:
        rows.append(["sum of its numbers", number(profile.numbers.total)])
    return markdown_table(["figure", "value"], rows, [1])
