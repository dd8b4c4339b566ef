"""Ranges of envelopes that were delivered but could not be recorded, until a row says so."""

from collections.abc import Iterable
from dataclasses import dataclass

from comm.history import Position
from comm.sinks import Published

FULL = "the recorder's buffer was full"


@dataclass(slots=True)
class Gap:
    """Consecutive envelopes of one session that are missing; positions are None for project events.

    A gap of everybody has no session id, and times instead of positions. One with a `key` is noted once, however
    often it is written.
    """

    session_id: str
    first: Position | str | None
    last: Position | str | None
    events: int
    reason: str
    key: str | None = None

    @classmethod
    def of(cls, published: Published, reason: str, key: str | None = None) -> "Gap":
        """The gap that one envelope leaves."""
        return cls(published.session_id, published.position, published.position, 1, reason, key)


class Gaps:
    """The gaps that no row tells of yet: at most one open one per session, and those that ended."""

    def __init__(self) -> None:
        self._open: dict[str, Gap] = {}
        self._ended: list[Gap] = []

    def __bool__(self) -> bool:
        return bool(self._open or self._ended)

    def note(self, published: Published) -> None:
        """Count an envelope that found the buffer full."""
        gap = self._open.get(published.session_id)
        if gap is None:
            self._open[published.session_id] = Gap.of(published, FULL)
        else:
            gap.last = published.position or gap.last
            gap.first = gap.first or published.position
            gap.events += 1

    def end(self, session_id: str) -> None:
        """Say that an envelope of this session was accepted: what is missing later is another gap."""
        gap = self._open.pop(session_id, None)
        if gap is not None:
            self._ended.append(gap)

    def take(self) -> list[Gap]:
        """Hand over all gaps; what is missing from now on belongs to new ones."""
        taken = [*self._ended, *self._open.values()]
        self._ended, self._open = [], {}
        return taken

    def give_back(self, gaps: Iterable[Gap]) -> None:
        """Take gaps back that could not be written; one that went on meanwhile stays one."""
        for gap in gaps:
            later = self._open.get(gap.session_id)
            if later is None:
                self._open[gap.session_id] = gap
                continue
            later.first = gap.first or later.first
            later.events += gap.events
