"""What a recording was asked for: one rule for each `record()`, and whose events a caller means."""

import json
import logging
from collections import OrderedDict
from typing import Any, NamedTuple

import msgspec

from comm.filters import LOGGED_EACH

from .selectors import Filter, Selector, event_limit

logger = logging.getLogger(__name__)

MAX_EVENTS = 1000
"""Events that one rule keeps where nobody said how many."""
SCOPE_BYTES = 4096
"""Of a scope as JSON; it stands with each event that it wanted."""


class Asker(NamedTuple):
    """For whom a selector in code is asked."""

    user_type: str
    user_id: str


class Rule:
    """One `record()`: what to keep and for whom, and the ids of the events kept for it, oldest first.

    `private` says that its events go to a sink of its own. Errors: ValueError for what is no selector, scope or
    number of events.
    """

    def __init__(
        self, filter: Filter, scope: Any = None, max_events: int | None = None, *, private: bool = False
    ) -> None:
        self.selector = Selector(filter)
        self.scope = _plain(scope)
        limit = event_limit(max_events, "max_events")
        self.max_events = limit or self.selector.max_events or MAX_EVENTS
        self.says_limit = bool(limit or self.selector.max_events)
        self.private = private
        self.record_ids: OrderedDict[str, None] = OrderedDict()
        self.dropped = 0
        self.reported = 0
        self._failures = 0

    def wants(self, asker: Asker, event: Any) -> bool | None:
        """Tell whether an event is to be kept; None when a selector in code failed on it."""
        try:
            return self.selector.matches(*asker, event)
        except Exception:
            # A selector in code may fail in any way; the turn goes on, and the recording says what it lacks.
            self._failures += 1
            if self._failures % LOGGED_EACH == 1:
                logger.exception("A recording's selector failed (failure %d)", self._failures)
            return None

    def is_twin_of(self, other: "Rule") -> bool:
        """Tell whether another rule says the same; rules in code never do."""
        portable = self.selector.portable
        return portable is not None and (portable, self.scope) == (other.selector.portable, other.scope)

    def described(self) -> dict[str, Any]:
        """Return the rule as plain values."""
        return {
            "scope": self.scope,
            "filter": self.selector.portable,
            "max_events": self.max_events,
            "recorded": len(self.record_ids),
            "dropped": self.dropped,
        }


class View(NamedTuple):
    """Whose events are meant: those of one rule, those that no private rule has for itself, or all."""

    rule: Rule | None = None
    shared: bool = False

    def covers(self, rule: Rule) -> bool:
        """Tell whether this rule's events are among them."""
        if self.rule is not None:
            return rule is self.rule
        return not (self.shared and rule.private)


ALL = View()
SHARED = View(shared=True)


def _plain(scope: Any) -> Any:
    try:
        plain = json.loads(json.dumps(scope, allow_nan=False))
        size = len(msgspec.json.encode(plain))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"scope: cannot be written as JSON ({error})") from None
    if size > SCOPE_BYTES:
        raise ValueError(f"scope: has more than {SCOPE_BYTES:,} bytes as JSON")
    return plain
