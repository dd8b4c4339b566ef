"""The SSE transport: accepts a stream, writes its peer's frames, leaves."""

import logging
from collections.abc import Iterable
from io import BytesIO
from typing import Any

from channels.db import database_sync_to_async
from channels.exceptions import StopConsumer
from channels.generic.http import AsyncHttpConsumer
from corsheaders.middleware import CorsMiddleware
from django.core.exceptions import BadRequest as DjangoBadRequest
from django.core.handlers.asgi import ASGIRequest
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse

from comm.envelope import stamp
from comm.history import Position
from relay.conf import relay_settings
from relay.cookies import remember_session
from relay.exceptions import BadRequest, Draining, RelayError, Unavailable
from relay.hub import get_hub
from relay.lifecycle import is_draining
from relay.peers import Peer
from relay.sessions import session_headers

from .frames import KEEPALIVE, Encoder, encode_body, sse_frame, sse_retry
from .opening import Opening, open_stream

logger = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    # A proxy or a middleware that compresses would hold frames back.
    "Content-Encoding": "identity",
    "X-Accel-Buffering": "no",
}

DEFAULT_RETRY_MS = 1000

_cors = CorsMiddleware(lambda request: HttpResponse(status=405, headers={"Allow": "GET, OPTIONS"}))


class SseConsumer(AsyncHttpConsumer):
    """One event stream of one client.

    Everything happens outside `handle()`: while that runs, Channels hears no disconnect, and when it
    returns, the response ends. The hub listens to the channel layer for all streams of the process, so the
    consumer needs no channel of its own. Whatever ends it, `__call__` leaves the hub.
    """

    keepalive = KEEPALIVE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.peer: Peer | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request; a server that cancels us sends no disconnect, so the cleanup is here.

        Without a channel there is one source of messages, so no task is needed to wait for it.
        """
        self.scope = scope
        self.base_send = send
        try:
            while True:
                await self.dispatch(await receive())
        except StopConsumer:
            pass
        finally:
            if self.peer is not None:
                await get_hub().leave(self.peer)

    async def http_request(self, message: Any) -> None:
        """Answer the request: open the stream, or say why not."""
        if message.get("more_body"):
            return
        request = ASGIRequest(self.scope, BytesIO())
        if request.method != "GET":
            response = _cors(request)
            assert isinstance(response, HttpResponse), "the middleware got a synchronous view"
            await self._reply(response)
            raise StopConsumer()
        try:
            await self._open(request)
        except RelayError as error:
            await self._refuse(request, error)
        except (DatabaseError, OSError):
            logger.exception("A stream could not be opened")
            await self._refuse(request, Unavailable("The stream cannot be opened right now.", retry_after=2))

    async def http_disconnect(self, message: Any) -> None:
        """The client has gone, or the response is complete."""
        raise StopConsumer()

    # --- opening ------------------------------------------------------------------------------------

    async def _open(self, request: HttpRequest) -> None:
        if is_draining():
            raise Draining("This server is restarting; connect again in a moment.", retry_after=2)
        try:
            opening = await database_sync_to_async(open_stream)(request, "sse")
        except (DjangoBadRequest, UnicodeError) as error:
            raise BadRequest("query", "the query string cannot be read") from error
        self.peer = _peer_of(self, opening)
        tail = await get_hub().join(self.peer, opening.last_event_id)
        response = HttpResponse(headers={**STREAM_HEADERS, **session_headers(opening.session)})
        if opening.session.is_anonymous and _session_cookie(request) != opening.session.session_id:
            remember_session(response, opening.session)
        _cors.add_response_headers(request, response)
        await self.send_headers(headers=_headers_of(response))
        self.peer.begin(tail)
        if is_draining():
            # It began while we joined: the others have been told already.
            self.peer.say_goodbye(DEFAULT_RETRY_MS)

    async def _refuse(self, request: HttpRequest, error: RelayError) -> None:
        rendered = error.render()
        response = HttpResponse(rendered.body, status=rendered.status, headers=rendered.headers)
        _cors.add_response_headers(request, response)
        await self._reply(response)
        raise StopConsumer()

    async def _reply(self, response: HttpResponse) -> None:
        response.headers["Content-Length"] = str(len(response.content))
        await self.send_response(response.status_code, response.content, headers=_headers_of(response))

    @property
    def encode(self) -> Encoder:
        """Server-sent events."""
        return sse_frame

    # --- what the peer asks of its wire ---------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        """Write frames; waits while the client's socket is full."""
        await self.base_send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self) -> None:
        """End the response."""
        await self.base_send({"type": "http.response.body", "body": b"", "more_body": False})

    def ready(self, peer: Peer, resume: dict[str, Any], position: Position) -> bytes:
        """Return the `ready` frame; its id is where the stream starts, so that even it can be resumed from."""
        timestamp, _ = stamp()
        body = {
            "session_id": peer.session_id,
            "user_type": peer.user_type,
            "stream_id": peer.stream_id,
            "tenant": peer.tenant,
            "project": peer.project,
            "project_events": peer.project_events,
            "timestamp": timestamp,
            "resume": resume,
        }
        return sse_frame("ready", encode_body(body), position)

    def goodbye(self, peer: Peer, retry_after_ms: int) -> bytes:
        """Return the `server_shutdown` frame; without an id, it moves no position."""
        timestamp, _ = stamp()
        body = {
            "reason": "draining",
            "session_id": peer.session_id,
            "stream_id": peer.stream_id,
            "timestamp": timestamp,
            "retry_after_ms": retry_after_ms,
        }
        return sse_retry(retry_after_ms) + sse_frame("server_shutdown", encode_body(body), None)


def _peer_of(wire: SseConsumer, opening: Opening) -> Peer:
    return Peer(
        wire,
        session_id=opening.session.session_id,
        user_type=opening.session.user_type,
        stream_id=opening.stream_id,
        tenant=opening.tenant,
        project=opening.project,
        project_events=opening.project_events,
    )


def _session_cookie(request: HttpRequest) -> str | None:
    return request.COOKIES.get(relay_settings().SESSION_COOKIE_NAME)


def _headers_of(response: HttpResponse) -> Headers:
    headers: Iterable[tuple[str, str]] = response.items()
    encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    cookies = [
        (b"set-cookie", cookie.OutputString().encode("latin-1")) for cookie in response.cookies.values()
    ]
    return encoded + cookies
