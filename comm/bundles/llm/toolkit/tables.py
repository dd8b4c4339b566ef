"""The user's tables: rows filtered, grouped and added up, where a model would have to count by eye."""

import asyncio
import csv
import io
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeVar

import msgspec

from comm.bundles.demo.earlier import earlier_attachments
from comm.bundles.demo.reading import read_document
from comm.bundles.demo.tables import Column, Table, parse_number
from comm.bundles.llm.tools import ToolError, tool
from comm.turns.context import TurnAttachment, TurnContext

MOST_ROWS = 100
Function = Literal["count", "sum", "mean", "median", "min", "max"]
Operator = Literal["=", "!=", "<", "<=", ">", ">=", "contains"]
Comparable = TypeVar("Comparable", float, str)

FUNCTIONS: dict[Function, Callable[[Sequence[float]], float]] = {
    "count": len,
    "sum": math.fsum,
    "mean": statistics.fmean,
    "median": statistics.median,
    "min": min,
    "max": max,
}


class Condition(msgspec.Struct):
    """Rows that are kept: those where the column compares so to the value."""

    column: str
    operator: Operator
    value: str | int | float


@tool
async def query_table(
    turn: TurnContext,
    file: Annotated[str, "Name of the file; leave it out when there is only one table."] = "",
    where: Annotated[list[Condition], "Conditions that all hold for the rows."] = [],  # noqa: B006 - copied
    group_by: Annotated[str, "Column to group by."] = "",
    function: Annotated[Function | None, "What to compute, over all rows or per group."] = None,
    of: Annotated[str, "Column of numbers that the function is about; not needed to count."] = "",
    columns: Annotated[list[str], "Columns to list when nothing is computed; all when left out."] = [],  # noqa: B006
    sort_by: Annotated[str, "Column to sort listed rows by; groups are sorted by the result."] = "",
    descending: bool = False,
    limit: Annotated[int, msgspec.Meta(ge=1, le=MOST_ROWS)] = 20,
) -> str:
    """Query a table (CSV, TSV, JSON) that the user attached: filter, sort, group and add up its rows.

    Without arguments it lists the first rows. The result is CSV, after a line that counts the rows.
    """
    table = await _table(turn, file)
    rows = [row for row in range(table.rows) if all(_holds(table, condition, row) for condition in where)]
    if function is None and not group_by:
        return _listing(table, rows, columns, sort_by, descending, limit)
    return _computed(table, rows, group_by, function or "count", of, descending, limit)


async def _table(turn: TurnContext, file: str) -> Table:
    """Find the table that is meant. Errors: ToolError names those that there are."""
    attachments = list(turn.attachments) or (await earlier_attachments(turn) if turn.history else [])
    if file:
        named = [attachment for attachment in attachments if attachment.filename.lower() == file.lower()]
        if not named:
            names = ", ".join(attachment.filename for attachment in attachments) or "none"
            raise ToolError(f"there is no file {file[:80]!r}; attached: {names}")
        attachments = named
    found = [table for attachment in attachments for table in await _tables_of(attachment)]
    if not found:
        raise ToolError("no table (CSV, TSV, JSON) is attached")
    if len(found) > 1 and not file:
        raise ToolError(f"say which file: {', '.join(attachment.filename for attachment in attachments)}")
    return found[0]


async def _tables_of(attachment: TurnAttachment) -> list[Table]:
    try:
        content = await attachment.read()
    except OSError:
        return []
    document = await asyncio.to_thread(read_document, attachment.filename, attachment.mime, content)
    return [table for _, table in document.tables]


def _column(table: Table, name: str) -> Column:
    wanted = name.strip().lower()
    found = next((column for column in table.columns if column.name.lower() == wanted), None)
    if found is None:
        known = ", ".join(column.name for column in table.columns)
        raise ToolError(f"there is no column {name[:80]!r}; there are {known}")
    return found


def _holds(table: Table, condition: Condition, row: int) -> bool:
    column = _column(table, condition.column)
    cell = column.cells[row]
    wanted = str(condition.value)
    if cell is None:
        # A missing cell is equal to the empty text and to nothing else.
        return condition.operator in ("=", "!=") and (wanted == "") == (condition.operator == "=")
    if condition.operator == "contains":
        return wanted.lower() in cell.lower()
    number = parse_number(wanted)
    if column.values and number is not None:
        value = column.values[row]
        return value is not None and _compares(value, condition.operator, number)
    return _compares(cell.lower(), condition.operator, wanted.lower())


def _compares(left: Comparable, sign: Operator, right: Comparable) -> bool:
    return {
        "=": left == right, "!=": left != right, "<": left < right, "<=": left <= right,
        ">": left > right, ">=": left >= right,
    }[sign]  # fmt: skip


def _listing(
    table: Table, rows: list[int], names: list[str], sort_by: str, descending: bool, limit: int
) -> str:
    columns = [_column(table, name) for name in names] or table.columns
    if sort_by:
        column = _column(table, sort_by)
        rows = sorted(rows, key=lambda row: _order(column, row), reverse=descending)
    shown = [[column.cells[row] or "" for column in columns] for row in rows[:limit]]
    return _counted(table, len(rows), len(shown)) + _csv([column.name for column in columns], shown)


def _order(column: Column, row: int) -> tuple[bool, float, str]:
    value = column.values[row] if column.values else None
    moment = column.moments[row] if column.moments else None
    return (
        column.cells[row] is not None,
        value if value is not None else (moment.timestamp() if moment is not None else 0.0),
        column.cells[row] or "",
    )


def _computed(
    table: Table, rows: list[int], group_by: str, function: Function, of: str, descending: bool, limit: int
) -> str:
    numbers = _numbers(table, function, of)
    groups: dict[str, list[int]] = {}
    grouped = _column(table, group_by) if group_by else None
    for row in rows:
        groups.setdefault((grouped.cells[row] or "(missing)") if grouped else "all rows", []).append(row)
    results = [(key, _result(function, numbers, members)) for key, members in groups.items()]
    results.sort(key=lambda item: (item[1] is not None, item[1] or 0.0), reverse=descending)
    shown = [[key, "" if value is None else format(value, ".12g")] for key, value in results[:limit]]
    title = f"{function} of {of}" if of else function
    return _counted(table, len(rows), len(rows)) + _csv([group_by or "rows", title], shown)


def _numbers(table: Table, function: Function, of: str) -> list[float | None] | None:
    """Return the numbers of a column; None where rows are counted."""
    if function == "count" and not of:
        return None
    column = _column(table, of)
    if function == "count":
        return [None if cell is None else 1.0 for cell in column.cells]
    if not column.values:
        raise ToolError(f"{of} holds no numbers, so there is no {function} of it")
    return column.values


def _result(function: Function, numbers: list[float | None] | None, rows: list[int]) -> float | None:
    if numbers is None:
        return len(rows)
    present = [number for row in rows if (number := numbers[row]) is not None]
    return FUNCTIONS[function](present) if present or function == "count" else None


def _counted(table: Table, matching: int, shown: int) -> str:
    worded = f"{matching:,} of {table.rows:,} rows"
    if shown < matching:
        worded += f", the first {shown} shown"
    return worded + ("\n" if table.complete else " (the table was too large to be read whole)\n")


def _csv(names: list[str], rows: list[list[str]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return out.getvalue()
