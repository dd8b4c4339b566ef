"""A server that cancels a transport sends no disconnect; the hub is left all the same."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from channels.layers import channel_layers

from relay.hub import Hub, get_hub
from relay.layers.memory import MemoryChannelLayer
from relay.transports.socketio import SocketIoTransport
from relay.transports.sse import SseConsumer
from relay.transports.webchat import WebChatConsumer
from relay.transports.websocket import WebSocketConsumer
from tests.waiting import aeventually

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
async def hub(settings: Any) -> AsyncIterator[Hub]:
    """The process's hub, on a layer of its own."""
    settings.RELAY = {"WEBCHAT_TRUST_IDS": True}
    before = channel_layers.set("default", MemoryChannelLayer())
    hub = get_hub()
    await hub.start()
    yield hub
    await hub.aclose()
    if before is None:
        channel_layers.backends.pop("default", None)
    else:
        channel_layers.set("default", before)


class Server:
    """The server's side of one connection, by hand: what the client sends, and what it was sent."""

    def __init__(self, application: Any, scope: dict[str, Any], *events: dict[str, Any]) -> None:
        self.sent: list[dict[str, Any]] = []
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for event in events:
            self._events.put_nowait(event)
        headers = [(b"host", b"testserver"), (b"upgrade", b"websocket"), (b"connection", b"upgrade")]
        whole = {"headers": headers, "client": ["127.0.0.1", 1], "path": "/", "query_string": b"", **scope}
        self.task = asyncio.create_task(application(whole, self._events.get, self._send))

    async def _send(self, event: dict[str, Any]) -> None:
        self.sent.append(event)


def websocket(path: str, application: Any, query: str, *texts: str, **scope: Any) -> Server:
    events = [{"type": "websocket.connect"}, *({"type": "websocket.receive", "text": text} for text in texts)]
    return Server(
        application, {"type": "websocket", "path": path, "query_string": query.encode(), **scope}, *events
    )


def open_sse() -> Server:
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/sse/stream",
        "query_string": f"stream_id={uuid.uuid4()}".encode(),
    }
    return Server(SseConsumer.as_asgi(), scope, {"type": "http.request", "body": b"", "more_body": False})


def open_websocket() -> Server:
    query = f"stream_id={uuid.uuid4()}"
    return websocket("/ws/stream", WebSocketConsumer.as_asgi(), query, '{"type": "auth"}')


def open_webchat() -> Server:
    auth = {"type": "auth", "userId": str(uuid.uuid4()), "tenantId": str(uuid.uuid4())}
    route = {"url_route": {"kwargs": {"conversation_id": "c1"}}}
    return websocket("/chat/ws/c1", WebChatConsumer.as_asgi(), "", json.dumps(auth), **route)


def open_socketio() -> Server:
    transport = SocketIoTransport()
    server = websocket("/socket.io/", transport.application, "EIO=4&transport=websocket", "40")
    server.transport = transport  # type: ignore[attr-defined]
    return server


@pytest.mark.parametrize("open_stream", [open_sse, open_websocket, open_webchat, open_socketio])
@pytest.mark.parametrize("how", ["cancelled", "told"])
async def test_a_cancelled_transport_leaves_the_hub(
    hub: Hub, open_stream: Callable[[], Server], how: str
) -> None:
    server = open_stream()
    await aeventually(lambda: len(list(hub.peers())) == 1, what="the peer")
    assert hub.groups
    if how == "cancelled":
        server.task.cancel()
    else:
        kind = "http.disconnect" if open_stream is open_sse else "websocket.disconnect"
        server._events.put_nowait({"type": kind, "code": 1006})
    await asyncio.gather(server.task, return_exceptions=True)
    await aeventually(lambda: list(hub.peers()) == [], what="the peer's end")
    assert hub.groups == []
    if transport := getattr(server, "transport", None):
        await transport.aclose()
