"""The plain recipe: one consumer and one channel per connection, in a group, on Channels' own in-memory layer.

The stream is written by the handler of the layer's messages, outside `handle()`, so that it works at all.
"""

import json
import os
from typing import Any

from channels.exceptions import StopConsumer
from channels.generic.http import AsyncHttpConsumer
from channels.layers import get_channel_layer
from channels.routing import URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.recipe_settings"
get_asgi_application()

from benchmarks.emitting import Control  # noqa: E402


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
    data = {
        "type": "chat.delta", "service": {"tenant": "default", "project": "default", "user_type": "anonymous"},
        "conversation": {"session_id": session, "conversation_id": "conversation", "turn_id": "turn"},
        "event": {"agent": "assistant", "step": "stream", "status": "running", "title": ""}, "data": {},
        "delta": {"text": text, "index": number, "marker": "answer", "completed": False},
    }  # fmt: skip
    await get_channel_layer().group_send(f"chat-{session}", {"type": "chat.event", "data": data})


async def lifespan_free(scope: Any, receive: Any, send: Any) -> None:
    """Serve the stream; there is nothing to start."""
    if scope["type"] == "http":
        await URLRouter([path("sse/stream", PlainConsumer.as_asgi())])(scope, receive, send)


application = Control(lifespan_free, publish)
