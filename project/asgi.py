"""Where HTTP and WebSocket are put together; the entry point of every ASGI server."""

import os
from typing import Any

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
django_application = get_asgi_application()

from relay import lifecycle  # noqa: E402 - Django must be set up first
from relay.routing import http_urlpatterns, websocket_urlpatterns  # noqa: E402

routes = ProtocolTypeRouter(
    {
        "http": URLRouter([*http_urlpatterns(django_application)]),
        "websocket": URLRouter(websocket_urlpatterns),
    }
)


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer lifespan ourselves (Channels' router rejects it), and everything else by protocol and path."""
    if scope["type"] == "lifespan":
        await lifecycle.lifespan(receive, send)
        return
    await lifecycle.start_with_first_request()
    await routes(scope, receive, send)
