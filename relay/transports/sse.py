"""The SSE transport: accepts a stream, writes its peer's frames, leaves."""

import logging
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from channels.consumer import get_handler_name
from channels.exceptions import StopConsumer
from channels.generic.http import AsyncHttpConsumer
from corsheaders.middleware import CorsMiddleware
from django.core.exceptions import BadRequest as DjangoBadRequest
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse

from comm.history import Position
from relay.conf import relay_settings
from relay.cookies import remember_session
from relay.credentials import Credentials
from relay.exceptions import BadRequest, RelayError
from relay.hub import get_hub
from relay.lifecycle import is_draining
from relay.peers import Peer
from relay.sessions import session_headers

from .frames import KEEPALIVE, Encoder, encode_body, sse_frame, sse_retry
from .greeting import DEFAULT_RETRY_MS, GOODBYE, READY, goodbye_body, ready_body
from .opening import Asked, admit, peer_of
from .responses import STREAM_HEADERS, headers_of

logger = logging.getLogger(__name__)

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
                message = await receive()
                # Not dispatch(): it visits the database's thread at each message, and nothing here holds a connection.
                await getattr(self, get_handler_name(message))(message)
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

    async def http_disconnect(self, message: Any) -> None:
        """The client has gone, or the response is complete."""
        raise StopConsumer()

    # --- opening ------------------------------------------------------------------------------------

    async def _open(self, request: HttpRequest) -> None:
        opening = await admit(*_asked(request), "sse")
        self.peer = peer_of(self, opening)
        tail = await get_hub().join(self.peer, opening.last_event_id)
        response = HttpResponse(headers={**STREAM_HEADERS, **session_headers(opening.session)})
        if opening.session.is_anonymous and _session_cookie(request) != opening.session.session_id:
            remember_session(response, opening.session)
        _cors.add_response_headers(request, response)
        await self.send_headers(headers=headers_of(response))
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
        await self.send_response(response.status_code, response.content, headers=headers_of(response))

    @property
    def encode(self) -> Encoder:
        """Server-sent events."""
        return sse_frame

    # --- what the peer asks of its wire ---------------------------------------------------------------

    async def write(self, frames: Sequence[bytes]) -> None:
        """Write frames in one go; waits while the client's socket is full."""
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        await self.base_send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self) -> None:
        """End the response."""
        await self.base_send({"type": "http.response.body", "body": b"", "more_body": False})

    def ready(self, peer: Peer, resume: dict[str, Any], position: Position) -> list[bytes]:
        """Return the `ready` frame; its id is where the stream starts, so that even it can be resumed from."""
        return [sse_frame(READY, encode_body(ready_body(peer, resume)), position)]

    def goodbye(self, peer: Peer, retry_after_ms: int) -> bytes:
        """Return the `server_shutdown` frame; without an id, it moves no position."""
        body = encode_body(goodbye_body(peer, retry_after_ms))
        return sse_retry(retry_after_ms) + sse_frame(GOODBYE, body, None)


def _asked(request: HttpRequest) -> tuple[Asked, Credentials]:
    try:
        return Asked.from_request(request), Credentials.from_request(request, query_tokens=True)
    except (DjangoBadRequest, UnicodeError) as error:
        raise BadRequest("query", "the query string cannot be read") from error


def _session_cookie(request: HttpRequest) -> str | None:
    return request.COOKIES.get(relay_settings().SESSION_COOKIE_NAME)
