"""Which path leads to which consumer."""

from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer
from django.urls import path, re_path
from django.urls.resolvers import URLPattern

from .ingress.bodies import BodyLimit
from .transports.sse import SseConsumer


class NoSuchSocket(AsyncWebsocketConsumer):  # type: ignore[misc]
    """Refuses a WebSocket on a path that has none."""

    async def connect(self) -> None:
        """Close before accepting, which servers answer with 403."""
        await self.close()


def http_urlpatterns(django_application: Any) -> list[URLPattern]:
    """The streams, and Django for everything else."""
    bounded: Any = BodyLimit(django_application)
    return [
        path("sse/stream", SseConsumer.as_asgi()),
        re_path(r"", bounded),
    ]


websocket_urlpatterns = [re_path(r"", NoSuchSocket.as_asgi())]
