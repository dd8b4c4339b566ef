"""The one connection of a process to Redis: commands and what is published come over it, pipelined.

RESP3 lets both share it, so a process hears of its own publish before the call that made it returns. The
protocol is read by hiredis, one wake-up per read of the socket; all that is called in one turn of the loop is
written in one go. What the commands mean is the layer's affair.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

import hiredis

from .address import Address
from .calls import Call, FutureCall, RedisAway, RedisRefused, command, error_of, evalsha
from .scripts import Script

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
"""How long connecting, and each step of the handshake, may take."""
BACKOFF_SECONDS = (0.05, 2.0)
"""The first and the longest wait between attempts to connect; doubled in between, and half of it is random."""
TICK_SECONDS = 0.25
"""How exact timeouts are: one timer looks after all calls."""
PING_SECONDS = 5.0
"""A wire so long silent is asked whether it lives."""
WRITE_BUFFER_BYTES = 1024 * 1024
"""Written and not yet taken by the socket; past this nothing more is written for now."""
BURST_BYTES = 16 * 1024
"""A read so large says that more is there: what it brought is handed over with that, and on_read() is not called."""
NAMES_AT_ONCE = 500
"""Channels in one SUBSCRIBE."""


class Link:
    """A connection that stays: it reconnects, subscribes again, and repeats what may be repeated.

    It belongs to the loop that it was made on, and holds one task. Calls are answered in order. Whoever
    opens it closes it; a loop that ends and cancels its tasks closes it too.

    on_published(channel, payload) is called for each message, on_read() after those of a small read; on_connected() is
    awaited before calls go over a new connection and may `prepare`; before_write() and on_tick(now) let the layer
    add calls of its own.
    """

    def __init__(
        self,
        address: Address,
        timeout_seconds: float,
        *,
        on_published: Callable[[bytes, bytes], None],
        on_read: Callable[[], None],
        on_connected: Callable[["Link"], Any],
        before_write: Callable[[], None],
        on_tick: Callable[[float], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.address = address
        self.timeout_seconds = timeout_seconds
        self.connections = 0
        """How often it has connected so far."""
        self.subscriptions: set[bytes] = set()
        self.reading = asyncio.Semaphore(8)
        self.closed = False
        self._on_published = on_published
        self._on_read = on_read
        self.in_small_read = False
        """Whether on_read() will be called for what is being read, before anything else runs."""
        self._on_connected = on_connected
        self._before_write = before_write
        self._on_tick = on_tick
        self._waiting: deque[Call] = deque()
        self._written: deque[Call] = deque()
        self._flush_due = False
        self._up = False
        self._paused = False
        self._heard_at = 0.0
        self._transport: asyncio.Transport | None = None
        self._lost: asyncio.Future[None] | None = None
        self._problem: Exception | None = None
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._task = self.loop.create_task(self._run(), name=f"link to Redis at {address}")
        self._ticking = self.loop.call_later(TICK_SECONDS, self._tick)

    # --- calling ------------------------------------------------------------------------------------

    def send(self, call: Call) -> None:
        """Send a call with whatever else is called in this turn of the loop."""
        if self.closed:
            call.fail(RedisAway(f"the connection to Redis at {self.address} is closed"))
            return
        self._waiting.append(call)
        self.flush_soon()

    def ask(
        self,
        data: bytes,
        *,
        timeout_seconds: float | None = None,
        repeat: bool = True,
        script: Script | None = None,
    ) -> "asyncio.Future[Any]":
        """Send a command; the future brings its answer, RedisRefused, or RedisAway when none came in time."""
        future = self.loop.create_future()
        limit = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        self.send(FutureCall(future, data, self.loop.time() + limit, repeat=repeat, script=script))
        return future

    def run(self, script: Script, *args: bytes | str | int, **options: Any) -> "asyncio.Future[Any]":
        """Run a script, as `ask` does."""
        return self.ask(evalsha(script, *args), script=script, **options)

    def subscribe(self, name: bytes) -> "asyncio.Future[Any]":
        """Subscribe; the future is done when every later message will come."""
        self.subscriptions.add(name)
        return self.ask(command(b"SUBSCRIBE", name) + _PING)

    def unsubscribe(self, name: bytes) -> None:
        """Unsubscribe, without waiting for it."""
        if name in self.subscriptions:
            self.subscriptions.discard(name)
            if self._up:
                self._send_unsubscribe(name)

    def _send_unsubscribe(self, name: bytes) -> None:
        self.send(Call(command(b"UNSUBSCRIBE", name) + _PING, float("inf"), repeat=False))

    @property
    def is_up(self) -> bool:
        """Whether there is a connection that takes calls."""
        return self._up

    def away(self) -> RedisAway:
        """Return what to raise for a call whose time is over."""
        reason = self._problem or f"it did not answer within {self.timeout_seconds:g} s"
        return RedisAway(f"Redis at {self.address} cannot be reached: {reason}")

    def flush_soon(self) -> None:
        """Write in this turn of the loop what is called in it."""
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        if not self._up or self._paused:
            self._flush_due = False
            return
        try:
            # What the layer adds now is written now: the flush is still due.
            self._before_write()
        finally:
            self._flush_due = False
        waiting = self._waiting
        if not waiting:
            return
        if len(waiting) == 1:
            call = waiting.popleft()
            self._written.append(call)
            self._write(call.data)
            return
        calls = [call for call in waiting if not call.over]
        waiting.clear()
        self._written.extend(calls)
        self._write(b"".join([call.data for call in calls]))

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    # --- the connection ------------------------------------------------------------------------------

    async def _run(self) -> None:
        delay, longest = BACKOFF_SECONDS
        try:
            while True:
                try:
                    async with asyncio.timeout(CONNECT_SECONDS * 2):
                        await self._connect()
                except (OSError, hiredis.ProtocolError) as error:
                    self._take_note(error)
                else:
                    delay = BACKOFF_SECONDS[0]
                    assert self._lost is not None
                    await self._lost
                self._hang_up()
                await asyncio.sleep(delay * (0.5 + random.random() / 2))
                delay = min(longest, delay * 2)
        finally:
            self._end()

    async def _connect(self) -> None:
        """Connect, say who we are, subscribe, let the layer prepare, and send again what was not answered."""
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._lost = self.loop.create_future()
        where = self.address
        if where.path:
            await self.loop.create_unix_connection(lambda: _Wire(self), where.path)
        else:
            await self.loop.create_connection(lambda: _Wire(self), where.host, where.port, ssl=where.tls)
        await self._introduce()
        names = list(self.subscriptions)
        for start in range(0, len(names), NAMES_AT_ONCE):
            await self.prepare(command(b"SUBSCRIBE", *names[start : start + NAMES_AT_ONCE]) + _PING)
        await self._on_connected(self)
        if self._transport is None:
            raise RedisAway("the connection broke as soon as it was prepared")
        if self._problem is not None or self.connections:
            logger.info("Connected to Redis at %s again", where)
        self._problem = None
        self.connections += 1
        self._up = True
        for name in set(names) - self.subscriptions:
            # Left meanwhile.
            self._send_unsubscribe(name)
        self._flush()

    async def _introduce(self) -> None:
        address = self.address
        who: list[bytes | str] = []
        if address.password:
            who = ["AUTH", address.username or "default", address.password]
        try:
            hello = await self.prepare(command("HELLO", "3", *who))
        except RedisRefused as error:
            raise RedisRefused(f"Redis at {address} refused us: {error}") from None
        if not isinstance(hello, dict):
            raise RedisRefused(f"Redis at {address} does not speak RESP3; Redis 7 or Valkey is needed")
        if address.database:
            await self.prepare(command("SELECT", address.database))

    async def prepare(self, data: bytes) -> Any:
        """Ask something while the connection is being prepared, before all that waits."""
        if self._transport is None:
            raise RedisAway("the connection broke while it was being prepared")
        future = self.loop.create_future()
        self._written.append(FutureCall(future, data, self.loop.time() + CONNECT_SECONDS, repeat=False))
        self._write(data)
        return await future

    def _take_note(self, error: Exception) -> None:
        if isinstance(error, hiredis.ProtocolError):
            error = RedisRefused(f"what answers at {self.address} is no Redis")
        if type(error) is not type(self._problem):
            logger.warning("Redis at %s cannot be used, trying again: %s", self.address, error or "no answer")
        self._problem = error
        if isinstance(error, RedisRefused):
            # Waiting will not help: a password is wrong, or it is something else that listens there.
            for call in self._waiting:
                call.fail(error)
            self._waiting.clear()

    def _hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        self._up = self._paused = False
        again = []
        for call in self._written:
            if call.repeat and not call.over:
                again.append(call)
            else:
                call.fail(RedisAway(f"the connection to Redis at {self.address} broke before it answered"))
        self._written.clear()
        self._waiting.extendleft(reversed(again))

    def _end(self) -> None:
        self.closed = True
        self._ticking.cancel()
        self._hang_up()
        error = RedisAway(f"the connection to Redis at {self.address} was closed")
        for call in self._waiting:
            call.fail(error)
        self._waiting.clear()

    async def aclose(self) -> None:
        """Close the connection; what still waits fails."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    # --- the wire's side ------------------------------------------------------------------------------

    def is_wired_by(self, transport: asyncio.BaseTransport | None) -> bool:
        """Whether this is the present wire."""
        return self._transport is transport

    def opened(self, transport: asyncio.BaseTransport) -> None:
        """The wire is there."""
        # uvloop's transports are none of asyncio's, but do the same.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        self._heard_at = self.loop.time()

    def broken(self, error: Exception | None) -> None:
        """The wire is gone."""
        if self._lost is not None and not self._lost.done():
            logger.warning("The connection to Redis at %s broke: %s", self.address, error or "it was closed")
            self._lost.set_result(None)
        self._transport = None
        self._up = False
        for call in self._written:
            if not call.repeat:
                call.fail(RedisAway(f"the connection to Redis at {self.address} broke"))

    def pause(self, paused: bool) -> None:
        """The wire takes nothing more for now, or does so again."""
        self._paused = paused
        if not paused:
            self.flush_soon()

    def received(self, data: bytes) -> None:
        """Handle all that one read of the socket brought."""
        self._heard_at = self.loop.time()
        reader = self._reader
        reader.feed(data)
        published = self._on_published
        self.in_small_read = len(data) < BURST_BYTES
        try:
            while True:
                reply = reader.gets()
                if reply is _NOTHING:
                    break
                if type(reply) is hiredis.PushNotification:
                    if reply[0] == b"message":
                        published(reply[1], reply[2])
                elif self._written:
                    self._answer(self._written.popleft(), reply)
        except hiredis.ProtocolError as error:
            self._take_note(error)
            for call in self._written:
                if not call.repeat:
                    call.fail(cast(Exception, self._problem))
            if self._transport is not None:
                self._transport.abort()
        finally:
            if self.in_small_read:
                self.in_small_read = False
                self._on_read()

    def _answer(self, call: Call, reply: Any) -> None:
        if not isinstance(reply, hiredis.ReplyError):
            call.answer(reply)
        elif call.script is not None and str(reply).startswith("NOSCRIPT"):
            # The script comes with it this time; the next ones find it.
            data = command(b"SCRIPT", b"LOAD", call.script.text)
            self._waiting.appendleft(call)
            self._waiting.appendleft(Call(data, call.deadline, repeat=False))
            self.flush_soon()
        else:
            call.fail(error_of(reply))
            if call.data != _PING and call.data.endswith(_PING):
                # A SUBSCRIBE is answered only when it is refused; the answer to its PING is still to come.
                self._written.appendleft(Call(b"", float("inf"), repeat=False))

    # --- time -----------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = self.loop.time()
        self._ticking = self.loop.call_later(TICK_SECONDS, self._tick)
        self._give_up(self._written, now)
        if self._give_up(self._waiting, now):
            self._waiting = deque(call for call in self._waiting if not call.over)
        self._on_tick(now)
        if self._up and now - self._heard_at > PING_SECONDS:
            if not self._written:
                self.send(Call(_PING, float("inf"), repeat=False))
            elif now - self._heard_at > PING_SECONDS + self.timeout_seconds and self._transport is not None:
                logger.warning("Redis at %s has been silent; connecting anew", self.address)
                self._transport.abort()

    def _give_up(self, calls: Iterable[Call], now: float) -> bool:
        late = [call for call in calls if call.deadline < now and not call.over]
        for call in late:
            call.fail(self.away())
        return bool(late)


class _Wire(asyncio.Protocol):
    """Hands what the transport says on to the link, unless that has a newer wire."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._link.opened(transport)

    def data_received(self, data: bytes) -> None:
        if self._is_current():
            self._link.received(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._is_current():
            self._link.broken(error)

    def pause_writing(self) -> None:
        self._link.pause(True)

    def resume_writing(self) -> None:
        self._link.pause(False)

    def _is_current(self) -> bool:
        return self._link.is_wired_by(self._transport)


_NOTHING = object()
_PING = command(b"PING")
