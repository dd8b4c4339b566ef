"""What the measured servers share: producing events inside the server process, on request.

Each event carries its number and the wall-clock time at which it was handed to publish.
"""

import asyncio
import json
import time
import urllib.parse
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

STATM = Path("/proc/self/statm")
PADDING = "x" * 256
"""Brings an envelope to some 700 bytes, as deltas with their contexts are."""

Publish = Callable[[str, int, str], Awaitable[Any]]
"""Publishes one event: session, number, text."""


async def emit(publish: Publish, sessions: list[str], events: int, rate: float) -> dict[str, float]:
    """Publish events round robin over the sessions; `rate` 0 is full speed. Return what it took."""
    began, cpu = time.perf_counter(), time.process_time()
    for number in range(events):
        if rate:
            ahead = began + number / rate - time.perf_counter()
            if ahead > 0.0005:
                await asyncio.sleep(ahead)
        session = sessions[number % len(sessions)]
        await publish(session, number // len(sessions), f"@{time.time_ns()}@{PADDING}")
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}


class Control:
    """Answers `/bench/...` beside the measured application: start emitting, read CPU and memory."""

    def __init__(self, application: Any, publish: Publish) -> None:
        self.application = application
        self.publish = publish
        self.emitting: asyncio.Task[dict[str, float]] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/bench/"):
            await self.application(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        query = dict(urllib.parse.parse_qsl(scope["query_string"].decode()))
        answer = json.dumps(await self.answer(scope["path"], query, body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def answer(self, path: str, query: dict[str, str], body: bytes) -> dict[str, Any]:
        """Do what a control request asks for."""
        if path == "/bench/emit":
            sessions = json.loads(body)
            work = emit(self.publish, sessions, int(query["events"]), float(query["rate"]))
            self.emitting = asyncio.create_task(work)
        elif path == "/bench/emitted" and self.emitting is not None:
            return await self.emitting
        pages = int(STATM.read_text(encoding="ascii").split()[1])  # noqa: ASYNC240
        return {"cpu_seconds": time.process_time(), "rss_kib": pages * 4}
