"""Looking through a million rows: questions that an index answers in a few steps, instead of all rows."""

from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from typing import Any

from django.core.paginator import Paginator
from django.db.models import Max, Min, QuerySet
from django.utils import timezone
from django.utils.functional import cached_property

from .models import RecordedEnvelope
from .querysets import RecordedEnvelopeQuerySet

LISTED_ROWS = 10_000
"""Rows of one selection that the admin pages through; more are narrowed down, not paged through."""
PERIODS = 400
TIMED = ("type", "route", "user", "tenant")
"""Columns with an index that goes on by time, newest first."""
NARROW = ("turn_id", "conversation_id", "session_id")


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts no further than LISTED_ROWS: COUNT(*) of a million rows takes longer than showing a hundred."""

    @cached_property
    def count(self) -> int:
        """How many rows are listed."""
        rows: QuerySet[RecordedEnvelope] = self.object_list  # type: ignore[assignment]
        return rows.order_by().values("pk")[:LISTED_ROWS].count()


def values_of(rows: QuerySet[RecordedEnvelope], column: str, most: int) -> list[str]:
    """Return the first `most` different values of an indexed column, one seek in the index for each."""
    found: list[str] = []
    rest = rows.order_by(column).values_list(column, flat=True)
    while len(found) < most:
        value = rest.filter(**{f"{column}__gt": found[-1]}).first() if found else rest.first()
        if value is None:
            break
        found.append(value)
    return found


class BrowsedQuerySet(RecordedEnvelopeQuerySet):
    """What the admin's date hierarchy asks (years, months, days, first and last), seek by seek.

    Django's own way truncates the date of every row; SQLite does that in Python.
    """

    @property
    def _narrow(self) -> bool:
        """Whether a turn, a conversation or a session was chosen: few rows, found by their own index.

        A seek in the index of times would pass over all other rows before it comes to one of these.
        """
        columns = [getattr(getattr(node, "lhs", None), "target", None) for node in _leaves(self.query.where)]
        return any(column is not None and column.name in NARROW for column in columns)

    def _by_time(self, field_name: str, *, newest_first: bool = False) -> "BrowsedQuerySet":
        """Order by time, along the index of the column that was chosen, where there is one."""
        columns = [getattr(getattr(node, "lhs", None), "target", None) for node in _leaves(self.query.where)]
        chosen = next((c.name for c in columns if c is not None and c.name in TIMED), None)
        if newest_first:
            return self.order_by(*([chosen] if chosen else []), f"-{field_name}")
        return self.order_by(*([f"-{chosen}"] if chosen else []), field_name)

    def _times(self, field_name: str) -> list[datetime]:
        rows = self.order_by().values_list(field_name, flat=True)[:LISTED_ROWS]
        return sorted(moment for moment in rows if moment is not None)

    def datetimes(  # type: ignore[override]
        self, field_name: str, kind: str, order: str = "ASC", tzinfo: tzinfo | None = None
    ) -> list[datetime]:
        """Return the beginnings of the years, months or days that have a row, oldest first."""
        begin, following = _PERIODS[kind]
        if self._narrow:
            moments = self._times(field_name)
            return sorted({begin(timezone.localtime(moment, tzinfo)) for moment in moments})[:PERIODS]
        rest = self._by_time(field_name).values_list(field_name, flat=True)
        found: list[datetime] = []
        moment = rest.first()
        while moment is not None and len(found) < PERIODS:
            found.append(begin(timezone.localtime(moment, tzinfo)))
            moment = rest.filter(**{f"{field_name}__gte": following(found[-1])}).first()
        return found

    def aggregate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Answer a minimum or maximum from that end of the column's index."""
        if args or not all(type(what) in (Min, Max) for what in kwargs.values()):
            return super().aggregate(*args, **kwargs)
        return {name: self._end(what) for name, what in kwargs.items()}

    def _end(self, what: Min | Max) -> Any:
        column = what.get_source_expressions()[0].name
        if self._narrow:
            times = self._times(column)
            return (times[0] if isinstance(what, Min) else times[-1]) if times else None
        rows = self._by_time(column, newest_first=isinstance(what, Max))
        return rows.values_list(column, flat=True).first()


def _leaves(node: Any) -> list[Any]:
    """List the conditions below a WHERE."""
    children = getattr(node, "children", None)
    return [node] if children is None else [leaf for child in children for leaf in _leaves(child)]


def _year(moment: datetime) -> datetime:
    return _month(moment).replace(month=1)


def _month(moment: datetime) -> datetime:
    return _day(moment).replace(day=1)


def _day(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


_PERIODS: dict[str, tuple[Callable[[datetime], datetime], Callable[[datetime], datetime]]] = {
    "year": (_year, lambda begin: begin.replace(year=begin.year + 1)),
    "month": (_month, lambda begin: _month(begin + timedelta(days=31))),
    "day": (_day, lambda begin: begin + timedelta(days=1)),
}
"""Kind → what begins the period of a moment, and the beginning of the one that follows."""
