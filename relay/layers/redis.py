"""The channel layer with history for many processes, on Redis or Valkey."""

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import Coroutine
from time import monotonic
from typing import Any, NoReturn

from channels.exceptions import ChannelFull
from django.core.exceptions import ImproperlyConfigured

from comm.groups import HISTORY_PREFIXES
from comm.history import Position, Taken
from comm.publisher import MESSAGE_TYPE
from comm.recorder_stream import RECORDED_PREFIXES, pack, unpack

from .address import Address
from .base import Message
from .calls import Call, RedisAway, command, evalsha
from .link import Link
from .mail import Mailbox
from .scripts import Scripts
from .sending import PLACE_BYTES, Outgoing, Sender
from .shared import SharedChannels
from .store import GROUPS_AT_ONCE, PLACE, RedisStore

logger = logging.getLogger(__name__)

MIB = 1024 * 1024

NAMES_REMEMBERED = 20_000

_NOWHERE = bytes(PLACE_BYTES)
_tuple = tuple.__new__
"""Makes a Position of a pair in half the time."""


class RedisChannelLayer(RedisStore):
    """Channels' specification and the history contract, across processes.

    **Order and failure.** A `group_send` is one step in Redis: position, log, recorder stream and publish. Calls
    of this process that pile up travel together, in the order of the calls, which is the order of positions. A
    call whose answer was lost with the wire is repeated and takes effect once. After `timeout` seconds it fails
    with RedisAway (an OSError), and then Redis does not take it later either, unless it had taken it and its
    answer was lost. A sender that is cancelled after its message was written is so once the answer is here, which
    the cancellation carries (`comm.history.Taken`).

    **Who hears.** This process subscribes to the groups that it is a member of, so a publish costs Redis
    nothing for processes that are not concerned, and no list of processes has to be kept, or cleaned of those that
    died. It hears of its own publish before the call returns. Only channels of this process can be members. A
    `send` to a channel of another process is published to that process; nobody hears when it is gone.
    Channels of no process are bounded lists.

    **Epochs.** A log and its counter live and die together, after `history_seconds` without use. The next log of
    the group has a later epoch, by the clock of Redis and also where that was set back. When Redis comes back with
    older data than this process has seen (delivered to its members, or given to its senders), it begins a later
    epoch for these groups before it sends anything. What cannot be noticed: that another process, which knew nothing
    of a group, has meanwhile appended to it under positions that were given before, as many as were lost or more.

    **Loops.** The layer belongs to the loop that calls it; other threads go through `comm.publisher.at_home`. When that
    loop has ended, the next one that calls takes over, with a new connection (as in `async_to_sync` in commands).

    url: `redis://[user:password@]host[:port][/database]`, rediss:// or unix://. prefix: of every key. timeout: seconds
    that a call waits for Redis. expiry, capacity, channel_capacity, group_expiry, history_count, history_bytes,
    history_seconds: as for MemoryChannelLayer. There is no bound of all logs here: give Redis a `maxmemory` and
    the policy `volatile-lru`, under which the longest unused log gives way. recorder_stream: whether envelopes also go
    into the recorder stream, up to recorder_stream_bytes; past that the missing ones are noted.
    """

    shared = True

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        prefix: str = "backchannel",
        timeout: float = 10,
        expiry: float = 60,
        capacity: int = 100,
        channel_capacity: dict[re.Pattern[str] | str, int] | None = None,
        group_expiry: float = 86400,
        history_count: int = 5000,
        history_bytes: int = 2 * MIB,
        history_seconds: float = 600,
        recorder_stream: bool = True,
        recorder_stream_bytes: int = 256 * MIB,
    ) -> None:
        super().__init__(
            prefix,
            Scripts(
                prefix=prefix,
                count=history_count,
                log_bytes=history_bytes,
                age_ms=int(history_seconds * 1000),
                recorder_bytes=recorder_stream_bytes,
            ),
            recorder_stream,
            expiry,
            capacity,
            channel_capacity,
            group_expiry,
        )
        try:
            self._address = Address.parse(url)
        except ValueError as error:
            raise ImproperlyConfigured(f"the address of Redis cannot be read: {error}") from None
        self._timeout = timeout
        self._history_seconds = history_seconds
        self._to = f"{prefix}:to:".encode()
        self._inbox = self._to + self._inbox_of(self._process_id)
        self._joined: dict[bytes, _Joined] = {}
        self._names: dict[str, tuple[bytes, bytes]] = {}
        self._link: Link | None = None
        self._sender = Sender("", self._scripts["append"])
        self._shared = SharedChannels(self._prefix, expiry, self._scripts, self._linked)
        self._next_renewal = 0.0
        self._waiting_to_resume: set[asyncio.Future[None]] = set()

    # --- the connection -----------------------------------------------------------------------------

    def _linked(self) -> Link:
        """Return the link of the running loop, which takes over from one that has ended."""
        link = self._link
        if link is not None and not link.closed and link.loop is asyncio.get_running_loop():
            return link
        if link is not None and not link.closed and link.loop.is_running():
            raise RuntimeError(
                "the channel layer belongs to another event loop that still runs; "
                "go through comm.publisher.at_home"
            )
        # What another loop had under way ended with it; the places are still so.
        sender = Sender(secrets.token_hex(8), self._scripts["append"])
        sender.remember(self._sender.places())
        self._sender = sender
        fresh = self._link = Link(
            self._address,
            self._timeout,
            on_published=self._published,
            on_read=self._hand_over_mail,
            on_connected=self._prepare,
            before_write=lambda: sender.pump(fresh),
            on_tick=self._tick,
        )
        fresh.subscriptions.update((self._inbox, *self._joined))
        return fresh

    async def _prepare(self, link: Link) -> None:
        """Before anything is sent over a new connection: is what we know of the groups still so?"""
        sender = self._sender
        places = sender.places()
        for name, joined in self._joined.items():
            group = name[len(self._to) :]
            places[group] = max(places.get(group, _NOWHERE), joined.newest)
        known = [
            (group, *PLACE.unpack(place), self._how(group))
            for group, place in places.items()
            if place != _NOWHERE
        ]
        for start in range(0, max(1, len(known)), GROUPS_AT_ONCE):
            args = [part for each in known[start : start + GROUPS_AT_ONCE] for part in each]
            text = self._scripts["confirm"].text
            now_ms, begun = await link.prepare(command(b"EVAL", text, 0, *args))
            sender.set_clock(now_ms, link.loop.time())
            if begun:
                logger.warning(
                    "Redis at %s lost what was sent to %d groups; their logs begin anew", self._address, begun
                )
        if link.connections:
            for waiting in self._waiting_to_resume:
                if not waiting.done():
                    waiting.set_result(None)

    def _how(self, group: bytes) -> bytes:
        """Say of a group with a history what the script asks: has it members here, is it recorded."""
        recorded = self._recorded and group.decode().startswith(RECORDED_PREFIXES)
        return (b"j" if self._to + group in self._joined else b"") + (b"r" if recorded else b"")

    async def resumed(self) -> None:
        """Wait until the connection was lost and is there again: something may be missing."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting_to_resume.add(waiting)
        try:
            await waiting
        finally:
            self._waiting_to_resume.discard(waiting)

    def _tick(self, now: float) -> None:
        link = self._link
        if link is None:
            return
        self._sender.give_up(link, now)
        moment = monotonic()
        if moment >= self._next_sweep:
            self._sweep(moment)
        if now >= self._next_renewal and link.is_up:
            self._next_renewal = now + self._history_seconds / 4
            self._renew(link)

    def _renew(self, link: Link) -> None:
        """Keep the logs of the joined groups alive."""
        groups = [joined.group for joined in self._joined.values() if self.has_history(joined.group)]
        script = self._scripts["renew"]
        for start in range(0, len(groups), GROUPS_AT_ONCE):
            data = evalsha(script, *groups[start : start + GROUPS_AT_ONCE])
            link.send(Call(data, link.loop.time() + self._timeout, repeat=False, script=script))

    # --- what arrives -------------------------------------------------------------------------------

    def _published(self, name: bytes, payload: bytes) -> None:
        """Put what was published into the channels of this process that it is for; it is read when received."""
        joined = self._joined.get(name)
        if joined is None:
            self._published_elsewhere(name, payload)
            return
        now = monotonic()
        if now >= joined.settled_until:
            joined.living = self._members(joined.group, joined.members, now)
            joined.settled_until = min(joined.members.values(), default=now) + self.group_expiry
        place = payload[:PLACE_BYTES]
        content: tuple[str | None, bytes]
        if place == _NOWHERE:
            content = (None, payload)
        else:
            joined.newest = place
            content = (joined.group, payload)
        for member in joined.living:
            member.offer(now, now + self.expiry, content)

    def _published_elsewhere(self, name: bytes, payload: bytes) -> None:
        if name == self._inbox:
            parcel = unpack(payload[PLACE_BYTES:])
            self._offer(parcel["channel"], parcel["message"])
        elif not self._shared.rings(name) and self._link is not None:
            self._link.unsubscribe(name)

    def _hand_over_soon(self) -> None:
        # What a small read of the socket brought is handed over at its end, before anybody hears of an answer.
        if self._link is None or not self._link.in_small_read:
            super()._hand_over_soon()

    async def receive(self, channel: str) -> Message:
        """Wait for the channel's next message. One message goes to one of several receivers."""
        if channel in self._channels or self._is_of_a_process(channel):
            return await super().receive(channel)
        return (await self._shared.receive(channel, 1))[0]

    def receive_many(self, channel: str) -> Coroutine[Any, Any, list[Message]]:
        """Wait for at least one message of a channel, then return all that are waiting, in order."""
        if channel in self._channels or self._is_of_a_process(channel):
            return super().receive_many(channel)
        return self._shared.receive(channel, self.get_capacity(channel))

    @staticmethod
    def _opened(contents: list[Any]) -> list[Message]:
        """Return the messages of what lay in a channel: decoded only now, they belong to whoever received them."""
        messages: list[Message] = []
        for content in contents:
            if type(content) is dict:
                messages.append(content)
                continue
            group, payload = content
            message = unpack(payload[PLACE_BYTES:])
            if group is not None:
                message["group"] = group
                message["position"] = _tuple(Position, PLACE.unpack_from(payload))
            messages.append(message)
        return messages

    def _is_of_a_process(self, channel: str) -> bool:
        self.require_valid_channel_name(channel)
        return "!" in channel

    # --- sending ------------------------------------------------------------------------------------

    async def send(self, channel: str, message: Message) -> None:
        """Put a message on a channel; ChannelFull when its capacity is reached.

        A channel of another process that is full drops it.
        """
        assert isinstance(message, dict), "message is not a dict"
        assert "__asgi_channel__" not in message, "message has the reserved key __asgi_channel__"
        if not self._is_of_a_process(channel):
            await self._shared.send(channel, self.get_capacity(channel), message)
        elif self._is_own(channel):
            if not self._offer(channel, unpack(pack(message))):
                raise ChannelFull(channel)
        else:
            name = b"g" + self._inbox_of(channel.partition("!")[0].rpartition(".")[2])
            parcel = pack({"channel": channel, "message": message})
            await self._send(name, parcel)

    def _offer(self, channel: str, message: Message) -> bool:
        now = monotonic()
        target = self._channels.get(channel) or self._open(channel)
        return target.offer(now, now + self.expiry, message)

    @staticmethod
    def _inbox_of(process_id: str) -> bytes:
        # No group has such a name.
        return b"!" + process_id.encode()

    async def group_send(  # type: ignore[override]
        self, group: str, message: Message, until: float | None = None
    ) -> Position | None:
        """Send to every channel of the group; return the position where the group has a history.

        Up to the queue of this process nothing is awaited, so the order of calls is the order of positions.
        Errors: RedisAway when Redis did not take it, in the time that a call has and before `until` (monotonic).
        """
        assert isinstance(message, dict), "message is not a dict"
        packed = pack(message)
        kept, recorded = self._names.get(group) or self._name(group)
        return await self._send(recorded if message.get("type") == MESSAGE_TYPE else kept, packed, until)

    async def _send(self, name: bytes, packed: bytes, until: float | None = None) -> Position | None:
        link = self._linked()
        item = self._sender.send(link, name, packed, None if until is None else until - monotonic())
        try:
            return await item.future
        except asyncio.CancelledError as error:
            await self._after_cancelling(link, item, error)

    @staticmethod
    async def _after_cancelling(link: Link, item: Outgoing, error: asyncio.CancelledError) -> NoReturn:
        """Cancel a sender: at once where nothing was sent, else when it is known what became of the message.

        Here and not at its next wait, which may lie behind the block that a timeout was for.
        """
        if not item.settled:
            if not item.written:
                raise error from RedisAway("nothing was sent")
            if not link.is_up:
                raise error
            item.future = link.loop.create_future()
            with contextlib.suppress(OSError):
                await item.future
        if item.error is not None:
            # Whoever goes on after failures must still hear that it is cancelled.
            raise error from item.error
        raise error from Taken(item.position)

    def _name(self, group: str) -> tuple[bytes, bytes]:
        """Return the name of a group as the script reads it: for any message, and for one that is recorded."""
        self.require_valid_group_name(group)
        if len(self._names) >= NAMES_REMEMBERED:
            self._names.clear()
        kind = "h" if group.startswith(HISTORY_PREFIXES) else "g"
        recorded = self._recorded and group.startswith(RECORDED_PREFIXES)
        names = self._names[group] = (
            f"{kind}{group}".encode(),
            f"{ {'h': 'r', 'g': 'p'}[kind] if recorded else kind }{group}".encode(),
        )
        return names

    # --- groups -------------------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Make a channel of this process a member; returns when every later message will come."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        if not self._is_own(channel):
            raise ValueError(f"only channels of this process can be members of a group here, not {channel}")
        self._join(group, channel)
        name = self._to + group.encode()
        joined = self._joined.get(name)
        if joined is None:
            joined = self._joined[name] = _Joined(group, self._groups[group])
        if not joined.subscribed:
            try:
                await self._linked().subscribe(name)
            except RedisAway:
                if not joined.subscribed:
                    await self.group_discard(group, channel)
                raise
            joined.subscribed = True

    def _changed(self, group: str) -> None:
        joined = self._joined.get(self._to + group.encode())
        if joined is not None:
            joined.settled_until = 0.0

    def _left(self, group: str) -> None:
        name = self._to + group.encode()
        self._joined.pop(name, None)
        if self._link is not None and not self._link.closed:
            self._link.unsubscribe(name)

    # --- the end of things --------------------------------------------------------------------------

    async def flush(self) -> None:
        """Forget every message, group and log, of every process; who waits in `receive` goes on waiting."""
        self._forget_memberships()
        await self._wipe()

    async def aclose(self) -> None:
        """Let go of the connection and of all that waits in this process; what is in Redis stays."""
        link, self._link = self._link, None
        self._forget_memberships()
        if link is None or link.closed:
            return
        if link.loop is asyncio.get_running_loop():
            await link.aclose()
        elif link.loop.is_running():
            raise RuntimeError("close the channel layer on the event loop that uses it")
        self._sender.close(RedisAway("the channel layer was closed"))

    def _forget_memberships(self) -> None:
        if self._link is not None and not self._link.closed:
            for name in self._joined:
                self._link.unsubscribe(name)
        self._joined.clear()
        self._forget_mail()


class _Joined:
    """A group that this process listens to, and the newest place in it that it has heard of."""

    __slots__ = ("group", "living", "members", "newest", "settled_until", "subscribed")

    def __init__(self, group: str, members: dict[Mailbox, float]) -> None:
        self.group = group
        self.members = members
        self.living: list[Mailbox] = []
        """The members that are to hear, as looked up last; to be looked up again after `settled_until`."""
        self.settled_until = 0.0
        self.newest = _NOWHERE
        self.subscribed = False
