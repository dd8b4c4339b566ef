"""The admin's list filters: choices from an index or from a fixed list, never from a scan of all rows."""

from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from comm.envelope import KNOWN_ROUTES, MARKERS

from .browsing import TIMED, values_of
from .models import RecordedEnvelope

CHOICES = 50
"""Choices that a filter offers; a column with more values is searched."""

Rows = QuerySet[RecordedEnvelope]
Choices = list[tuple[str, str]]


def shortened(identifier: str) -> str:
    """Return enough of a long id to tell it from another, and not enough to use it."""
    return identifier if len(identifier) <= 12 else identifier[:8] + "…"


def only(column: str, value: str) -> Q:
    """Keep the rows with this value of a column.

    For an index that goes on by time it is said as a range, to be ordered by the column first: told that the
    column is constant, PostgreSQL may walk the index of all times instead, past every other row.
    """
    return (
        Q(**{f"{column}__gte": value, f"{column}__lte": value}) if column in TIMED else Q(**{column: value})
    )


class _ColumnFilter(admin.SimpleListFilter):
    """Keeps rows whose column has the chosen value."""

    parameter_name: str

    def queryset(self, request: HttpRequest, queryset: Rows) -> Rows:
        """Narrow the list down to the chosen value."""
        value = self.value()
        return queryset if value is None else queryset.filter(only(self.parameter_name, value))


class _IndexedFilter(_ColumnFilter):
    """Offers the values that an indexed column has."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """The first values, and the chosen one in any case."""
        values = values_of(RecordedEnvelope.objects.all(), self.parameter_name, CHOICES)
        chosen = self.value()
        return [(value, value) for value in values if value] + (
            [(chosen, chosen)] if chosen and chosen not in values else []
        )


class TypeFilter(_IndexedFilter):
    """By envelope type."""

    title = parameter_name = "type"


class TenantFilter(_IndexedFilter):
    """By tenant."""

    title = parameter_name = "tenant"


class UserFilter(_IndexedFilter):
    """By user."""

    title = parameter_name = "user"


class RouteFilter(_ColumnFilter):
    """By route; there are seven."""

    title = parameter_name = "route"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """The routes of the contract."""
        return [(route, route) for route in sorted(KNOWN_ROUTES)]


class MarkerFilter(admin.SimpleListFilter):
    """By marker: those that every client knows, and the others together."""

    title = parameter_name = "marker"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """The known markers."""
        return [*((marker, marker) for marker in MARKERS), ("*", "custom")]

    def queryset(self, request: HttpRequest, queryset: Rows) -> Rows:
        """Narrow the list down to the chosen marker."""
        if self.value() == "*":
            return queryset.exclude(marker__in=["", *MARKERS])
        return queryset if self.value() is None else queryset.filter(marker=self.value())


class _LinkedFilter(_ColumnFilter):
    """Is there only where a link chose it, to say so and to be taken away."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """The chosen value alone."""
        chosen = self.value()
        return [(chosen, chosen)] if chosen else []


class TurnFilter(_LinkedFilter):
    """All events of one turn."""

    title = "turn"
    parameter_name = "turn_id"


class ConversationFilter(_LinkedFilter):
    """All events of one conversation."""

    title = "conversation"
    parameter_name = "conversation_id"


class SessionFilter(_LinkedFilter):
    """All events of the session that a given event is of: whoever reads a link learns no session id."""

    title = "session"
    parameter_name = "session_of"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Choices:
        """The chosen event's session, in part."""
        chosen = self.value()
        # A filter without a choice is not applied at all: a list of everything would be taken for a session.
        return [(chosen, shortened(self._session_id() or "unknown"))] if chosen else []

    def queryset(self, request: HttpRequest, queryset: Rows) -> Rows:
        """Narrow the list down to the session; an event that is not there has none."""
        if self.value() is None:
            return queryset
        session_id = self._session_id()
        return queryset.none() if session_id is None else queryset.filter(session_id=session_id)

    def _session_id(self) -> str | None:
        number = self.value() or ""
        if not (number.isascii() and number.isdigit() and len(number) < 19):
            return None
        return RecordedEnvelope.objects.filter(pk=number).values_list("session_id", flat=True).first()
