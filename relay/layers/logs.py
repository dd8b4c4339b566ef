"""The bounded logs behind the groups of the memory layer: their positions, entries, bounds and end."""

import time
from collections import OrderedDict, deque
from collections.abc import Container
from itertools import islice
from sys import getsizeof

from comm.history import Entry, LogSlice, Position

from .base import Message

ENTRY_BYTES = 480
"""What keeping an entry costs beside its contents (measured): the dict, the position, the deque's slot."""

SWEPT_AT_ONCE = 256
"""Idle logs looked at in one sweep, some 100 µs; more of them wait for the next one."""


_NO_ENTRIES: deque[tuple[Position, Message, int, float]] = deque(maxlen=0)


class GroupLog:
    """The log of one group; its counter and its entries live and die together."""

    __slots__ = ("entries", "epoch", "kept_bytes", "seq", "used_at")

    def __init__(self, epoch: int, now: float) -> None:
        self.epoch = epoch
        self.seq = 0
        # Position, message, bytes, and when it was kept. Sequence numbers are contiguous. An empty deque
        # takes 760 bytes, which an idle session can do without.
        self.entries = _NO_ENTRIES
        self.kept_bytes = 0
        self.used_at = now

    def start(self) -> Position:
        """The position after which everything up to the tail is kept."""
        return Position(self.epoch, self.seq - len(self.entries))

    def tail(self) -> Position:
        """The newest position."""
        return Position(self.epoch, self.seq)

    def read(self, after: Position, limit: int) -> LogSlice:
        """Return up to `limit` entries after a position, or the oldest ones when it is out of reach."""
        part = LogSlice(self.start(), self.tail(), [])
        skipped = after.seq - part.start.seq if part.reaches(after) else 0
        for position, message, _, _ in islice(self.entries, skipped, skipped + limit):
            part.entries.append(Entry(position, message))
        return part


class GroupLogs:
    """Every log of a layer, the longest unused first.

    Bounds of one log: `count` entries, `log_bytes`, `seconds` of age; of all: `total_bytes`. Bytes are the
    contents and ENTRY_BYTES each. The newest entry of a log is kept whatever its size. `joined` holds the
    groups that have members. Times are those of `time.monotonic`, in seconds.
    """

    def __init__(
        self, *, count: int, log_bytes: int, seconds: float, total_bytes: int, joined: Container[str]
    ) -> None:
        self._joined = joined
        self._count = count
        self._log_bytes = log_bytes
        self._seconds = seconds
        self._total_bytes = total_bytes
        self._logs: OrderedDict[str, GroupLog] = OrderedDict()
        self._kept_bytes = 0
        self._newest_gone = 0

    def get(self, group: str) -> GroupLog | None:
        """Return the group's log when there is one."""
        return self._logs.get(group)

    def open(self, group: str, now: float) -> GroupLog:
        """Make the log of a group that has none.

        Its epoch is later than that of every log that is gone, even when the clock was set back. Logs that
        live at the same time may share an epoch: counting on from each other, ten thousand new sessions
        would push the epochs ten seconds ahead of the clock, and so past those after a restart.
        """
        log = self._logs[group] = GroupLog(max(time.time_ns() // 1_000_000, self._newest_gone + 1), now)
        return log

    def append(self, group: str, log: GroupLog, message: Message, now: float) -> Position:
        """Keep a message under the group's next position and return that."""
        log.seq = seq = log.seq + 1
        position = Position(log.epoch, seq)
        size = weight(message)
        if log.entries is _NO_ENTRIES:
            log.entries = deque()
        entries = log.entries
        entries.append((position, message, size, now))
        log.kept_bytes += size
        self._kept_bytes += size
        if (
            len(entries) > self._count
            or log.kept_bytes > self._log_bytes
            or entries[0][3] < now - self._seconds
        ):
            self._trim(log, now)
        log.used_at = now
        self._logs.move_to_end(group)
        if self._kept_bytes > self._total_bytes:
            self._make_room(group, now)
        return position

    def read(self, log: GroupLog, after: Position, limit: int, now: float) -> LogSlice:
        """Read a log without the entries that are too old."""
        self._forget_old(log, now)
        return log.read(after, limit)

    def sweep(self, now: float) -> None:
        """Drop the logs that nobody joined and that were unused for the age of their newest entry."""
        for _ in range(min(SWEPT_AT_ONCE, len(self._logs))):
            group, log = next(iter(self._logs.items()))
            if log.used_at >= now - self._seconds:
                return
            self._give_up(group, log, now)

    def forget(self, group: str) -> None:
        """Drop one log, where there is one; the next one is later."""
        log = self._logs.pop(group, None)
        if log is not None:
            self._kept_bytes -= log.kept_bytes
            self._newest_gone = max(self._newest_gone, log.epoch)

    def clear(self) -> None:
        """Drop every log; the next ones are later."""
        for log in self._logs.values():
            self._newest_gone = max(self._newest_gone, log.epoch)
        self._logs.clear()
        self._kept_bytes = 0

    def _make_room(self, writer: str, now: float) -> None:
        """Keep to the total: the longest unused log gives way, its oldest entries first."""
        while self._kept_bytes > self._total_bytes:
            group, log = next(iter(self._logs.items()))
            if len(log.entries) > (group == writer):
                self._pop(log)
            elif group == writer:
                return
            else:
                self._give_up(group, log, now)

    def _give_up(self, group: str, log: GroupLog, now: float) -> None:
        self._kept_bytes -= log.kept_bytes
        if group in self._joined:
            # Whoever is connected knows its positions: they go on.
            log.entries.clear()
            log.kept_bytes = 0
            log.used_at = now
            self._logs.move_to_end(group)
        else:
            self._newest_gone = max(self._newest_gone, log.epoch)
            del self._logs[group]

    def _trim(self, log: GroupLog, now: float) -> None:
        self._forget_old(log, now)
        while len(log.entries) > self._count or (log.kept_bytes > self._log_bytes and len(log.entries) > 1):
            self._pop(log)

    def _forget_old(self, log: GroupLog, now: float) -> None:
        while log.entries and log.entries[0][3] < now - self._seconds:
            self._pop(log)

    def _pop(self, log: GroupLog) -> None:
        size = log.entries.popleft()[2]
        log.kept_bytes -= size
        self._kept_bytes -= size


def weight(message: Message) -> int:
    """Estimate what keeping a message costs, in bytes."""
    size = ENTRY_BYTES
    for value in message.values():
        kind = type(value)
        if kind is bytes:
            size += len(value)
        elif value is not None and (kind is not str or len(value) > 100):
            # Short strings are types, routes and ids, which messages share.
            size += _size(value)
    return size


def _size(value: object) -> int:
    size = getsizeof(value)
    if isinstance(value, dict):
        size += sum(_size(key) + _size(part) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        size += sum(map(_size, value))
    return size
