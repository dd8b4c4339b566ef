"""Publishing the events of a workload, inside the server's process or in one of its own.

Each event carries its number in its session and the wall-clock time at which it was handed to publish.
"""

import asyncio
import ctypes
import json
import os
import struct
import time
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

PADDING = "x" * 256
"""Brings an envelope to some 700 bytes, as deltas with their contexts are."""
WRITERS = 64
"""How many turns write at once at full speed, each awaiting every publish: the default of TURN_CONCURRENCY."""

Publish = Callable[[str, int, str], Awaitable[Any]]
"""Publishes one event: session, number, text."""


async def emit(publish: Publish, sessions: list[str], events: int, rate: float) -> dict[str, float]:
    """Publish events round robin over the sessions; `rate` 0 is full speed. Return what it took."""
    began, cpu = time.perf_counter(), time.process_time()
    if rate:
        await _paced(publish, sessions, events, rate)
    else:
        await _at_once(publish, sessions, events)
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}


async def _one(publish: Publish, sessions: list[str], number: int) -> None:
    text = f"@{time.time_ns()}@{PADDING}"
    await publish(sessions[number % len(sessions)], number // len(sessions), text)


async def _at_once(publish: Publish, sessions: list[str], events: int) -> None:
    """Let the writers share the sessions; each writes its sessions' events in order, one awaited after the other."""
    writers = min(WRITERS, len(sessions))

    async def write(writer: int) -> None:
        for row in range(0, events, len(sessions)):
            for number in range(row + writer, min(row + len(sessions), events), writers):
                await _one(publish, sessions, number)

    await asyncio.gather(*(write(writer) for writer in range(writers)))


async def _paced(publish: Publish, sessions: list[str], events: int, rate: float) -> None:
    """Start each publish at its time, whether or not the one before has been answered: the turns are many.

    With WRITERS publishes on their way the pace is lost: more turns do not run at once.
    """
    tasks: set[asyncio.Task[None]] = set()
    began = time.perf_counter()
    number = 0
    with Ticks(1 / rate) as ticks:
        while number < events:
            await ticks.next()
            due = min(events, int((time.perf_counter() - began) * rate), number + WRITERS - len(tasks))
            for one in range(number, due):
                task = asyncio.ensure_future(_one(publish, sessions, one))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            number = max(number, due)
        await asyncio.gather(*tasks)


class Ticks:
    """A timer of the kernel: event loops round what they wait for up to a millisecond, which is four events."""

    def __init__(self, seconds: float) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK)
        nanoseconds = int(seconds * 1e9)
        every = divmod(nanoseconds, 1_000_000_000)
        libc.timerfd_settime(self._descriptor, 0, struct.pack("@qqqq", *every, *every), None)
        self._ticked = asyncio.Event()

    def __enter__(self) -> "Ticks":
        asyncio.get_running_loop().add_reader(self._descriptor, self._tick)
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _tick(self) -> None:
        os.read(self._descriptor, 8)
        self._ticked.set()

    async def next(self) -> None:
        """Wait for the next tick."""
        await self._ticked.wait()
        self._ticked.clear()


class Control:
    """Answers `/bench/emit` beside the measured application, where the producer is inside its process."""

    def __init__(self, application: Any, publish: Publish) -> None:
        self.application = application
        self.publish = publish

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/bench/emit":
            await self.application(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        query = dict(urllib.parse.parse_qsl(scope["query_string"].decode()))
        self.emitting = asyncio.create_task(
            emit(self.publish, json.loads(body), int(query["events"]), float(query["rate"]))
        )
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
