"""One recorded event: what is kept of an envelope, and the forms in which it is handed on."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from comm.envelope import Envelope, stamp
from comm.filters import EventFilterInput
from comm.history import Position

from .selectors import Privacy

DATA_BYTES = 64 * 1024
"""Of one event's data, as JSON; more is left out, and said to be."""
TEXT_CHARACTERS = 64 * 1024
"""Of one delta's text; the rest is cut off, and said to be."""
LABEL_CHARACTERS = 500
"""Of an agent, a step, a status or a title: a line, not a text."""
METRICS = 50
"""Numbers of one event's data."""
USAGE_KEYS = ("breakdown", "cost_total_usd", "agent_costs", "service_type", "provider", "model_or_service")
"""Data of `accounting.usage` that is kept without being asked for: it is about the turn, not its content."""

Item = dict[str, Any]


def item_of(
    envelope: Envelope,
    target_sid: str | None,
    position: Position | None,
    privacy: Privacy,
    scopes: Sequence[Any],
) -> Item:
    """Return what is kept of an envelope that was published: kinds, places, steps, numbers.

    Data and text are kept as far as `privacy` says.
    """
    event = EventFilterInput(envelope, target_sid is None)
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
            name: str(getattr(envelope.event, name) or "")[:LABEL_CHARACTERS]
            for name in ("agent", "step", "status", "title")
        },
        "recording": {"scopes": list(scopes)},
        "metrics": _numbers(envelope.data),
        **_kept_data(envelope, privacy),
    }
    if not isinstance(envelope.delta, msgspec.UnsetType):
        delta = envelope.delta
        item["delta"] = {"marker": delta.marker, "index": delta.index, "completed": delta.completed}
        item["delta"]["text_length"] = len(delta.text)
        if privacy.include_delta_text:
            item["delta"]["text"] = delta.text[:TEXT_CHARACTERS]
            item["privacy"]["text_cut"] = len(delta.text) > TEXT_CHARACTERS
    _note_content(item)
    return item


def narrowed(item: Item, privacy: Privacy) -> Item:
    """Take out of an item what one recording has not asked for, though another has; the item is changed."""
    if not privacy.include_data:
        kept = {name: value for name, value in item["data"].items() if _is_open(name, item["type"], privacy)}
        if len(kept) < len(item["data"]):
            item["privacy"]["data_redacted"] = True
        item["data"] = kept
    if not privacy.include_delta_text and "delta" in item:
        item["delta"].pop("text", None)
        item["privacy"].pop("text_cut", None)
    _note_content(item)
    return item


def message_of(item: Item) -> dict[str, Any]:
    """Return an item as the relay message that carried it, with as much of its envelope as was kept.

    `{target_sid, session_id, event, data, timestamp, position}`: `event` is the route, `data` the envelope.
    """
    names = ("type", "timestamp", "service", "conversation", "event", "data", "delta")
    return {
        "target_sid": item.get("target_sid"),
        "session_id": (item.get("conversation") or {}).get("session_id", ""),
        "event": item.get("socket_event", ""),
        "data": {name: item[name] for name in names if name in item},
        "timestamp": item.get("timestamp", ""),
        "position": item.get("position"),
    }


class RecordedInput:
    """A recorded event as selectors and filters see it: what was kept stands for its envelope."""

    FIELDS = tuple(name for name in EventFilterInput.FIELDS if name != "envelope")

    def __init__(self, item: Item) -> None:
        self._item = item

    @property
    def envelope(self) -> dict[str, Any]:
        """As much of the envelope as was kept, as a dictionary."""
        envelope: dict[str, Any] = message_of(self._item)["data"]
        return envelope

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field by its name."""
        if name not in self.FIELDS:
            return default
        for place in (self._item, self._item.get("event"), self._item.get("delta")):
            if isinstance(place, Mapping) and place.get(name) is not None:
                return place[name]
        return default

    def __getattr__(self, name: str) -> Any:
        if name not in self.FIELDS:
            raise AttributeError(name)
        return self.get(name)


def _kept_data(envelope: Envelope, privacy: Privacy) -> dict[str, Any]:
    kept = {name: value for name, value in envelope.data.items() if _is_open(name, envelope.type, privacy)}
    encoded = msgspec.json.encode(kept)
    cut = len(encoded) > DATA_BYTES
    data = {} if cut else msgspec.json.decode(encoded)
    redacted = len(data) < len(envelope.data)
    return {"data": data, "privacy": {"data_redacted": redacted, "data_cut": cut}}


def _is_open(name: str, type: str, privacy: Privacy) -> bool:
    usage = type == "accounting.usage" and name in USAGE_KEYS
    return usage or privacy.include_data or name in privacy.data_keys


def _numbers(data: Mapping[str, Any]) -> dict[str, int | float]:
    numbers: dict[str, int | float] = {}
    for name, value in data.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and len(numbers) < METRICS:
            numbers[str(name)] = value
    return numbers


def _note_content(item: Item) -> None:
    item["privacy"]["contains_content"] = bool(item["data"]) or "text" in item.get("delta", {})
