"""Visitors: people with a session and an open stream, who speak HTTP through Django's test client."""

import asyncio
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
from channels.layers import channel_layers
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from comm.groups import session_group
from comm.history import Position
from comm.publisher import set_home_loop
from relay.credentials import Credentials
from relay.layers.memory import MemoryChannelLayer
from relay.models import Session
from relay.registry import StreamInfo, add_stream, remove_stream
from relay.sessions import resolve_session


class Told(NamedTuple):
    """One envelope that was published to a session."""

    route: str
    target_sid: str | None
    envelope: dict[str, Any]

    @property
    def type(self) -> str:
        return str(self.envelope["type"])

    @property
    def data(self) -> dict[str, Any]:
        return dict(self.envelope["data"])


class Home:
    """The event loop of a serving process, on a thread of its own, with a channel layer of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="home loop")
        self._layer = MemoryChannelLayer()

    def told(self, session_id: str) -> list[Told]:
        """Return what was published to a session so far."""
        reading = self._layer.group_read(session_group(session_id), Position(0, 0), 1000)
        log = asyncio.run_coroutine_threadsafe(reading, self._loop).result(10)
        return [
            Told(e.message["route"], e.message["target_sid"], msgspec.json.decode(e.message["body"]))
            for e in log.entries
        ]

    @contextmanager
    def open(self) -> Iterator["Home"]:
        """Run the loop; publishes of this process go there."""
        before = channel_layers.set("default", self._layer)
        self._thread.start()
        set_home_loop(self._loop)
        try:
            yield self
        finally:
            set_home_loop(None)
            asyncio.run_coroutine_threadsafe(self._layer.aclose(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()
            if before is None:
                channel_layers.backends.pop("default", None)
            else:
                channel_layers.set("default", before)


class Visitor:
    """Somebody with a session and an open stream; a user's name makes it a login."""

    def __init__(self, home: Home, username: str = "", *, tenant: str = "acme", project: str = "web") -> None:
        self.home = home
        self.client = Client()
        self.headers: dict[str, str] = {}
        credentials = Credentials()
        if username:
            user, _ = User.objects.get_or_create(username=username)
            self.client.force_login(user)
            credentials = Credentials(login_key=self.client.cookies["sessionid"].value)
        self.session: Session = resolve_session(credentials, create=True)
        if not username:
            self.headers["User-Session-ID"] = self.session.session_id
        self.stream_id = str(uuid.uuid4())
        anonymous = self.session.is_anonymous
        self.stream = StreamInfo(self.stream_id, self.session.session_id, tenant, project, anonymous)
        add_stream(self.stream)

    def close_stream(self) -> None:
        """The tab is closed."""
        remove_stream(self.stream)

    def post(self, body: Any, *, content_type: str = "application/json", **headers: str) -> Any:
        """POST a body to /sse/chat as JSON; bytes go as they are."""
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return self.client.post(
            f"/sse/chat?stream_id={self.stream_id}",
            content,
            content_type=content_type,
            headers={**self.headers, **headers},
        )

    def say(self, text: str = "Hello", **message: Any) -> Any:
        """Send a gen-1 message."""
        return self.post({"message": {"text": text, **message}})

    def tell(self, *events: dict[str, Any], **fields: Any) -> Any:
        """Send a gen-2 submission."""
        return self.post({"external_events": list(events), **fields})

    def submit(self, *files: SimpleUploadedFile, **fields: Any) -> Any:
        """POST a multipart form; fields that are no text are written as JSON."""
        form = {
            name: value if isinstance(value, str) else msgspec.json.encode(value).decode()
            for name, value in fields.items()
        }
        return self.client.post(
            f"/sse/chat?stream_id={self.stream_id}", {**form, "files": files}, headers=self.headers
        )

    def ask(self, path: str, body: Any = None) -> Any:
        """POST JSON to any other endpoint."""
        content = b"" if body is None else msgspec.json.encode(body)
        return self.client.post(path, content, content_type="application/json", headers=self.headers)

    def get(self, path: str) -> Any:
        """GET any other endpoint."""
        return self.client.get(path, headers=self.headers)

    def told(self, *types: str) -> list[Told]:
        """What was published to the session so far, of these types or of all."""
        return [told for told in self.home.told(self.session.session_id) if not types or told.type in types]
