"""One client for every transport: what it receives looks alike, however it travels."""

import asyncio
import json
import uuid
from abc import ABC, abstractmethod
from typing import Any

import engineio.payload
import httpx
import socketio
import websockets
from websockets.asyncio.client import ClientConnection, connect

from tests.clients import SseEvent, Stream, ends_turn

# What a browser's client takes without a limit.
engineio.payload.Payload.max_decode_packets = 1000


class Receiver(ABC):
    """One open stream of a session; `received` holds every event so far, `ready` the first."""

    def __init__(self, url: str, *, session_id: str = "", last_event_id: str = "", **scope: str) -> None:
        self.url = url
        self.session_id = session_id
        self.last_event_id = last_event_id
        self.scope = scope
        self.stream_id = str(uuid.uuid4())
        self.received: list[SseEvent] = []
        self._arrived = asyncio.Event()
        self._taken = 0
        self.ended = asyncio.Event()

    async def __aenter__(self) -> "Receiver":
        await self.open()
        ready = (await self.until("ready"))[-1]
        self.session_id = ready.data["session_id"]
        self.ready = ready.data
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def says(self) -> dict[str, str]:
        """What is asked of the stream."""
        asked = {"stream_id": self.stream_id, "user_session_id": self.session_id, **self.scope}
        return {
            name: value for name, value in {**asked, "last_event_id": self.last_event_id}.items() if value
        }

    def take(self, event: str, data: Any, id: str | None) -> None:
        self.received.append(SseEvent(event, data, id))
        if id is not None:
            self.last_event_id = id
        self._arrived.set()

    async def next(self, timeout: float = 15.0) -> SseEvent:
        async with asyncio.timeout(timeout):
            while self._taken >= len(self.received):
                self._arrived.clear()
                await self._arrived.wait()
        self._taken += 1
        return self.received[self._taken - 1]

    @property
    def unread(self) -> bool:
        """Whether something has come that `next` has not returned yet."""
        return self._taken < len(self.received)

    async def until(self, what: str, timeout: float = 30.0) -> list[SseEvent]:
        """Return the events up to the first of a route or type; `idle` is the end of a turn."""
        seen = []
        async with asyncio.timeout(timeout):
            while True:
                seen.append(event := await self.next(timeout))
                kind = event.data.get("type") if isinstance(event.data, dict) else None
                if what in (event.event, kind) or (what == "idle" and ends_turn(event)):
                    return seen

    async def send(self, text: str = "go", **message: Any) -> dict[str, Any]:
        """Send a message by this stream's own way; return its acknowledgement."""
        return await self._submit({"message": {"text": text, **message}})

    async def play(self, *lines: dict[str, Any]) -> dict[str, Any]:
        """Let the script bundle say these lines."""
        return await self.send(payload=list(lines))

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    async def abort(self) -> None:
        """Go without a word."""

    @abstractmethod
    async def _submit(self, body: dict[str, Any]) -> dict[str, Any]: ...


class Sse(Receiver):
    """Server-sent events, and POST."""

    async def open(self) -> None:
        self.http = httpx.AsyncClient(timeout=httpx.Timeout(30, read=120))
        last = self.says.get("last_event_id")
        request = self.http.build_request(
            "GET",
            f"{self.url}/sse/stream",
            params={k: v for k, v in self.says.items() if k != "last_event_id"},
            headers={"Last-Event-ID": last} if last else {},
        )
        self.response = await self.http.send(request, stream=True)
        if self.response.status_code != 200:
            await self.response.aread()
            await self.http.aclose()
            detail = self.response.json()["detail"]
            raise ConnectionRefusedError(detail["error_type"] if isinstance(detail, dict) else detail)
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        stream = Stream(self.response)
        try:
            while True:
                event = await stream.next(120)
                self.take(event.event, event.data, event.id)
        except (StopAsyncIteration, httpx.HTTPError):
            self.ended.set()

    async def close(self) -> None:
        self.reading.cancel()
        await asyncio.gather(self.reading, return_exceptions=True)
        await self.response.aclose()
        await self.http.aclose()

    async def abort(self) -> None:
        await self.close()

    async def _submit(self, body: dict[str, Any]) -> dict[str, Any]:
        response = await self.http.post(
            f"{self.url}/sse/chat",
            params={"stream_id": self.stream_id},
            headers={"User-Session-ID": self.session_id},
            json=body,
        )
        return {"ok": response.status_code == 200, **response.json()}


class WebSocket(Receiver):
    """The native WebSocket."""

    socket: ClientConnection

    async def open(self) -> None:
        url = self.url.replace("http", "ws", 1)
        self._acks: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.socket = await connect(f"{url}/ws/stream?stream_id={self.stream_id}", max_size=None)
        await self.socket.send(json.dumps({"type": "auth", **self.says}))
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for text in self.socket:
                frame = json.loads(text)
                if frame.get("type") == "ack":
                    self._acks.pop(frame["id"]).set_result(frame)
                elif "event" in frame and frame["event"] != "keepalive":
                    self.take(frame["event"], frame["data"], frame.get("id"))
        finally:
            self.ended.set()

    async def close(self) -> None:
        self.reading.cancel()
        await asyncio.gather(self.reading, return_exceptions=True)
        await self.socket.close()

    async def abort(self) -> None:
        self.socket.transport.abort()
        await asyncio.gather(self.reading, return_exceptions=True)

    async def _submit(self, body: dict[str, Any]) -> dict[str, Any]:
        number = len(self._acks) + id(body)
        answer = self._acks[number] = asyncio.get_running_loop().create_future()
        await self.socket.send(json.dumps({"type": "chat_message", "id": number, "data": body}))
        return await asyncio.wait_for(answer, 15)


class SocketIo(Receiver):
    """Socket.IO."""

    transport = "websocket"

    async def open(self) -> None:
        self.client = socketio.AsyncClient(reconnection=False)
        self.client.on("*", self._took)
        self.client.on("disconnect", self._gone)
        refused: list[Any] = []
        self.client.on("connect_error", refused.append)
        try:
            await self.client.connect(self.url, auth=self.says, transports=[self.transport], wait_timeout=5)
        except socketio.exceptions.ConnectionError as error:
            raise ConnectionRefusedError(
                refused[0]["data"]["error_type"] if refused else str(error)
            ) from None

    async def _took(self, event: str, data: Any = None, *rest: Any) -> None:
        if event not in ("session_info", "pong"):
            self.take(event, data, data.get("id"))

    async def _gone(self, *reason: Any) -> None:
        self.ended.set()

    async def close(self) -> None:
        await self.client.disconnect()

    async def abort(self) -> None:
        if self.transport == "websocket":
            self.client.eio.ws._response.connection.transport.abort()
        await self.client.disconnect()

    async def _submit(self, body: dict[str, Any]) -> dict[str, Any]:
        return dict(await self.client.call("chat_message", body, timeout=15))


class SocketIoPolling(SocketIo):
    """Socket.IO by polling."""

    transport = "polling"


TRANSPORTS: dict[str, type[Receiver]] = {
    "sse": Sse, "websocket": WebSocket, "socketio": SocketIo, "socketio-polling": SocketIoPolling,
}  # fmt: skip


__all__ = ["TRANSPORTS", "Receiver", "websockets"]
