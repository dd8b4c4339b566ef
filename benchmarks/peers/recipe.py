"""The plain recipe, as Channels' tutorial writes it: a consumer per connection, each with a channel in a group.

The stream is written by the handler of the layer's messages, outside `handle()`, so that it works at all. The
layer is the one that this module's settings name.
"""

import json
from typing import Any

from channels.exceptions import StopConsumer
from channels.generic.http import AsyncHttpConsumer
from channels.layers import get_channel_layer
from channels.routing import URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.urls import path

from .events import delta


def configure(layer: dict[str, Any]) -> None:
    """Set Django up with nothing but Channels on this layer."""
    settings.configure(
        SECRET_KEY="benchmark",
        ALLOWED_HOSTS=["*"],
        INSTALLED_APPS=["channels"],
        CHANNEL_LAYERS={"default": layer},
    )
    get_asgi_application()


class PlainConsumer(AsyncHttpConsumer):
    """A stream as tutorials write it."""

    group = ""

    async def http_request(self, message: Any) -> None:
        """Join the group and begin the response."""
        query = self.scope["query_string"].decode()
        self.group = "chat-" + query.partition("user_session_id=")[2].partition("&")[0]
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.send_headers(
            headers=[(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        )
        await self.send_body(b"event: ready\ndata: {}\n\n", more_body=True)

    async def chat_event(self, message: Any) -> None:
        """Write one event of the group."""
        data = json.dumps(message["data"])
        await self.send_body(f"event: chat_delta\ndata: {data}\n\n".encode(), more_body=True)

    async def http_disconnect(self, message: Any) -> None:
        """Leave the group."""
        await self.channel_layer.group_discard(self.group, self.channel_name)
        raise StopConsumer()


async def publish(session: str, number: int, text: str) -> None:
    """Send one event to a session's group."""
    data = delta(session, number, text)
    await get_channel_layer().group_send(f"chat-{session}", {"type": "chat.event", "data": data})


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Serve the stream; there is nothing to start."""
    if scope["type"] == "http":
        await URLRouter([path("sse/stream", PlainConsumer.as_asgi())])(scope, receive, send)
