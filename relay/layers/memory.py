"""The channel layer with history for one process: channels, groups and logs in memory."""

import asyncio
import re
import secrets
from collections import Counter, deque
from collections.abc import Callable
from copy import deepcopy
from time import monotonic

from channels.exceptions import ChannelFull

from comm.history import LogSlice, Position

from .base import HistoryChannelLayer, Message
from .logs import GroupLog, GroupLogs

MIB = 1024 * 1024

SENDS_PER_LOOP_TURN = 64
"""Group sends, of all producers, after which the loop serves others: below a channel's default capacity, so
that a reader that keeps up misses nothing."""

SECONDS_PER_LOOP_TURN = 0.001
"""The same in time, for groups with many members."""

SWEEP_SECONDS = 1.0
"""How often a send also looks for what nobody came for."""

CHANNELS_SWEPT_AT_ONCE = 256
"""Some 50 µs; the other channels wait for the next sweep."""

_IMMUTABLE = frozenset({str, bytes, int, float, bool, type(None)})


class MemoryChannelLayer(HistoryChannelLayer):
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
        super().__init__(expiry=expiry, capacity=capacity)  # type: ignore[arg-type]
        # get_capacity() of the base wants the compiled list under the name of the setting.
        self.channel_capacity = self.compile_capacities(channel_capacity or {})  # type: ignore[assignment]
        self.group_expiry = group_expiry
        self._own_prefix_end = f".{secrets.token_hex(6)}!"
        self._channels: dict[str, _Channel] = {}
        self._groups: dict[str, dict[_Channel, float]] = {}
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
        self._next_sweep = 0.0
        self._unswept: list[_Channel] = []

    # --- channels -----------------------------------------------------------------------------------

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return the name of a channel that only this process receives from."""
        return f"{prefix}{self._own_prefix_end}{secrets.token_hex(12)}"

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

    async def receive(self, channel: str) -> Message:
        """Wait for the channel's next message. One message goes to one of several receivers."""
        source = await self._filled(channel)
        message = source.messages.popleft()[1]
        self._close_if_unused(source)
        return message

    async def receive_many(self, channel: str) -> list[Message]:
        """Wait for at least one message of a channel, then return all that are waiting, in order."""
        source = await self._filled(channel)
        now = monotonic()
        messages = [message for expires_at, message in source.messages if expires_at > now]
        source.messages.clear()
        self._close_if_unused(source)
        return messages

    async def _filled(self, channel: str) -> "_Channel":
        """Return the channel once it holds a message that has not expired."""
        self.require_valid_channel_name(channel)
        if "!" in channel:
            assert self.non_local_name(channel).endswith(self._own_prefix_end), "another process's channel"
        source = self._channels.get(channel) or self._open(channel)
        source.received_at = monotonic()
        while not source.drop_expired(monotonic()):
            try:
                await source.wait()
            except BaseException:
                self._close_if_unused(source)
                raise
        return source

    def _open(self, name: str) -> "_Channel":
        self.require_valid_channel_name(name)
        channel = self._channels[name] = _Channel(name, self.get_capacity(name))
        return channel

    def _close_if_unused(self, channel: "_Channel") -> None:
        if not (channel.messages or channel.receivers or channel.groups):
            self._channels.pop(channel.name, None)

    # --- groups -------------------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Make a channel a member; again is nothing but a renewal."""
        self.require_valid_group_name(group)
        member = self._channels.get(channel) or self._open(channel)
        self._groups.setdefault(group, {})[member] = monotonic()
        member.groups.add(group)

    async def group_discard(self, group: str, channel: str) -> None:
        """End a membership; harmless when there is none."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        member = self._channels.get(channel)
        if member is not None:
            self._remove(group, member)

    def _remove(self, group: str, member: "_Channel") -> None:
        members = self._groups.get(group)
        if members is not None and members.pop(member, None) is not None:
            member.groups.discard(group)
            if not members:
                del self._groups[group]
            self._close_if_unused(member)

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
        members: "dict[_Channel, float]",
        message: Message,
        copy: Callable[[Message], Message],
        position: Position | None,
        now: float,
    ) -> None:
        expires_at = now + self.expiry
        too_old = now - self.group_expiry
        gone = []
        for member, joined_at in members.items():
            if joined_at < too_old:
                if not member.lives(now - self.expiry):
                    gone.append(member)
                    continue
                members[member] = now
            mine = copy(message)
            if position is not None:
                mine["group"] = group
                mine["position"] = position
            member.offer(now, expires_at, mine)
        for member in gone:
            self._remove(group, member)

    async def _let_others_run(self, group: str) -> float:
        """Yield to the loop once; return the time then. Later calls for the group queue up behind."""
        self._held_back[group] += 1
        try:
            await asyncio.sleep(0)
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
        self._groups.clear()
        self._logs.clear()
        self._unswept.clear()
        for channel in list(self._channels.values()):
            channel.groups.clear()
            channel.messages.clear()
            self._close_if_unused(channel)

    async def aclose(self) -> None:
        """Release what the layer holds in this process."""
        await self.flush()

    def _sweep(self, now: float) -> None:
        """Drop what nobody came for: expired messages with their dead channels, and idle logs.

        A bounded part of it each time; a send finds due what the last one left.
        """
        self._next_sweep = now + SWEEP_SECONDS
        self._logs.sweep(now)
        if not self._unswept:
            self._unswept = list(self._channels.values())
        for _ in range(min(CHANNELS_SWEPT_AT_ONCE, len(self._unswept))):
            self._bury_if_dead(self._unswept.pop(), now)

    def _bury_if_dead(self, channel: "_Channel", now: float) -> None:
        if channel.lives(now - self.expiry):
            return
        waiting = len(channel.messages)
        channel.drop_expired(now)
        if len(channel.messages) < waiting:
            # Nobody came for a message in time: as the specification has it, the channel leaves its groups.
            for group in list(channel.groups):
                self._remove(group, channel)
        else:
            for group in list(channel.groups):
                if self._groups[group][channel] < now - self.group_expiry:
                    self._remove(group, channel)
        self._close_if_unused(channel)


class _Channel:
    """The messages that wait in one channel, each with its end, and the receivers that wait for them."""

    __slots__ = ("_waiters", "capacity", "groups", "messages", "name", "received_at", "receivers")

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self.capacity = capacity
        self.messages: deque[tuple[float, Message]] = deque()
        self.groups: set[str] = set()
        self.receivers = 0
        self.received_at = float("-inf")
        self._waiters: deque[asyncio.Future[None]] = deque()

    def lives(self, since: float) -> bool:
        """Tell whether somebody receives, or did so since then."""
        return self.receivers > 0 or self.received_at >= since

    def offer(self, now: float, expires_at: float, message: Message) -> bool:
        """Take a message unless the channel is full."""
        messages = self.messages
        if len(messages) >= self.capacity:
            self.drop_expired(now)
            if len(messages) >= self.capacity:
                return False
        messages.append((expires_at, message))
        if self._waiters:
            self._wake_one()
        return True

    def drop_expired(self, now: float) -> bool:
        """Drop the messages whose time is over; tell whether any is left."""
        messages = self.messages
        while messages and messages[0][0] <= now:
            messages.popleft()
        return bool(messages)

    async def wait(self) -> None:
        """Wait until a message may be there. It stays where it is: a cancelled receiver takes none along."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self.receivers += 1
        try:
            await waiter
        except BaseException:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif self.messages:
                # It was woken for a message that another receiver must now hear of.
                self._wake_one()
            raise
        finally:
            self.receivers -= 1

    def _wake_one(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


def _copier(message: Message) -> Callable[[Message], Message]:
    """Return what copies this message so that nothing mutable is shared; flat ones take the short way."""
    for value in message.values():
        if type(value) not in _IMMUTABLE:
            return deepcopy
    return dict.copy
