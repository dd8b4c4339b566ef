"""Positions in a session's log, and what reading a log or an archive returns."""

import re
from typing import Any, NamedTuple

_POSITION = re.compile(r"(\d{1,16})-(\d{1,16})", re.ASCII)


class Position(NamedTuple):
    """Where an envelope stands in its session's log; written `<epoch>-<seq>` on every wire.

    `epoch` is the log's creation time in milliseconds, `seq` counts from 1 within it, and `seq` 0
    stands before the first envelope. Positions compare as pairs, so a later log is a later position.
    """

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Read `<epoch>-<seq>`; anything else is a ValueError."""
        match = _POSITION.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a position such as 1772140445267-42")
        return cls(int(match[1]), int(match[2]))


class Taken(Exception):
    """The cause of a cancellation whose sender has sent: the layer took the message, at `position` if it numbers it."""

    def __init__(self, position: Position | None) -> None:
        super().__init__("the message was taken")
        self.position = position


class Entry(NamedTuple):
    """One kept message: its position, and the channel-layer message as it was sent."""

    position: Position
    message: dict[str, Any]


class LogSlice(NamedTuple):
    """A part of a log, read in one step.

    The log holds everything after `start` up to `tail`; `entries` are the oldest ones asked for.
    """

    start: Position
    tail: Position
    entries: list[Entry]

    def reaches(self, after: Position) -> bool:
        """Tell whether nothing between `after` and the first entry is missing."""
        return self.start.epoch == after.epoch and self.start.seq <= after.seq <= self.tail.seq
