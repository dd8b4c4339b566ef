"""Clients of the tests: what a browser's EventSource and a chat page do, in Python."""

import asyncio
import json
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class SseEvent:
    """One server-sent event as the client parsed it."""

    event: str
    data: Any
    id: str | None = None
    retry: int | None = None


def parse_event(lines: list[str]) -> SseEvent | None:
    """Read the lines of one event; a block of comments is none."""
    fields: dict[str, str] = {}
    data: list[str] = []
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name:
            fields[name] = value
    if not data:
        return None
    retry = int(fields["retry"]) if "retry" in fields else None
    return SseEvent(fields.get("event", "message"), json.loads("\n".join(data)), fields.get("id"), retry)


@dataclass
class Stream:
    """An open event stream: read it with `events()`, `until(...)`, or event by event with `next()`."""

    response: httpx.Response
    received: list[SseEvent] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._events = self._read()

    async def _read(self) -> AsyncIterator[SseEvent]:
        buffer = b""
        async for chunk in self.response.aiter_raw():
            buffer += chunk
            while b"\n\n" in buffer:
                block, buffer = buffer.split(b"\n\n", 1)
                lines = block.decode("utf-8").split("\n")
                self.comments += [line for line in lines if line.startswith(":")]
                event = parse_event(lines)
                if event is not None:
                    self.received.append(event)
                    yield event

    async def next(self, timeout: float = 60.0) -> SseEvent:
        """Return the next event; StopAsyncIteration when the stream has ended."""
        # Not wait_for: in Python 3.11 it may swallow a cancellation.
        async with asyncio.timeout(timeout):
            return await anext(self._events)

    async def until(self, predicate: Callable[[SseEvent], bool], timeout: float = 90.0) -> list[SseEvent]:
        """Read up to and with the first event for which the predicate is true; return these events."""
        seen = []
        async with asyncio.timeout(timeout):
            while True:
                event = await anext(self._events)
                seen.append(event)
                if predicate(event):
                    return seen

    async def until_idle(self, timeout: float = 90.0) -> list[SseEvent]:
        """Read to the end of a turn: the conversation's final status."""
        return await self.until(ends_turn, timeout)

    async def rest(self, timeout: float = 60.0) -> list[SseEvent]:
        """Read until the server ends the stream."""
        seen = []
        async with asyncio.timeout(timeout):
            async for event in self._events:
                seen.append(event)
        return seen

    @property
    def last_event_id(self) -> str | None:
        """The id that an EventSource would send when it reconnects."""
        return next((event.id for event in reversed(self.received) if event.id is not None), None)


def ends_turn(event: SseEvent) -> bool:
    """Tell whether this is the last event of a turn."""
    return event.event == "conv_status" and "completion" in event.data["data"]


def text_of(events: list[SseEvent], marker: str = "answer", turn_id: str | None = None) -> str:
    """Concatenate the delta text of one marker, as every client does."""
    return "".join(
        event.data["delta"]["text"]
        for event in events
        if event.event == "chat_delta"
        and event.data["delta"]["marker"] == marker
        and (turn_id is None or event.data["conversation"]["turn_id"] == turn_id)
    )


class ChatClient:
    """One user at one server (which may change): a session, streams and messages."""

    def __init__(
        self, url: str, *, receive_buffer_bytes: int | None = None, headers: dict[str, str] | None = None
    ):
        options = (
            [(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)] if receive_buffer_bytes else None
        )
        self.url = url
        self.stream_id = str(uuid.uuid4())
        self.session_id: str | None = None
        self.http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                socket_options=options, limits=httpx.Limits(max_connections=None)
            ),
            timeout=httpx.Timeout(30, read=60),
            headers=headers,
        )

    async def __aenter__(self) -> "ChatClient":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.http.aclose()

    @asynccontextmanager
    async def stream(
        self, last_event_id: str | None = None, *, stream_id: str | None = None, **query: str
    ) -> AsyncIterator[Stream]:
        """Open the event stream and read its `ready` frame."""
        params = {"stream_id": stream_id or self.stream_id, **query}
        if self.session_id:
            params.setdefault("user_session_id", self.session_id)
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        async with self.http.stream(
            "GET", f"{self.url}/sse/stream", params=params, headers=headers
        ) as response:
            assert response.status_code == 200, (response.status_code, await response.aread())
            stream = Stream(response)
            try:
                ready = await stream.next()
            except StopAsyncIteration:
                raise httpx.RemoteProtocolError("the stream ended before its ready frame") from None
            assert ready.event == "ready"
            self.session_id = ready.data["session_id"]
            yield stream

    async def post(self, body: Any, *, stream_id: str | None = None, **kwargs: Any) -> httpx.Response:
        """POST a raw body to /sse/chat."""
        headers = {
            **({"User-Session-ID": self.session_id} if self.session_id else {}),
            **kwargs.pop("headers", {}),
        }
        return await self.http.post(
            f"{self.url}/sse/chat",
            params={"stream_id": stream_id or self.stream_id},
            headers=headers,
            json=body,
            **kwargs,
        )

    async def send(self, text: str, **message: Any) -> dict[str, Any]:
        """Send a gen-1 message; return its acknowledgement."""
        response = await self.post({"message": {"text": text, **message}})
        assert response.status_code == 200, response.text
        return dict(response.json())
