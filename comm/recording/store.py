"""The recording of one communicator: the events that were kept for its rules, and their bounds."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec

from comm.envelope import Envelope
from comm.filters import EventFilterInput
from comm.history import Position

from .items import Item, RecordedInput, item_of, narrowed
from .rules import ALL, MAX_EVENTS, Asker, Rule, View
from .selectors import Privacy, Selector

logger = logging.getLogger(__name__)

MAX_BYTES = 4 * 1024 * 1024
"""Of all events of a communicator's recording, as JSON: a turn's memory is bounded whatever it streams."""
MAX_RULES = 100
"""Rules at work at once: each is asked about each event."""
ITEM_BYTES = 1024 * 1024
"""Of one event that comes from elsewhere; ours are smaller by what they may hold."""


class _Kept(NamedTuple):
    """An event as JSON (its length is its weight), its place in the order of delivery, and whose it is."""

    body: bytes
    place: tuple[Position, int]
    rules: set[Rule]


class Recording:
    """The rules of one communicator and the events kept for them; any thread may ask.

    It sees what was published, after the filters. Each rule keeps its newest events, up to its own limit; an event
    that several want is kept once. Past MAX_BYTES the oldest of all go. What went is counted in `dropped`.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._rules: list[Rule] = []
        self._merged = Rule(None)
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0
        self._arrivals = 0
        self._last_position = Position(0, 0)
        self._taken: set[str] = set()
        self._dropped = 0
        self._reported = 0

    # --- rules ----------------------------------------------------------------------------------------

    @property
    def rules(self) -> list[Rule]:
        """The rules at work."""
        with self._lock:
            return list(self._rules)

    def begin(self, rule: Rule) -> None:
        """Put a rule to work. Errors: ValueError when there are too many."""
        with self._lock:
            if len(self._rules) >= MAX_RULES:
                raise ValueError(f"more than {MAX_RULES} recordings at once; stop those that are over")
            self._rules.append(rule)

    def begin_once(self, rule: Rule) -> Rule:
        """Put a rule to work where none says the same; return the one that is at work."""
        with self._lock:
            twin = next((one for one in self._rules if one.is_twin_of(rule)), None)
            if twin is None:
                self.begin(rule)
                return rule
            if rule.says_limit:
                twin.max_events = rule.max_events
                while len(twin.record_ids) > twin.max_events:
                    self._overflow(twin)
            return twin

    def stop(self, rules: Iterable[Rule]) -> None:
        """Keep nothing more for these rules; what was kept stays."""
        with self._lock:
            over = set(rules)
            self._rules = [rule for rule in self._rules if rule not in over]

    def begin_anew(self) -> list[Rule]:
        """Stop every rule and forget every event; return the rules."""
        with self._lock:
            rules, self._rules = self._rules, []
            self.forget(list(self._kept))
            self._dropped = self._reported = 0
            return rules

    def config(self) -> dict[str, Any]:
        """Return what is recorded as plain values: rules in code are not among the scopes."""
        with self._lock:
            portable = [rule for rule in self._rules if rule.selector.portable is not None]
            filters = [rule.selector.portable for rule in portable]
            return {
                "enabled": bool(self._rules),
                "filter": filters[0] if len(filters) == 1 else {"any": filters} if filters else None,
                "scopes": [rule.described() for rule in portable],
                "max_events": max((rule.max_events for rule in self._rules), default=MAX_EVENTS),
                "max_bytes": MAX_BYTES,
                "recorded": len(self._kept),
                "bytes": self._bytes,
                "dropped": self._dropped,
                "truncated": self._dropped > 0,
            }

    # --- keeping --------------------------------------------------------------------------------------

    def saw(self, envelope: Envelope, target_sid: str | None, position: Position | None) -> bool:
        """Keep an event that was published, where a rule wants it; tell whether one did. Raises nothing."""
        rules = self.rules
        if not rules:
            return False
        asker = Asker(envelope.service.user_type, envelope.service.user)
        event = EventFilterInput(envelope, target_sid is None)
        answers = {rule: rule.wants(asker, event) for rule in rules}
        wanted = [rule for rule, answer in answers.items() if answer]
        failed = [rule for rule, answer in answers.items() if answer is None]
        try:
            if wanted:
                self._keep(_item(envelope, target_sid, position, wanted), position, wanted)
        except Exception:
            # The recording looks on: what it cannot write down must not end the turn that said it.
            logger.exception("%s could not be recorded", envelope.type)
            failed += wanted
        self._lose(failed)
        return bool(wanted)

    def merge(self, items: Sequence[Any]) -> int:
        """Add items that another communicator has exported, once each; return how many were new.

        Errors: ValueError names the first that is none; nothing is added then.
        """
        for number, item in enumerate(items):
            _check(item, number)
        new = 0
        with self._lock:
            for item in items:
                if item["record_id"] not in self._kept:
                    self._keep(item, None, [self._merged])
                    new += 1
        return new

    def _keep(self, item: Item, position: Position | None, rules: list[Rule]) -> None:
        body = msgspec.json.encode(item)
        record_id = item["record_id"]
        with self._lock:
            self._arrivals += 1
            # What has no position of its own (a project event) follows what was there before it.
            self._last_position = position or self._last_position
            self._kept[record_id] = _Kept(body, (self._last_position, self._arrivals), set(rules))
            self._bytes += len(body)
            for rule in rules:
                rule.record_ids[record_id] = None
                if len(rule.record_ids) > rule.max_events:
                    self._overflow(rule)
            while self._bytes > MAX_BYTES:
                oldest = next(iter(self._kept))
                self._lose(list(self._kept[oldest].rules))
                self._release(oldest, ALL)

    def _overflow(self, rule: Rule) -> None:
        """Take the oldest event of a full rule from it; it is lost when no other rule wants it."""
        oldest = next(iter(rule.record_ids))
        self._release(oldest, View(rule))
        rule.dropped += 1
        self._dropped += oldest not in self._kept

    def _lose(self, rules: list[Rule]) -> None:
        """Count one event that is lost to these rules."""
        with self._lock:
            self._dropped += bool(rules)
            for rule in rules:
                rule.dropped += 1

    # --- handing out ----------------------------------------------------------------------------------

    def export(self, selector: Selector, asker: Asker, view: View = ALL) -> list[Item]:
        """Return copies of the kept events that a selector means, in the order of delivery.

        Those of one rule show as much as that rule has asked for. Where events were lost since a batch was last
        handed over, the first says how many: `recording.dropped_before`.
        """
        items = self._meant(selector, asker, view)
        privacies = [selector.privacy] if selector.says_privacy else []
        if view.rule is not None:
            privacies.append(view.rule.selector.privacy)
        for privacy in privacies:
            items = [narrowed(item, privacy) for item in items]
        with self._lock:
            lost, reported = self._losses(view)
        if items and lost > reported:
            items[0]["recording"]["dropped_before"] = lost - reported
        return items

    def clear(self, selector: Selector, asker: Asker, view: View = ALL) -> int:
        """Forget the events that a selector means; return how many."""
        meant = [item["record_id"] for item in self._meant(selector, asker, view)]
        self.forget(meant, view)
        return len(meant)

    def forget(self, record_ids: Iterable[str], view: View = ALL) -> None:
        """Forget events by their ids; rules that the view does not cover keep theirs."""
        with self._lock:
            for record_id in record_ids:
                self._release(record_id, view)

    def take(self, items: list[Item]) -> list[Item]:
        """Return those that nobody else is handing over at this moment, and note that they are."""
        with self._lock:
            free = [item for item in items if item["record_id"] not in self._taken]
            self._taken.update(item["record_id"] for item in free)
            return free

    def give_back(self, items: list[Item]) -> None:
        """Note that items that were taken are not being handed over any more."""
        with self._lock:
            self._taken.difference_update(item["record_id"] for item in items)

    def hand_over(self, items: list[Item], view: View, *, forgotten_by: View) -> None:
        """Forget items of a view that were handed over, and what was lost before them: their taker knows."""
        lost = items[0]["recording"].get("dropped_before", 0)
        with self._lock:
            if view.rule is None:
                self._reported += lost
            else:
                view.rule.reported += lost
            self.forget([item["record_id"] for item in items], forgotten_by)

    def _meant(self, selector: Selector, asker: Asker, view: View) -> list[Item]:
        with self._lock:
            kept = [one for one in self._kept.values() if any(map(view.covers, one.rules))]
        items = [msgspec.json.decode(one.body) for one in sorted(kept, key=lambda one: one.place)]
        return [item for item in items if selector.matches(*asker, RecordedInput(item))]

    def _losses(self, view: View) -> tuple[int, int]:
        if view.rule is None:
            return self._dropped, self._reported
        return view.rule.dropped, view.rule.reported

    def _release(self, record_id: str, view: View) -> None:
        kept = self._kept.get(record_id)
        if kept is None:
            return
        for rule in [rule for rule in kept.rules if view.covers(rule)]:
            kept.rules.discard(rule)
            del rule.record_ids[record_id]
        if not kept.rules:
            del self._kept[record_id]
            self._bytes -= len(kept.body)


def _item(envelope: Envelope, target_sid: str | None, position: Position | None, rules: list[Rule]) -> Item:
    privacy = Privacy()
    for rule in rules:
        privacy = privacy.joined(rule.selector.privacy)
    scopes = [rule.scope for rule in rules if rule.scope is not None]
    return item_of(envelope, target_sid, position, privacy, scopes)


class _Shape(msgspec.Struct):
    """What an item from elsewhere must have to be handled as one of ours."""

    record_id: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    type: str
    conversation: dict[str, Any]
    event: dict[str, Any]
    recording: dict[str, Any]
    data: dict[str, Any]
    privacy: dict[str, bool]
    delta: dict[str, Any] = {}


def _check(item: Any, number: int) -> None:
    """Raise ValueError for what cannot be a recorded event."""
    try:
        msgspec.convert(item, _Shape)
        size = len(msgspec.json.encode(item))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"items[{number}]: is no recorded event ({error})") from None
    if size > ITEM_BYTES:
        raise ValueError(f"items[{number}]: has more than {ITEM_BYTES:,} bytes as JSON")
