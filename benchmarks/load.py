"""The load: many streams on raw sockets in one process, counted without parsing JSON or HTTP.

Every received event is checked: its number must be the next of its stream. Latency is taken from the
timestamp that travels in the event, at the moment its bytes are read. A loop of its own on epoll costs a third
of asyncio's protocols per read, so that what is measured is the server.
"""

import contextlib
import os
import re
import select
import socket
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

INDEX = re.compile(rb'@[^"@]*", ?"index": ?(\d+)[,}]')
STAMPED = re.compile(rb'"text": ?"@(\d+)@[^"]*", ?"index": ?(\d+)[,}]')
LAST = re.compile(rb'"index": ?\d+[,}]')
NUMBERS = [b"%d" % number for number in range(20_000)]
"""Numbers as they stand in events: a whole read is compared with a slice of this."""
READ_BYTES = 256 * 1024


@dataclass(frozen=True)
class Dialect:
    """How a client opens a stream: its request, what it answers while opening, and what says that it is open."""

    request: bytes
    ready: bytes
    opening: tuple[tuple[bytes, bytes], ...] = ()
    """Once the first is received, the second is sent."""
    ping: bytes = b""
    pong: bytes = b""


def sse(ready: bytes = b"event: ready") -> Dialect:
    """A client of server-sent events."""
    request = b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n"
    return Dialect(request, ready)


def socketio() -> Dialect:
    """A Socket.IO client on its WebSocket transport: engine.io's open, then the connect packet of namespace /."""
    request = (
        b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YmVuY2htYXJrYmVuY2htYQ==\r\n\r\n"
    )
    return Dialect(
        request,
        b'40{"sid"',
        opening=((b'0{"sid"', _masked(b"40")),),
        ping=b"\x81\x012",
        pong=_masked(b"3"),
    )


def _masked(text: bytes) -> bytes:
    """A client's text frame; a mask of zeros is a mask."""
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text


class Stream:
    """One open stream: what it has of an event that is not complete, and which number comes next."""

    __slots__ = ("next_number", "opening", "ready", "rest", "sock")

    def __init__(self, sock: socket.socket, opening: tuple[tuple[bytes, bytes], ...]) -> None:
        self.sock = sock
        self.opening = opening
        self.rest = b""
        self.next_number = 0
        self.ready = False


class Load:
    """Opens streams and tells what arrived. Whoever makes one closes it."""

    def __init__(self, port: int, dialect: Dialect | None = None) -> None:
        self.port = port
        self.dialect = dialect or sse()
        self.streams: dict[int, Stream] = {}
        self.latencies_us = array("d")
        self.take_latency = False
        self.lost = self.out_of_order = self.received = self.closed = 0
        self.last_at = 0.0
        self._opened = 0
        self._epoll = select.epoll()

    def open(self, paths: list[str], at_once: int = 50, limit_seconds: float = 120.0) -> float:
        """Open a stream per path, so many at once; return how many were opened per second."""
        began = time.perf_counter()
        self._opened = asked = 0
        while self._opened < len(paths):
            while asked < len(paths) and asked - self._opened < at_once:
                self._ask(paths[asked])
                asked += 1
            self._poll(0.1)
            if time.perf_counter() - began > limit_seconds or self.closed:
                raise RuntimeError(
                    f"{self._opened} of {len(paths)} streams opened, {self.closed} were closed"
                )
        return len(paths) / (time.perf_counter() - began)

    def begin(self, *, take_latency: bool = False, renumber: bool = False) -> None:
        """Count from nothing; `renumber` when the next event of each stream is its first again."""
        self.lost = self.out_of_order = self.received = 0
        self.latencies_us = array("d")
        self.take_latency = take_latency
        for stream in self.streams.values() if renumber else ():
            stream.next_number = 0

    def wait(self, expected: int, quiet_seconds: float = 3.0, limit_seconds: float = 120.0) -> float:
        """Read until so many events have arrived, or none came for a while; return the time of the last."""
        self.last_at = time.perf_counter()
        ends = self.last_at + limit_seconds
        while self.received < expected:
            self._poll(0.05)
            now = time.perf_counter()
            if now - self.last_at > quiet_seconds or now > ends:
                break
        return self.last_at

    def rest(self, seconds: float) -> None:
        """Read what comes for a while."""
        ends = time.perf_counter() + seconds
        while (left := ends - time.perf_counter()) > 0:
            self._poll(left)

    def close(self) -> None:
        """Close every stream."""
        self._epoll.close()
        for stream in self.streams.values():
            stream.sock.close()
        self.streams.clear()

    def _ask(self, path: str) -> None:
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(self.dialect.request % path.encode())
        sock.setblocking(False)
        self.streams[sock.fileno()] = Stream(sock, self.dialect.opening)
        self._epoll.register(sock, select.EPOLLIN)

    def _poll(self, seconds: float) -> None:
        read = self._read
        streams = self.streams
        for descriptor, _ in self._epoll.poll(seconds):
            read(streams[descriptor])

    def _read(self, stream: Stream) -> None:
        try:
            data = stream.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = time.time_ns()
        if not data:
            self._epoll.unregister(stream.sock)
            self.closed += 1
            return
        if stream.rest:
            data = stream.rest + data
        if not stream.ready and not self._greet(stream, data):
            return
        if self.dialect.ping and self.dialect.ping in data:
            stream.sock.send(self.dialect.pong)
        stream.rest = self._count(stream, data, now)

    def _greet(self, stream: Stream, data: bytes) -> bool:
        if stream.opening and stream.opening[0][0] in data:
            stream.sock.send(stream.opening[0][1])
            stream.opening = stream.opening[1:]
        if self.dialect.ready not in data:
            stream.rest = data
            return False
        stream.ready = True
        self._opened += 1
        return True

    def _count(self, stream: Stream, data: bytes, now: int) -> bytes:
        """Count the events of a read; return what may be the beginning of the next one."""
        if self.take_latency:
            found = STAMPED.findall(data)
            self.latencies_us.extend((now - int(stamp)) / 1000 for stamp, _ in found)
            numbers = [number for _, number in found]
        else:
            numbers = INDEX.findall(data)
        if not numbers:
            return data[-4096:]
        first = stream.next_number
        if numbers == NUMBERS[first : first + len(numbers)]:
            stream.next_number += len(numbers)
        else:
            self._check(stream, numbers)
        self.received += len(numbers)
        self.last_at = time.perf_counter()
        return _after_last(data)

    def _check(self, stream: Stream, numbers: list[bytes]) -> None:
        for number in map(int, numbers):
            if number < stream.next_number:
                self.out_of_order += 1
                continue
            self.lost += number - stream.next_number
            stream.next_number = number + 1


def _after_last(data: bytes) -> bytes:
    """Return what follows the last complete event; a read may end anywhere."""
    at = data.rfind(b'"index"')
    if (last := LAST.match(data, at)) is not None:
        return data[last.end() :]
    return data[data.rfind(b'"text"', 0, at) :]


@contextlib.contextmanager
def attentive() -> Iterator[None]:
    """Let the load read an event as soon as it arrives, before whatever else shares its core.

    Without the right to it (root, or CAP_SYS_NICE) the load takes its turn, and its wait counts as latency.
    """
    before, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(2))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, before, priority)
