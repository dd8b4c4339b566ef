"""Mounting: consumers and Django as applications that project/asgi.py puts together."""

from typing import Any

from channels.consumer import AsyncConsumer
from channels.generic.websocket import AsyncWebsocketConsumer

from .ingress.bodies import BodyLimit


class NoSuchSocket(AsyncWebsocketConsumer):
    """Refuses a WebSocket on a path that has none."""

    async def connect(self) -> None:
        """Close before accepting, which servers answer with 403."""
        await self.close()


def mounted(consumer: type[AsyncConsumer]) -> Any:
    """Return a consumer as an ASGI application, for path()."""
    # path() is typed for views; Channels' URLRouter calls what it finds as an ASGI application.
    return consumer.as_asgi()


def bounded(django_application: Any) -> Any:
    """Return Django behind the limit of request bodies, for path()."""
    return BodyLimit(django_application)
