"""What a question asks of a table: figures of its columns, for all rows, per group, or for one value."""

import heapq
import math
import statistics
from collections.abc import Callable, Sequence

from .charts import markdown_table
from .questions import Question, group_in, names_in, value_in
from .tables import Column, Table
from .wording import code, counted, escaped, listed, number

FIGURES: dict[str, tuple[str, Callable[[list[float]], float]]] = {
    "mean": ("average", statistics.fmean),
    "median": ("median", statistics.median),
    "max": ("highest value", max),
    "min": ("lowest value", min),
    "sum": ("sum", math.fsum),
}
SHOWN_GROUPS = 12
SHOWN_ROWS = 10


def answer_table(question: Question, table: Table, where: str) -> list[str]:
    """Answer what is asked of a table: figures of columns, for all rows, per group, or for one value."""
    named = names_in(question, table)
    group = group_in(question, named)
    chosen = value_in(question, table, group)
    subjects = [column for column in named if column is not group and not (chosen and column is chosen[0])]
    if question.asks(*FIGURES) and any(column.kind == "number" for column in subjects):
        # "Which product has the highest price?": the product is the answer, not what is computed.
        subjects = [column for column in subjects if column.kind == "number"]
    rows = _matching(chosen)
    narrowed = f" where {code(chosen[0].name)} is {code(chosen[1])}" if chosen else ""
    if question.asks("columns") and not subjects:
        names = listed(f"{code(column.name)} ({column.kind})" for column in table.columns[:30])
        return [f"{where} has **{counted(len(table.columns), 'column')}**: {names}."]
    if not subjects and question.asks(*FIGURES):
        subjects = table.of_kind("number")[:4]
    if not named and question.asks("range"):
        subjects = table.of_kind("date")[:2]
    if group is not None:
        return _per_group(question, subjects, group, where + narrowed, rows)
    answers = [text for column in subjects for text in _of_column(question, column, rows, where + narrowed)]
    if answers:
        return answers + _extreme_row(question, table, subjects, rows)
    if question.asks("missing") and not subjects:
        return [_missing(table, where)]
    if rows is not None:
        found = f"**{counted(len(rows), 'row')}**{narrowed} in {where}, of {table.rows:,}."
        return [found] if question.asks("count") else [found, _rows_shown(table, rows, named)]
    if question.asks("rows") and question.asks("count"):
        return [f"{where} has **{counted(table.rows, 'row')}**."]
    if question.asks("top", "distinct") and not named:
        return [_top_of(column) for column in table.of_kind("text")[:3]]
    return []


def _matching(chosen: tuple[Column, str] | None) -> list[int] | None:
    if chosen is None:
        return None
    column, value = chosen
    return [row for row, cell in enumerate(column.cells) if cell == value]


def _of_column(question: Question, column: Column, rows: list[int] | None, where: str) -> list[str]:
    """Answer about one column; a question that names it and no function gets its description."""
    if column.kind == "number":
        values = _numbers(column, rows)
        if not values:
            return [f"{code(column.name)} has no number in {where}."]
        asked = [name for name in FIGURES if question.asks(name)]
        if question.asks("range"):
            asked = ["min", "max"]
        if asked:
            return [_figure(name, column, values, where) for name in asked]
    if column.kind == "date" and question.asks("max", "min", "range", "count"):
        return [_period(column, where)]
    if question.asks("missing"):
        lacking = counted(column.missing, "value")
        return [f"{code(column.name)} in {where} lacks **{lacking}**, of {len(column.cells):,}."]
    if question.asks("top"):
        return [_top_of(column)]
    if question.asks("distinct") or (question.asks("count") and column.kind == "text" and rows is None):
        different = counted(column.distinct, "different value")
        return [f"{code(column.name)} has **{different}** in {where}. {_top_of(column)}"]
    if rows is not None and question.asks("count"):
        return []
    return [describe_column(column)] if rows is None else []


def _numbers(column: Column, rows: list[int] | None) -> list[float]:
    picked = column.values if rows is None else [column.values[row] for row in rows]
    return [value for value in picked if value is not None]


def _figure(name: str, column: Column, values: list[float], where: str) -> str:
    label, compute = FIGURES[name]
    of = counted(len(values), "number")
    return f"The {label} of {code(column.name)} in {where} is **{number(compute(values))}** (of {of})."


def _rows_shown(table: Table, rows: list[int], named: Sequence[Column]) -> str:
    """Show the first of the rows that were asked for, with the columns that were named, else with all."""
    columns = list(named) or table.columns[:8]
    shown = [[column.cells[row] or "" for column in columns] for row in rows[:SHOWN_ROWS]]
    return markdown_table([column.name for column in columns], shown)


def _extreme_row(
    question: Question, table: Table, subjects: Sequence[Column], rows: list[int] | None
) -> list[str]:
    """Show the row that has the highest or lowest number, when one such column was asked about."""
    numeric = [column for column in subjects if column.kind == "number"]
    if len(numeric) != 1 or not question.asks("max", "min") or len(table.columns) < 2:
        return []
    column = numeric[0]
    best = column.maximum if question.asks("max") else column.minimum
    if rows is not None:
        best = (max if question.asks("max") else min)(_numbers(column, rows))
    places = [row for row in (range(table.rows) if rows is None else rows) if column.values[row] == best]
    others = [other for other in table.columns if other is not column][:5]
    cells = [f"{code(other.name)} {code(other.cells[places[0]] or 'missing')}" for other in others]
    ties = len(places) - 1
    also = f" ({counted(ties, 'other row has', 'other rows have')} the same)" if ties else ""
    return [f"It stands in row {places[0] + 1:,}{also}: {', '.join(cells)}."]


def _per_group(
    question: Question, subjects: list[Column], group: Column, where: str, rows: list[int] | None
) -> list[str]:
    """Divide the rows by the values of a column, and give the asked figure of each part."""
    numeric = next((column for column in subjects if column.kind == "number"), None)
    asked = next((name for name in question.functions if name in FIGURES), "mean")
    figures = group_figures(group, numeric, asked, rows)
    if not figures:
        return []
    label = f"{FIGURES[asked][0]} of {numeric.name}" if numeric else "rows"
    name, value = figures[0]
    best = f"{code(name)}: **{number(value)}**"
    sentence = f"Per {code(group.name)} in {where}, the {escaped(label)} is highest for {best}."
    shown = [[name, number(value)] for name, value in figures[:SHOWN_GROUPS]]
    table = markdown_table([group.name, label], shown, [1])
    more = len(figures) - SHOWN_GROUPS
    return [sentence, table + (f"\n…and {counted(more, 'group')} more." if more > 0 else "")]


def group_figures(
    group: Column, numeric: Column | None, function: str, rows: list[int] | None = None
) -> list[tuple[str, float]]:
    """Compute a figure per value of `group` (rows are counted without a number column), highest first.

    `rows` are the places of the rows that count; None: all.
    """
    parts: dict[str, list[float]] = {}
    for row in range(len(group.cells)) if rows is None else rows:
        name = group.cells[row]
        value = 1.0 if numeric is None else numeric.values[row]
        if name is not None and value is not None:
            parts.setdefault(name, []).append(value)
    compute = math.fsum if numeric is None else FIGURES[function][1]
    figures = ((name, compute(values)) for name, values in parts.items())
    return heapq.nsmallest(200, figures, key=lambda part: -part[1])


def describe_column(column: Column) -> str:
    """Say in a sentence what a column holds."""
    name = code(column.name)
    missing = f" {counted(column.missing, 'value is', 'values are')} missing." if column.missing else ""
    if column.kind == "number":
        odd = f" {counted(column.odd, 'cell is no number', 'cells are no numbers')}." if column.odd else ""
        return (
            f"{name} goes from **{number(column.minimum)}** to **{number(column.maximum)}**, on average"
            f" {number(column.mean)}, with a median of {number(column.median)} and a sum of"
            f" {number(column.total)}.{missing}{odd}"
        )
    if column.kind == "date":
        return f"{name} goes from **{column.first}** to **{column.last}**.{missing}"
    if column.kind == "empty":
        return f"{name} has no value."
    return f"{_top_of(column)}{missing}"


def _top_of(column: Column) -> str:
    top = column.top(5)
    name = code(column.name)
    if not top:
        return f"{name} has no value."
    if top[0][1] == 1:
        some = listed(code(value) for value, _ in top[:3])
        return f"{name} has {counted(column.distinct, 'value')}, each of them once, such as {some}."
    parts = listed(f"{code(value)} ({count:,})" for value, count in top)
    return f"The most frequent value{'s' if len(top) > 1 else ''} of {name}: {parts}."


def _period(column: Column, where: str) -> str:
    moments = [moment for moment in column.moments if moment is not None]
    days = (max(moments) - min(moments)).days
    first, last = escaped(column.first), escaped(column.last)
    return f"{code(column.name)} in {where} goes from **{first}** to **{last}**: {counted(days, 'day')}."


def _missing(table: Table, where: str) -> str:
    lacking = [column for column in table.columns if column.missing]
    if not lacking:
        return f"No value is missing in {where}."
    parts = listed(f"{code(column.name)} ({column.missing:,})" for column in lacking[:12])
    total = sum(column.missing for column in lacking)
    return f"{where} lacks **{counted(total, 'value')}**: {parts}."
