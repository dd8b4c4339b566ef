"""Recording what a communicator has said: selected events, kept within bounds, handed to a sink on request."""

import inspect
import json
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, TypedDict

import msgspec

from .envelope import Envelope, stamp
from .filters import EventFilterInput
from .history import Position
from .selectors import Filter, Privacy, Selector

logger = logging.getLogger(__name__)

MAX_EVENTS = 1000
"""Events that a recording keeps where nobody said how many."""
MAX_BYTES = 4 * 1024 * 1024
"""Of all events of a recording, as JSON: a turn's memory is bounded whatever it streams."""
DATA_BYTES = 64 * 1024
"""Of one event's data; more is left out, and said to be."""
FIELDS = ("type", "route", "socket_event", "route_key", "agent", "step", "status", "broadcast")

Item = dict[str, Any]
EventSink = Callable[..., Awaitable[Mapping[str, Any] | None] | Mapping[str, Any] | None]
"""Called with the batch, and by keyword `comm` and `filter`; may say how many it took: `{"sent": n}`, or `accepted`."""


class SendResult(TypedDict, total=False):
    """What became of a batch: `disabled` without a sink, `error` when the sink raised; it was kept then."""

    ok: bool
    sent: int
    skipped: int
    disabled: bool
    sink_result: Any
    error: str


class _Rule:
    """One `record()`: what to keep, and whose wish it was."""

    def __init__(self, selector: Selector, scope: Any) -> None:
        self.selector = selector
        self.scope = scope


class RecordedInput:
    """A recorded event as selectors and filters see it; it has no envelope any more."""

    def __init__(self, item: Item) -> None:
        event = item.get("event") or {}
        self._fields = {name: item.get(name, event.get(name)) for name in FIELDS}

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field by its name."""
        value = self._fields.get(name)
        return default if value is None else value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._fields:
            raise AttributeError(name)
        return self._fields[name]


class Recording:
    """The recording of one communicator: its rules, the events that they kept, and the sink.

    It sees what was published, after the filters. It keeps kinds, places, steps and numbers; data and text only where
    a rule's privacy says so. When it is full the oldest event goes, and is counted in `dropped`.
    """

    def __init__(self) -> None:
        self._rules: list[_Rule] = []
        self._max_events = MAX_EVENTS
        self._items: deque[tuple[Item, int]] = deque()
        self._bytes = 0
        self.dropped = 0
        self.sink: EventSink | None = None

    # --- rules ----------------------------------------------------------------------------------------

    def record(self, filter: Filter, scope: Any, mode: str, max_events: int | None) -> None:
        """Add a rule, or let it replace all. Errors: ValueError for what is no selector, scope, mode or number."""
        if mode not in ("append", "replace"):
            raise ValueError(f"mode: is {mode!r}; expected append or replace")
        selector = Selector(filter)
        limit = selector.max_events if max_events is None else max_events
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ValueError("max_events: must be a whole number above 0")
        rule = _Rule(selector, _portable(scope))
        if mode == "replace":
            self._rules.clear()
            self.clear(None, "", "")
            self.dropped = 0
            self._max_events = MAX_EVENTS
        self._rules.append(rule)
        if limit is not None:
            self._max_events = limit
            self._trim()

    def stop(self) -> None:
        """Keep nothing more; what was kept stays."""
        self._rules.clear()

    def rules(self) -> tuple[list[_Rule], int]:
        """Return the present rules and bound, for `restore`."""
        return list(self._rules), self._max_events

    def restore(self, rules: tuple[list[_Rule], int]) -> None:
        """Go back to rules of before."""
        self._rules, self._max_events = list(rules[0]), rules[1]

    def config(self) -> dict[str, Any]:
        """Return the configuration as plain values: rules in code are not among them."""
        scopes = [
            {"scope": rule.scope, "filter": rule.selector.portable}
            for rule in self._rules
            if rule.selector.portable is not None
        ]
        filters = [scope["filter"] for scope in scopes]
        return {
            "enabled": bool(self._rules),
            "filter": filters[0] if len(filters) == 1 else {"any": filters} if filters else None,
            "scopes": scopes,
            "max_events": self._max_events,
            "recorded": len(self._items),
            "dropped": self.dropped,
        }

    # --- events ---------------------------------------------------------------------------------------

    def saw(self, envelope: Envelope, target_sid: str | None, position: Position | None) -> None:
        """Keep an event that was published, where a rule wants it. Raises nothing: a turn must not fail for it."""
        if not self._rules:
            return
        event = EventFilterInput(envelope, target_sid is None)
        user_type, user_id = envelope.service.user_type, envelope.service.user
        try:
            wanted = [rule for rule in self._rules if rule.selector.matches(user_type, user_id, event)]
            if wanted:
                self._keep(_item(envelope, event, target_sid, position, wanted))
        except Exception:
            # A selector in code may fail in any way; what it would have kept is missing from the recording alone.
            logger.exception("%s could not be recorded", envelope.type)
            self.dropped += 1

    def merge(self, items: Sequence[Item]) -> int:
        """Add events that were recorded elsewhere, once each; return how many were new."""
        known = {item["record_id"] for item, _ in self._items}
        new = [dict(item) for item in items if item.get("record_id") and item["record_id"] not in known]
        for item in new:
            self._keep(item)
        return len(new)

    def export(self, filter: Filter, user_type: str, user_id: str) -> list[Item]:
        """Return copies of the kept events that a selector means, oldest first."""
        selector = Selector(filter)
        return [
            json.loads(json.dumps(item))
            for item, _ in self._items
            if selector.matches(user_type, user_id, RecordedInput(item))
        ]

    def clear(self, filter: Filter, user_type: str, user_id: str) -> int:
        """Forget the events that a selector means; return how many."""
        selector = Selector(filter)
        kept = [
            (item, size)
            for item, size in self._items
            if not selector.matches(user_type, user_id, RecordedInput(item))
        ]
        removed = len(self._items) - len(kept)
        self._replace(kept)
        return removed

    def remove(self, record_ids: set[str]) -> None:
        """Forget events by their ids."""
        self._replace([(item, size) for item, size in self._items if item["record_id"] not in record_ids])

    async def send(
        self, batch: list[Item], sink: EventSink | None, *, comm: Any, filter: Filter, clear_on_success: bool
    ) -> SendResult:
        """Hand a batch to a sink; what it took whole is forgotten. A sink that raises costs nobody anything."""
        sink = sink or self.sink
        if sink is None:
            return {"ok": True, "sent": 0, "skipped": len(batch), "disabled": True, "sink_result": None}
        if not batch:
            return {"ok": True, "sent": 0, "skipped": 0, "disabled": False, "sink_result": None}
        try:
            answer = sink(batch, comm=comm, filter=filter)
            if inspect.isawaitable(answer):
                answer = await answer
        except Exception as error:
            # A sink's failure is no failure of the turn; the events stay for the next try.
            logger.exception("The event sink failed on %d events", len(batch))
            return {"ok": False, "sent": 0, "skipped": len(batch), "disabled": False, "error": str(error)}
        sent = _count(answer, len(batch))
        if clear_on_success and sent >= len(batch):
            self.remove({item["record_id"] for item in batch})
        return {
            "ok": True, "sent": sent, "skipped": len(batch) - sent, "disabled": False, "sink_result": answer,
        }  # fmt: skip

    def _keep(self, item: Item) -> None:
        size = len(json.dumps(item))
        self._items.append((item, size))
        self._bytes += size
        self._trim()

    def _trim(self) -> None:
        while self._items and (len(self._items) > self._max_events or self._bytes > MAX_BYTES):
            self._bytes -= self._items.popleft()[1]
            self.dropped += 1

    def _replace(self, items: list[tuple[Item, int]]) -> None:
        self._items = deque(items)
        self._bytes = sum(size for _, size in items)


class RecordingScope(AbstractContextManager["RecordingScope"], AbstractAsyncContextManager["RecordingScope"]):
    """A recording for the length of a block; rules and sink of before come back at its end, the events stay.

    With `async with` and `send_on_exit` the block's events go to the sink at its end, and `result` says what became
    of them.
    """

    def __init__(
        self,
        recording: Recording,
        begin: Callable[[], None],
        send: Callable[[], Awaitable[SendResult]] | None,
        sink: EventSink | None,
    ) -> None:
        self._recording = recording
        self._begin = begin
        self._send = send
        self._sink = sink
        self.result: SendResult | None = None

    def __enter__(self) -> "RecordingScope":
        self._before = self._recording.rules()
        self._sink_before = self._recording.sink
        self._begin()
        if self._sink is not None:
            self._recording.sink = self._sink
        return self

    def __exit__(self, *exc: object) -> None:
        self._recording.restore(self._before)
        self._recording.sink = self._sink_before

    async def __aenter__(self) -> "RecordingScope":
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        try:
            if self._send is not None:
                self.result = await self._send()
        finally:
            self.__exit__()


# --- one event ----------------------------------------------------------------------------------------


def _item(
    envelope: Envelope,
    event: EventFilterInput,
    target_sid: str | None,
    position: Position | None,
    rules: list[_Rule],
) -> Item:
    privacy = Privacy()
    for rule in rules:
        privacy = privacy.joined(rule.selector.privacy)
    item: Item = {
        "record_id": f"commrec_{uuid.uuid4().hex}",
        "recorded_at_ms": stamp()[1],
        "timestamp": envelope.timestamp,
        "position": None if position is None else str(position),
        "target_sid": target_sid,
        "socket_event": event.socket_event,
        "broadcast": event.broadcast,
        "type": envelope.type,
        "route": event.route,
        "route_key": event.route_key,
        "service": msgspec.to_builtins(envelope.service),
        "conversation": msgspec.to_builtins(envelope.conversation),
        "event": {
            name: getattr(envelope.event, name) for name in ("agent", "step", "status", "title")
        },
        "recording": {"scopes": [rule.scope for rule in rules if rule.scope is not None]},
        "metrics": _numbers(envelope.data),
    }  # fmt: skip
    data, redacted, cut = _data(envelope, privacy)
    item["data"] = data
    has_text = False
    if not isinstance(envelope.delta, msgspec.UnsetType):
        delta = envelope.delta
        has_text = privacy.include_delta_text
        item["delta"] = {"marker": delta.marker, "index": delta.index, "completed": delta.completed}
        item["delta"] |= {"text": delta.text} if has_text else {"text_length": len(delta.text)}
    item["privacy"] = {"contains_content": bool(data) or has_text, "data_redacted": redacted, "data_cut": cut}
    return item


def _data(envelope: Envelope, privacy: Privacy) -> tuple[dict[str, Any], bool, bool]:
    """Return what is kept of an event's data, whether something was held back, and whether it was too much."""
    usage = envelope.type == "accounting.usage"
    kept = {
        name: value
        for name, value in envelope.data.items()
        if privacy.include_data
        or name in privacy.data_keys
        or (usage and name in ("breakdown", "cost_total_usd"))
    }
    encoded = msgspec.json.encode(kept)
    if len(encoded) > DATA_BYTES:
        return {}, True, True
    plain: dict[str, Any] = msgspec.json.decode(encoded)
    return plain, len(kept) < len(envelope.data), False


def _numbers(data: Mapping[str, Any]) -> dict[str, int | float]:
    return {
        name: value
        for name, value in data.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _portable(scope: Any) -> Any:
    try:
        return None if scope is None else json.loads(json.dumps(scope, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"scope: cannot be written as JSON ({error})") from None


def _count(answer: Any, whole: int) -> int:
    if isinstance(answer, Mapping):
        for name in ("sent", "accepted"):
            if isinstance(answer.get(name), int):
                return min(int(answer[name]), whole)
    return whole
