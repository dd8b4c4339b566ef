"""Filters: what may block, change or enrich an envelope; the one place that runs one."""

import inspect
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import msgspec
from django.core.signals import setting_changed
from django.dispatch import receiver
from django.utils.module_loading import import_string

from .conf import comm_settings
from .envelope import Envelope

logger = logging.getLogger(__name__)

LOGGED_EACH = 1000
"""After its first failure a filter's traceback is logged once per so many: a delta stream must not flood."""

_FAILED = "Filter %s failed on %s of session %s, turn %s, which goes through (failure %d)"


class Decision(NamedTuple):
    """A filter's answer: may the event go, and as which envelope (None: as it is)."""

    allow: bool
    envelope: Envelope | None = None


class EventFilterInput:
    """What a filter is told of an event; each field answers as an attribute and through `get()`.

    `broadcast` is true when the event goes to the whole session (or project), false when it goes to one
    peer. `route` is what the envelope itself says, `socket_event` the name it is delivered under, and
    `route_key` the first of them that is there.
    """

    FIELDS = (
        "type",
        "route",
        "socket_event",
        "route_key",
        "agent",
        "step",
        "status",
        "broadcast",
        "marker",
        "envelope",
    )
    __slots__ = ("broadcast", "envelope")

    def __init__(self, envelope: Envelope, broadcast: bool) -> None:
        self.envelope = envelope
        self.broadcast = broadcast

    @property
    def type(self) -> str:
        """The envelope's type."""
        return self.envelope.type

    @property
    def route(self) -> str | None:
        """The route that the envelope names itself, if it does."""
        return None if isinstance(self.envelope.route, msgspec.UnsetType) else self.envelope.route

    @property
    def socket_event(self) -> str:
        """The route that clients receive it under."""
        return self.envelope.socket_event

    @property
    def route_key(self) -> str:
        """`route`, else `socket_event`."""
        return self.route or self.socket_event

    @property
    def agent(self) -> str:
        """Who is at work."""
        return self.envelope.event.agent

    @property
    def step(self) -> str:
        """The step's name."""
        return self.envelope.event.step

    @property
    def status(self) -> str:
        """The step's status."""
        return self.envelope.event.status

    @property
    def marker(self) -> str | None:
        """The marker of a delta."""
        return None if isinstance(self.envelope.delta, msgspec.UnsetType) else self.envelope.delta.marker

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field by name, the default where it is unknown or has nothing to say."""
        if name not in self.FIELDS:
            return default
        value = getattr(self, name)
        return default if value is None else value

    def __getitem__(self, name: str) -> Any:
        if name not in self.FIELDS:
            raise KeyError(name)
        return getattr(self, name)

    def __contains__(self, name: object) -> bool:
        return name in self.FIELDS

    def __iter__(self) -> Iterator[str]:
        return iter(self.FIELDS)

    def keys(self) -> Sequence[str]:
        """The names that `get()` knows."""
        return self.FIELDS

    def __repr__(self) -> str:
        return f"EventFilterInput(type={self.type!r}, step={self.step!r}, broadcast={self.broadcast!r})"


class IEventFilter:
    """Base class of filters.

    `allow_event` may be sync or async and take `(user_type, user_id, event)` or also `data` (the envelope
    as a dictionary), by position, by keyword or as `*args, **kwargs`. It runs on the event loop: what reads
    the database is written async.

    Answers: true or None lets the event through, false blocks it; an Envelope (or a Decision with one, or
    the whole envelope as a dictionary) lets it through changed. An exception lets it through as it was, is
    logged and counted in `filters.failures`.
    """

    def allow_event(self, user_type: str, user_id: str, event: EventFilterInput) -> Any:
        """Decide on one event."""
        return True


class FilterFailures:
    """Counts what filters raised, per filter and in all, over the life of the process."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str) -> int:
        """Count a failure; return how many this filter has had."""
        with self._lock:
            self._counts[name] += 1
            return self._counts[name]

    @property
    def total(self) -> int:
        """Failures of all filters."""
        return self._counts.total()

    @property
    def by_filter(self) -> dict[str, int]:
        """Failures by the filter's dotted name."""
        return dict(self._counts)


failures = FilterFailures()

_NAMES = ("user_type", "user_id", "event", "data")


class _CallForm(NamedTuple):
    """How one filter wants its arguments: so many by position, so many in all."""

    positional: int
    total: int


def _call_form(ask: Callable[..., Any]) -> _CallForm:
    """Find the first form that the signature takes; the names decide before the order does."""
    try:
        signature = inspect.signature(ask)
    except (TypeError, ValueError):
        return _CallForm(positional=3, total=3)
    for positional in (0, 4, 3, 2, 1):
        for total in (4, 3):
            if positional > total:
                continue
            try:
                signature.bind(*_NAMES[:positional], **dict.fromkeys(_NAMES[positional:total]))
            except TypeError:
                continue
            return _CallForm(positional, total)
    return _CallForm(positional=0, total=3)


class Screen:
    """One filter, and how it is called."""

    def __init__(self, event_filter: Any) -> None:
        if inspect.isclass(event_filter):
            event_filter = event_filter()
        named = event_filter if inspect.isroutine(event_filter) else type(event_filter)
        self.name = f"{named.__module__}.{named.__qualname__}"
        self._ask: Callable[..., Any] = getattr(event_filter, "allow_event", event_filter)
        self._form = _call_form(self._ask)

    @property
    def wants_data(self) -> bool:
        """Whether it is handed the whole envelope as a dictionary too."""
        return self._form.total == 4

    def ask(self, user_type: str, user_id: str, event: EventFilterInput) -> Any:
        positional, total = self._form
        given = (user_type, user_id, event)
        values = (*given, msgspec.to_builtins(event.envelope)) if self.wants_data else given
        keywords = dict(zip(_NAMES[positional:total], values[positional:], strict=True))
        return self._ask(*values[:positional], **keywords)


class FilterChain:
    """Several filters in order: each sees what the ones before it made of the envelope."""

    def __init__(self, event_filters: Sequence[Any]) -> None:
        self._screens = [Screen(event_filter) for event_filter in event_filters]
        self._wants_data = any(screen.wants_data for screen in self._screens)

    def __len__(self) -> int:
        return len(self._screens)

    async def judge(self, envelope: Envelope, *, broadcast: bool) -> Envelope | None:
        """Return the envelope that may go, or None when a filter blocked it.

        An envelope that can't be encoded is EnvelopeInvalid here, before a filter could be blamed for it.
        """
        if self._wants_data:
            envelope.encode()
        user_type, user_id = envelope.service.user_type, envelope.service.user
        where = envelope.conversation
        for screen in self._screens:
            try:
                answer = screen.ask(user_type, user_id, EventFilterInput(envelope, broadcast))
                if inspect.isawaitable(answer):
                    answer = await answer
                verdict = _read(answer, envelope)
            except Exception:
                # Fail-open: a broken filter must not silence a turn.
                count = failures.add(screen.name)
                if count % LOGGED_EACH == 1:
                    logger.exception(
                        _FAILED, screen.name, envelope.type, where.session_id, where.turn_id, count
                    )
                continue
            if verdict is None:
                return None
            envelope = verdict
        return envelope


def _read(answer: Any, envelope: Envelope) -> Envelope | None:
    """Turn whatever a filter answered into the envelope that may go, or None."""
    if isinstance(answer, Decision):
        if not answer.allow:
            return None
        answer = answer.envelope
    if answer is None or answer is True:
        return envelope
    if isinstance(answer, Envelope):
        return _in_place(answer, envelope)
    if isinstance(answer, Mapping):
        return _in_place(msgspec.convert(dict(answer), Envelope), envelope)
    return envelope if answer else None


def _in_place(changed: Envelope, envelope: Envelope) -> Envelope:
    """Keep a changed envelope in its session and scope, and on the route of its own type.

    A filter may word what it likes; it cannot make another session, tenant or project hear it.
    """
    session_id = envelope.conversation.session_id
    service, conversation, route = changed.service, changed.conversation, changed.route
    if conversation.session_id != session_id:
        conversation = msgspec.structs.replace(conversation, session_id=session_id)
    if (service.tenant, service.project) != (envelope.service.tenant, envelope.service.project):
        service = msgspec.structs.replace(
            service, tenant=envelope.service.tenant, project=envelope.service.project
        )
    if changed.type != envelope.type and route == envelope.route:
        route = msgspec.UNSET
    kept = msgspec.structs.replace(changed, service=service, conversation=conversation, route=route)
    # What the filter put in must be sendable, or the filter has failed.
    kept.encode()
    return kept


@cache
def configured_filters() -> tuple[Any, ...]:
    """Return the filters of `COMM["EVENT_FILTERS"]`, made once per process."""
    found = [import_string(path) for path in comm_settings().EVENT_FILTERS]
    return tuple(item() if inspect.isclass(item) else item for item in found)


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "COMM":
        configured_filters.cache_clear()
