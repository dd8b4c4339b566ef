"""Where HTTP, WebSocket and Socket.IO are put together; the entry point of every ASGI server."""

import os
from typing import Any

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path, re_path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
django_application = get_asgi_application()

from relay import lifecycle  # noqa: E402 - Django must be set up first
from relay.pacing import paced  # noqa: E402
from relay.routing import NoSuchSocket, bounded, mounted  # noqa: E402
from relay.transports.chatbot import ChatbotConsumer, chatbot_streams  # noqa: E402
from relay.transports.opening import admissions  # noqa: E402
from relay.transports.socketio import SocketIoTransport  # noqa: E402
from relay.transports.sse import SseConsumer  # noqa: E402
from relay.transports.webchat import WebChatConsumer  # noqa: E402
from relay.transports.websocket import WebSocketConsumer  # noqa: E402

socketio = SocketIoTransport()
lifecycle.closes(socketio)
lifecycle.closes(chatbot_streams)
lifecycle.closes(admissions)

routes = ProtocolTypeRouter(
    {
        "http": URLRouter(
            [
                path("sse/stream", mounted(SseConsumer)),
                path("socket.io/", socketio.application),
                path("api/chatbot/start/stream", mounted(ChatbotConsumer)),
                re_path(r"", bounded(django_application)),
            ]
        ),
        "websocket": URLRouter(
            [
                path("ws/stream", mounted(WebSocketConsumer)),
                path("chat/ws/<str:conversation_id>", mounted(WebChatConsumer)),
                path("socket.io/", socketio.application),
                re_path(r"", mounted(NoSuchSocket)),
            ]
        ),
    }
)


@paced
async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer lifespan ourselves (Channels' router rejects it), and everything else by protocol and path."""
    if scope["type"] == "lifespan":
        await lifecycle.lifespan(receive, send)
        return
    await lifecycle.start_with_first_request()
    await routes(scope, receive, send)
