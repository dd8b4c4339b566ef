"""The channel layer with history for one process: channels, groups and logs in memory."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from time import monotonic

from channels.exceptions import ChannelFull

from comm.history import LogSlice, Position

from .base import Message
from .logs import GroupLog, GroupLogs
from .mail import LocalMail, Mailbox

MIB = 1024 * 1024

SENDS_PER_LOOP_TURN = 64
"""Group sends, of all producers, after which the loop serves others: below a channel's default capacity, so
that a reader that keeps up misses nothing."""

SECONDS_PER_LOOP_TURN = 0.001
"""The same in time, for groups with many members."""

_IMMUTABLE = frozenset({str, bytes, int, float, bool, type(None)})


class MemoryChannelLayer(LocalMail):
    """Channels' specification and the history contract, within one process and one event loop.

    Order: a group's positions, its log and what each channel receives agree, since nothing is awaited
    between them. A full channel refuses a `send` (ChannelFull) and misses a `group_send`. Messages are
    copied on the way in and once per channel; what `group_read` returns is shared and only to be read.
    Only the loop that owns the layer may call it; other threads publish through comm.publisher.

    expiry: seconds that a message waits for a receiver. capacity: messages that wait in one channel;
    channel_capacity: the same by glob or pattern. group_expiry: seconds after which a member that has
    stopped receiving is no member. history_count, history_bytes, history_seconds: bounds of one log, whose
    idle end comes after history_seconds too. history_total_bytes: the bound of all logs.
    """

    def __init__(
        self,
        expiry: float = 60,
        capacity: int = 100,
        channel_capacity: dict[re.Pattern[str] | str, int] | None = None,
        group_expiry: float = 86400,
        history_count: int = 5000,
        history_bytes: int = 2 * MIB,
        history_seconds: float = 600,
        history_total_bytes: int = 256 * MIB,
    ) -> None:
        super().__init__(expiry, capacity, channel_capacity, group_expiry)
        self._logs = GroupLogs(
            count=history_count,
            log_bytes=history_bytes,
            seconds=history_seconds,
            total_bytes=history_total_bytes,
            joined=self._groups,
        )
        self._sends_in_turn = 0
        self._turn_began = 0.0
        self._held_back: Counter[str] = Counter()

    async def send(self, channel: str, message: Message) -> None:
        """Put a message on a channel; ChannelFull when its capacity is reached."""
        assert isinstance(message, dict), "message is not a dict"
        assert "__asgi_channel__" not in message, "message has the reserved key __asgi_channel__"
        now = monotonic()
        if now >= self._next_sweep:
            self._sweep(now)
        target = self._channels.get(channel) or self._open(channel)
        if not target.offer(now, now + self.expiry, _copier(message)(message)):
            raise ChannelFull(channel)

    async def group_send(self, group: str, message: Message) -> Position | None:  # type: ignore[override]
        """Send to every channel of the group; return the position where the group has a history.

        The loop may get to serve others first; from then on nothing is awaited, so a cancelled sender has
        sent nothing, and one that sent knows the position. Calls for one group keep their order.
        """
        assert isinstance(message, dict), "message is not a dict"
        now = monotonic()
        spent = self._sends_in_turn
        if group in self._held_back or (
            spent and (spent >= SENDS_PER_LOOP_TURN or now - self._turn_began >= SECONDS_PER_LOOP_TURN)
        ):
            now = await self._let_others_run(group)
        if self._sends_in_turn == 0:
            self._turn_began = now
            asyncio.get_running_loop().call_soon(self._begin_turn)
        self._sends_in_turn += 1
        if now >= self._next_sweep:
            self._sweep(now)
        log = self._logs.get(group)
        members = self._groups.get(group)
        if log is None and (members is None or self.has_history(group)):
            log = self._log(group, now)
        copy = _copier(message)
        position = None
        if log is not None:
            position = self._logs.append(group, log, copy(message), now)
        if members:
            self._hand_over(group, members, message, copy, position, now)
        return position

    def _hand_over(
        self,
        group: str,
        members: dict[Mailbox, float],
        message: Message,
        copy: Callable[[Message], Message],
        position: Position | None,
        now: float,
    ) -> None:
        expires_at = now + self.expiry
        for member in self._members(group, members, now):
            mine = copy(message)
            if position is not None:
                mine["group"] = group
                mine["position"] = position
            member.offer(now, expires_at, mine)

    async def _let_others_run(self, group: str) -> float:
        """Yield to the loop once; return the time then. Later calls for the group queue up behind."""
        self._held_back[group] += 1
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            raise error from OSError("nothing was sent")
        finally:
            self._held_back[group] -= 1
            if not self._held_back[group]:
                del self._held_back[group]
        return monotonic()

    def _begin_turn(self) -> None:
        self._sends_in_turn = 0

    # --- history ------------------------------------------------------------------------------------

    def _log(self, group: str, now: float) -> GroupLog | None:
        """Return the group's log, made when there is none; None for a group without history."""
        log = self._logs.get(group)
        if log is None:
            self.require_valid_group_name(group)
            if self.has_history(group):
                log = self._logs.open(group, now)
        return log

    def _history(self, group: str) -> GroupLog:
        log = self._log(group, monotonic())
        if log is None:
            raise ValueError(f"group {group} has no history")
        return log

    async def group_read(self, group: str, after: Position, limit: int) -> LogSlice:
        """Return up to `limit` kept entries after a position, with the log's bounds, in one step."""
        return self._logs.read(self._history(group), after, limit, monotonic())

    async def group_tail(self, group: str) -> Position:
        """Return the newest position of the group; makes the log when there is none."""
        return self._history(group).tail()

    async def group_tails(self, groups: list[str]) -> list[Position]:
        """Return the newest positions of several groups."""
        now = monotonic()
        if now >= self._next_sweep:
            self._sweep(now)
        return [self._history(group).tail() for group in groups]

    async def group_forget(self, group: str) -> None:
        """Drop the log of a group at once; the next one is of a later epoch."""
        self.require_valid_group_name(group)
        self._logs.forget(group)

    # --- the end of things --------------------------------------------------------------------------

    async def flush(self) -> None:
        """Forget every message, group and log; who waits in `receive` goes on waiting."""
        self._logs.clear()
        self._forget_mail()

    async def aclose(self) -> None:
        """Release what the layer holds in this process."""
        await self.flush()

    def _sweep(self, now: float) -> None:
        self._logs.sweep(now)
        super()._sweep(now)


def _copier(message: Message) -> Callable[[Message], Message]:
    """Return what copies this message so that nothing mutable is shared; flat ones take the short way."""
    for value in message.values():
        if type(value) not in _IMMUTABLE:
            return deepcopy
    return dict.copy
