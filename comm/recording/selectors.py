"""Selectors: which events a recording keeps or hands on, and how much of each."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from comm.filters import Decision, EventFilterInput, Screen

CRITERIA = ("type", "route", "socket_event", "route_key", "agent", "step", "status")
PLURALS = {
    "types": "type",
    "routes": "route",
    "socket_events": "socket_event",
    "route_keys": "route_key",
    "agents": "agent",
    "steps": "step",
    "statuses": "status",
}
KEYS = ("any", "include", "exclude", "privacy", "limits")
PRIVACY = ("include_data", "data_keys", "include_delta_text")

Criteria = dict[str, tuple[str, ...] | bool]


class Described(Protocol):
    """What a selector looks at: an event on its way, or one that was recorded."""

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field by its name."""


class Privacy(NamedTuple):
    """How much of an event is kept beside who, where and what kind."""

    include_data: bool = False
    data_keys: frozenset[str] = frozenset()
    include_delta_text: bool = False

    def joined(self, other: "Privacy") -> "Privacy":
        """Return what either of them keeps."""
        return Privacy(
            self.include_data or other.include_data,
            self.data_keys | other.data_keys,
            self.include_delta_text or other.include_delta_text,
        )


class Selector:
    """One selector, made of whatever its author wrote: None (everything), a type, several, a mapping, or code.

    A mapping has `include` and `exclude` with `types, routes, socket_events, agents, steps, statuses` (a value
    that ends in * matches by its beginning) and `broadcast`: an event must match each that is populated. `any`
    is a list of such mappings. `privacy` and `limits.max_events` go with a recording. Code is a synchronous
    callable or IEventFilter, asked as filters are: a callable means the events it answers with something true, a
    filter those that it would let through. Errors: ValueError names what is wrong with a mapping.
    """

    def __init__(self, given: Any = None) -> None:
        self.portable: dict[str, Any] | None = None
        self.privacy = Privacy()
        self.says_privacy = False
        self.max_events: int | None = None
        self._screen: Screen | None = None
        self._parts: list[Selector] = []
        self._include: Criteria = {}
        self._exclude: Criteria = {}
        if given is None:
            self.portable = {}
        elif isinstance(given, str):
            self._read({"include": {"types": [given]}})
        elif isinstance(given, Mapping):
            self._read(given)
        elif isinstance(given, Sequence):
            self._read({"include": {"types": list(given)}})
        elif callable(given) or inspect.isroutine(getattr(given, "allow_event", None)):
            self._screen = Screen(given)
            self._is_filter = hasattr(given, "allow_event")
        else:
            raise ValueError(
                f"a selector is a type, a list of types, a mapping or a filter, not {given!r:.80}"
            )

    def matches(self, user_type: str, user_id: str, event: Any) -> bool:
        """Tell whether an event is meant. Errors: whatever a selector in code raises."""
        if self._screen is not None:
            return self._said_yes(self._screen.ask(user_type, user_id, event))
        if self._parts and not any(part.matches(user_type, user_id, event) for part in self._parts):
            return False
        return _meets(event, self._include) and not (self._exclude and _meets(event, self._exclude))

    def _said_yes(self, answer: Any) -> bool:
        if inspect.iscoroutine(answer):
            answer.close()
            raise TypeError("a selector in code must be synchronous")
        if isinstance(answer, Decision):
            return answer.allow
        return self._is_filter if answer is None else bool(answer)

    def _read(self, given: Mapping[str, Any]) -> None:
        _known(given, KEYS, "selector")
        self._include = _criteria(given.get("include"), "include")
        self._exclude = _criteria(given.get("exclude"), "exclude")
        parts = given.get("any") or []
        if not isinstance(parts, Sequence) or isinstance(parts, str):
            raise ValueError("any: must be a list of selectors")
        self._parts = [Selector(part) for part in parts]
        self.privacy = _privacy(given.get("privacy"))
        self.says_privacy = given.get("privacy") is not None
        for part in self._parts:
            self.privacy = self.privacy.joined(part.privacy)
            self.says_privacy |= part.says_privacy
        limits = _mapping(given.get("limits"), "limits")
        _known(limits, ("max_events",), "limits")
        self.max_events = event_limit(limits.get("max_events"), "limits.max_events")
        if all(part.portable is not None for part in self._parts):
            self.portable = _plain({key: given[key] for key in KEYS if given.get(key)})


def _plain(given: dict[str, Any]) -> dict[str, Any]:
    """Return a copy in JSON's own types, which its author cannot change any more."""
    try:
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(given))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a selector must be writable as JSON ({error})") from None
    return plain


def event_limit(given: Any, field: str) -> int | None:
    """Return a number of events above 0, or None; anything else is a ValueError."""
    if given is None or (isinstance(given, int) and not isinstance(given, bool) and given > 0):
        return given
    raise ValueError(f"{field}: must be a whole number above 0")


def _meets(event: Described, criteria: Criteria) -> bool:
    return all(_met(event.get(name), wanted) for name, wanted in criteria.items())


def _met(value: Any, wanted: tuple[str, ...] | bool) -> bool:
    if isinstance(wanted, bool):
        return bool(value) is wanted
    text = "" if value is None else str(value)
    return any(text.startswith(name[:-1]) if name.endswith("*") else text == name for name in wanted)


def _criteria(given: Any, field: str) -> Criteria:
    mapping = _mapping(given, field)
    _known(mapping, (*PLURALS, *CRITERIA, "broadcast"), field)
    criteria: Criteria = {}
    for name, value in mapping.items():
        if name == "broadcast":
            if value is not None:
                criteria[name] = _flag(value, f"{field}.broadcast")
            continue
        values = [value] if isinstance(value, str) else value
        if values is None or values == []:
            continue
        if not isinstance(values, Sequence) or not all(isinstance(item, str) for item in values):
            raise ValueError(f"{field}.{name}: must be a string or a list of strings")
        criteria[PLURALS.get(name, name)] = tuple(values)
    return criteria


def _privacy(given: Any) -> Privacy:
    mapping = _mapping(given, "privacy")
    _known(mapping, PRIVACY, "privacy")
    keys = mapping.get("data_keys") or []
    if isinstance(keys, str) or not all(isinstance(key, str) for key in keys):
        raise ValueError("privacy.data_keys: must be a list of strings")
    return Privacy(
        _flag(mapping.get("include_data", False), "privacy.include_data"),
        frozenset(keys),
        _flag(mapping.get("include_delta_text", False), "privacy.include_delta_text"),
    )


def _flag(value: Any, field: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{field}: must be true or false")
    return value


def _mapping(given: Any, field: str) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{field}: must be a mapping")
    return given


def _known(mapping: Mapping[str, Any], names: Sequence[str], field: str) -> None:
    unknown = [str(name) for name in mapping if name not in names]
    if unknown:
        raise ValueError(f"{field}: has no {', '.join(unknown)}; there are {', '.join(names)}")


Filter = Callable[..., Any] | str | Sequence[str] | Mapping[str, Any] | None
"""What a caller may write where a selector is wanted."""

__all__ = ["Described", "EventFilterInput", "Filter", "Privacy", "Selector"]
