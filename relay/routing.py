"""Which path leads to which consumer."""

from typing import Any

from channels.consumer import AsyncConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from django.urls import path, re_path
from django.urls.resolvers import URLPattern

from .ingress.bodies import BodyLimit
from .transports.sse import SseConsumer
from .transports.websocket import WebSocketConsumer


class NoSuchSocket(AsyncWebsocketConsumer):
    """Refuses a WebSocket on a path that has none."""

    async def connect(self) -> None:
        """Close before accepting, which servers answer with 403."""
        await self.close()


def http_urlpatterns(django_application: Any) -> list[URLPattern]:
    """The streams, and Django for everything else."""
    bounded: Any = BodyLimit(django_application)
    return [
        path("sse/stream", _mounted(SseConsumer)),
        re_path(r"", bounded),
    ]


def _mounted(consumer: type[AsyncConsumer]) -> Any:
    # path() is typed for views; Channels' URLRouter calls what it finds as an ASGI application.
    return consumer.as_asgi()


websocket_urlpatterns = [
    path("ws/stream", _mounted(WebSocketConsumer)),
    re_path(r"", _mounted(NoSuchSocket)),
]
