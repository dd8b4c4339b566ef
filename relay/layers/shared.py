"""Channels that any process may send to and receive from: lists in Redis, with a bell."""

import asyncio
from collections.abc import Callable
from typing import Any

from channels.exceptions import ChannelFull

from comm.recorder_stream import pack, unpack

from .base import Message
from .calls import Call, RedisAway, evalsha
from .link import Link
from .scripts import Script

LOOK_SECONDS = 5.0
"""How soon a receiver finds what no bell told it of."""
RETRY_SECONDS = 0.5
EXPIRY_BYTES = 8


class SharedChannels:
    """Sending and receiving on channels of no process, at most once, as Channels' specification has it.

    A message whose receiver was cancelled meanwhile goes back to the head of its channel. One that Redis had
    handed out when the wire broke is lost. `prefix` is the layer's, with its colon.
    """

    def __init__(
        self, prefix: str, expiry: float, scripts: dict[str, Script], linked: Callable[[], Link]
    ) -> None:
        self._bell_prefix = f"{prefix}bell:".encode()
        self._expiry_ms = int(expiry * 1000)
        self._scripts = scripts
        self._linked = linked
        self._bells: dict[bytes, set[asyncio.Event]] = {}

    async def send(self, channel: str, capacity: int, message: Message) -> None:
        """Put a message at the end of a channel; ChannelFull when its capacity is reached."""
        put = self._scripts["put"]
        args = (channel, capacity, self._expiry_ms, pack(message))
        if not await self._linked().run(put, *args, repeat=False):
            raise ChannelFull(channel)

    async def receive(self, channel: str, most: int) -> list[Message]:
        """Wait for at least one message, then return up to `most`; an outage of Redis is waited through."""
        name = self._bell_prefix + channel.encode()
        bell = asyncio.Event()
        self._bells.setdefault(name, set()).add(bell)
        try:
            while True:
                try:
                    await self._linked().subscribe(name)
                    while not (items := await self._take(channel, most)):
                        await self._heard(bell)
                    return [unpack(item[EXPIRY_BYTES:]) for item in items]
                except RedisAway:
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            self._bells[name].discard(bell)
            if not self._bells[name]:
                del self._bells[name]
                self._linked().unsubscribe(name)

    def rings(self, name: bytes) -> bool:
        """A message was published under this name; tell whether it was the bell of a channel."""
        for bell in self._bells.get(name, ()):
            bell.set()
        return name.startswith(self._bell_prefix)

    async def _heard(self, bell: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await bell.wait()
        except TimeoutError:
            return
        bell.clear()

    async def _take(self, channel: str, most: int) -> list[bytes]:
        link = self._linked()
        taking = _Taking(self, link, channel, most)
        link.send(taking)
        items: list[bytes] = await taking.future
        return items

    def give_back(self, link: Link, channel: str, items: list[bytes]) -> None:
        """Put messages back at the head of a channel."""
        script = self._scripts["give_back"]
        data = evalsha(script, channel, self._expiry_ms, *items)
        link.send(Call(data, float("inf"), repeat=False, script=script))

    @property
    def taking_script(self) -> Script:
        """The script that takes messages."""
        return self._scripts["take"]


class _Taking(Call):
    """Takes messages from a channel; when nobody waits for them any more, they go back."""

    __slots__ = ("_channel", "_link", "_shared", "future")

    def __init__(self, shared: SharedChannels, link: Link, channel: str, most: int) -> None:
        script = shared.taking_script
        deadline = link.loop.time() + link.timeout_seconds
        super().__init__(evalsha(script, channel, most), deadline, repeat=False, script=script)
        self.future: asyncio.Future[list[bytes]] = link.loop.create_future()
        self._shared = shared
        self._link = link
        self._channel = channel

    @property
    def over(self) -> bool:
        return self.future.done()

    def answer(self, reply: Any) -> None:
        if not self.future.done():
            self.future.set_result(reply)
        elif reply:
            self._shared.give_back(self._link, self._channel, reply)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
