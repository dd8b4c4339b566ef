"""django-eventstream with its Redis; `send_event` is synchronous, and called so, without the cost of a thread."""

import os
from urllib.parse import urlsplit

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.urls import include, path

from .events import delta

_redis = urlsplit(os.environ["REDIS_URL"])
settings.configure(
    SECRET_KEY="benchmark", ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, USE_TZ=True,
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django_eventstream"],
    EVENTSTREAM_REDIS={"host": _redis.hostname, "port": _redis.port, "db": int(_redis.path.strip("/") or 0)},
)  # fmt: skip
django.setup()

from django_eventstream import send_event  # noqa: E402

urlpatterns = [path("sse/stream", include("django_eventstream.urls"))]


async def publish(session: str, number: int, text: str) -> None:
    """Send one event."""
    send_event(session, "chat_delta", delta(session, number, text))


application = get_asgi_application()
