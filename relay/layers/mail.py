"""The channels and groups of one process: what waits for its receivers, who is a member, and when they end."""

import asyncio
import re
import secrets
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from .base import HistoryChannelLayer, Message

SWEEP_SECONDS = 1.0
"""How often a send also looks for what nobody came for."""

CHANNELS_SWEPT_AT_ONCE = 256
"""Some 50 µs; the other channels wait for the next sweep."""


class LocalMail(HistoryChannelLayer):
    """The part of a layer that lies in this process: its channels, and which of them are in which group.

    Only the loop that owns the layer may call it. What a layer puts into a channel is its own affair: a
    message, or what it makes one of when it is received.
    """

    def __init__(
        self,
        expiry: float,
        capacity: int,
        channel_capacity: dict[re.Pattern[str] | str, int] | None,
        group_expiry: float,
    ) -> None:
        super().__init__(expiry=expiry, capacity=capacity)  # type: ignore[arg-type]
        # get_capacity() of the base wants the compiled list under the name of the setting.
        self.channel_capacity = self.compile_capacities(channel_capacity or {})  # type: ignore[assignment]
        self.group_expiry = group_expiry
        self._process_id = secrets.token_hex(6)
        self._own_prefix_end = f".{self._process_id}!"
        self._channels: dict[str, Mailbox] = {}
        self._groups: dict[str, dict[Mailbox, float]] = {}
        self._next_sweep = 0.0
        self._unswept: list[Mailbox] = []
        self._with_mail: list[Mailbox] = []

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return the name of a channel that only this process receives from."""
        return f"{prefix}{self._own_prefix_end}{secrets.token_hex(12)}"

    async def receive(self, channel: str) -> Message:
        """Wait for the channel's next message. One message goes to one of several receivers."""
        source = self._source(channel)
        while not source.drop_expired(monotonic()):
            await self._wait(source)
        message = self._opened([source.messages.popleft()[1]])[0]
        self._close_if_unused(source)
        return message

    async def receive_many(self, channel: str) -> list[Message]:
        """Wait for at least one message of a channel, then return all that are waiting, in order."""
        source = self._source(channel)
        while True:
            if source.messages:
                now = monotonic()
                contents = [content for expires_at, content in source.messages if expires_at > now]
                source.messages.clear()
                if contents:
                    break
            await self._wait(source)
        if not source.groups:
            self._close_if_unused(source)
        return self._opened(contents)

    def listen(self, channel: str, heard: Callable[[], None]) -> None:
        """Call `heard` when messages have come into a channel, in the turn of the loop they came in."""
        source = self._source(channel)
        source.heard = heard
        source.on_mail = self._mail_came
        source.receivers += 1

    def stop_listening(self, channel: str) -> None:
        """End `listen`; harmless when nobody listens."""
        source = self._channels.get(channel)
        if source is not None and source.heard is not None:
            source.heard = source.on_mail = None
            source.receivers -= 1
            self._close_if_unused(source)

    def take(self, channel: str) -> Message | None:
        """Return the next message of a channel that is listened to, without waiting; None when there is none."""
        source = self._channels.get(channel)
        if source is None or not source.drop_expired(monotonic()):
            return None
        return self._opened([source.messages.popleft()[1]])[0]

    def _mail_came(self, channel: "Mailbox") -> None:
        """A channel that is listened to has mail; who listens hears of it soon, once for all of it."""
        if not self._with_mail:
            self._hand_over_soon()
        self._with_mail.append(channel)

    def _hand_over_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._hand_over_mail)

    def _hand_over_mail(self) -> None:
        channels, self._with_mail = self._with_mail, []
        for channel in channels:
            channel.told = False
            if channel.heard is not None:
                channel.heard()

    @staticmethod
    def _opened(contents: list[Any]) -> list[Message]:
        """Return the messages of what lay in a channel."""
        return contents

    def _source(self, channel: str) -> "Mailbox":
        """Return a channel to receive from."""
        source = self._channels.get(channel)
        if source is None or not source.checked:
            self.require_valid_channel_name(channel)
            assert "!" not in channel or self._is_own(channel), "another process's channel"
            source = source or self._open(channel)
            source.checked = True
        source.received_at = monotonic()
        return source

    async def _wait(self, source: "Mailbox") -> None:
        try:
            await source.wait()
        except BaseException:
            self._close_if_unused(source)
            raise

    def _is_own(self, channel: str) -> bool:
        return channel.partition("!")[0].endswith(self._own_prefix_end[:-1])

    def _open(self, name: str) -> "Mailbox":
        self.require_valid_channel_name(name)
        channel = self._channels[name] = Mailbox(name, self.get_capacity(name))
        return channel

    def _close_if_unused(self, channel: "Mailbox") -> None:
        if not (channel.messages or channel.receivers or channel.groups):
            self._channels.pop(channel.name, None)

    # --- groups -------------------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Make a channel a member; again is nothing but a renewal."""
        self._join(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        """End a membership; harmless when there is none."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        member = self._channels.get(channel)
        if member is not None:
            self._remove(group, member)

    def _join(self, group: str, channel: str) -> None:
        self.require_valid_group_name(group)
        member = self._channels.get(channel) or self._open(channel)
        self._groups.setdefault(group, {})[member] = monotonic()
        self._changed(group)
        member.groups.add(group)

    def _remove(self, group: str, member: "Mailbox") -> None:
        members = self._groups.get(group)
        if members is not None and members.pop(member, None) is not None:
            member.groups.discard(group)
            if members:
                self._changed(group)
            else:
                del self._groups[group]
                self._left(group)
            self._close_if_unused(member)

    def _changed(self, group: str) -> None:
        """The members of a group are others than before."""

    def _left(self, group: str) -> None:
        """The last member of a group has left."""

    def _members(self, group: str, members: "dict[Mailbox, float]", now: float) -> "list[Mailbox]":
        """Return the members of a group, without those that have stopped receiving for too long."""
        too_old = now - self.group_expiry
        if min(members.values()) >= too_old:
            return list(members)
        living = []
        for member, joined_at in list(members.items()):
            if joined_at < too_old:
                if not member.lives(now - self.expiry):
                    self._remove(group, member)
                    continue
                members[member] = now
            living.append(member)
        return living

    # --- the end of things --------------------------------------------------------------------------

    def _forget_mail(self) -> None:
        """Forget every message and membership; who waits in `receive` goes on waiting."""
        self._groups.clear()
        self._unswept.clear()
        for channel in list(self._channels.values()):
            channel.groups.clear()
            channel.messages.clear()
            self._close_if_unused(channel)

    def _sweep(self, now: float) -> None:
        """Drop what nobody came for: expired messages with their dead channels.

        A bounded part of it each time; a send finds due what the last one left.
        """
        self._next_sweep = now + SWEEP_SECONDS
        if not self._unswept:
            self._unswept = list(self._channels.values())
        for _ in range(min(CHANNELS_SWEPT_AT_ONCE, len(self._unswept))):
            self._bury_if_dead(self._unswept.pop(), now)

    def _bury_if_dead(self, channel: "Mailbox", now: float) -> None:
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


class Mailbox:
    """The messages that wait in one channel, each with its end, and the receivers that wait for them."""

    __slots__ = (
        "_waiters",
        "capacity",
        "checked",
        "groups",
        "heard",
        "messages",
        "name",
        "on_mail",
        "received_at",
        "receivers",
        "told",
    )

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self.capacity = capacity
        self.checked = False
        """Whether it is known that this process may receive from it."""
        self.messages: deque[tuple[float, Any]] = deque()
        self.groups: set[str] = set()
        self.receivers = 0
        self.received_at = float("-inf")
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.heard: Callable[[], None] | None = None
        self.on_mail: Callable[[Mailbox], None] | None = None
        self.told = False

    def lives(self, since: float) -> bool:
        """Tell whether somebody receives, or did so since then."""
        return self.receivers > 0 or self.received_at >= since

    def offer(self, now: float, expires_at: float, message: object) -> bool:
        """Take a message unless the channel is full."""
        messages = self.messages
        if len(messages) >= self.capacity:
            self.drop_expired(now)
            if len(messages) >= self.capacity:
                return False
        messages.append((expires_at, message))
        if self.on_mail is not None:
            if not self.told:
                self.told = True
                self.on_mail(self)
        elif self._waiters:
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
