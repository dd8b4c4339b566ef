"""The native WebSocket transport, `/ws/stream`: the SSE stream's frames, and the way up on the same socket."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from django.http import HttpRequest

from comm.envelope import stamp
from comm.history import Position
from relay.conf import relay_settings
from relay.credentials import Credentials, Identity
from relay.exceptions import BadRequest, RelayError
from relay.hub import get_hub
from relay.ingress.bodies import RawSubmission
from relay.ingress.upstream import Upstream, refusal_of
from relay.lifecycle import is_draining
from relay.peers import Peer
from relay.sessions import redeemed

from .frames import Encoder, encode_body, websocket_frame
from .greeting import DEFAULT_RETRY_MS, GOODBYE, READY, goodbye_body, ready_body
from .opening import Asked, AuthPayload, Opening, admit, auth_payload, peer_of
from .sockets import CloseSocket, SocketConsumer

KEEPALIVE = b'{"event":"keepalive"}'

CLOSE_CODES = {400: 4400, 401: 4401, 403: 4403, 413: 4413, 422: 4400, 503: 4503}
NOT_AUTHENTICATED = 4401
NO_AUTH = 4408
DRAINING = 4503

_json = msgspec.json.Encoder()


class WebSocketConsumer(SocketConsumer):
    """One native WebSocket.

    A client whose query, headers or cookies say who it is, or where it resumes, is served at once; any other
    introduces itself by `{"type": "auth", …}`, which may be empty: then as nobody. An auth as the first message
    always counts: it opens the stream anew, as whom it names, after the last event that was sent before.
    Messages are answered by an acknowledgement with their `id`.
    """

    keepalive = KEEPALIVE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.request: HttpRequest
        self.upstream: Upstream | None = None
        self._introduced = False
        self._opening: Opening | None = None

    # --- opening --------------------------------------------------------------------------------------

    async def accepted(self, request: HttpRequest) -> None:
        """Open the stream now, or wait for the client to introduce itself."""
        self.request = request
        asked, credentials = self._asked(AuthPayload())
        if asked.last_event_id or credentials.says_who:
            await self._open(asked, credentials)

    def patience_seconds(self) -> float | None:
        """A socket without a stream is not kept for long."""
        return relay_settings().SOCKET_AUTH_SECONDS if self.peer is None else None

    async def waited(self) -> None:
        """Nobody introduced themselves."""
        raise CloseSocket(
            NO_AUTH, f"No auth message came within {relay_settings().SOCKET_AUTH_SECONDS:g} seconds."
        )

    def _asked(self, payload: AuthPayload) -> tuple[Asked, Credentials]:
        try:
            asked = Asked.from_request(self.request).overlaid(payload)
            credentials = Credentials.from_request(self.request, query_tokens=True)
        except UnicodeError:
            raise CloseSocket(CLOSE_CODES[400], "The query string cannot be read.") from None
        return asked, credentials.presenting(
            payload.bearer_token, payload.id_token, payload.ticket, payload.user_session_id
        )

    async def _open(
        self,
        asked: Asked,
        credentials: Credentials,
        identity: Identity | None = None,
        before: tuple[str, Position] | None = None,
    ) -> None:
        try:
            tail = await self._join(await admit(asked, credentials, "ws", identity), before)
        except RelayError as error:
            raise CloseSocket(CLOSE_CODES.get(error.status, CLOSE_CODES[400]), str(error)) from None
        assert self.peer is not None
        self.peer.begin(tail)
        if is_draining():
            self.peer.say_goodbye(DEFAULT_RETRY_MS)

    async def _join(self, opening: Opening, before: tuple[str, Position] | None) -> Callable[[], Position]:
        self._opening = opening
        self.peer = peer_of(self, opening)
        self.upstream = Upstream(opening, self.peer)
        last_event_id = opening.last_event_id
        if before is not None and before[0] == self.peer.session_id and last_event_id is None:
            last_event_id = str(before[1])
        return await get_hub().join(self.peer, last_event_id)

    async def _open_anew(
        self, asked: Asked, credentials: Credentials, identity: Identity | None = None
    ) -> None:
        """Open the stream in the place of the one that is open, where there is one."""
        before = self.peer
        if before is None:
            await self._open(asked, credentials, identity)
            return
        written = await before.retire()
        await get_hub().leave(before)
        await self._open(asked, credentials, identity, (before.session_id, written))

    # --- the way up -----------------------------------------------------------------------------------

    async def heard(self, message: dict[str, Any]) -> None:
        """Answer one message of the client."""
        kind = message.get("type")
        if not isinstance(kind, str):
            raise CloseSocket(CLOSE_CODES[400], 'The frame needs a string "type".')
        if kind == "auth":
            await self._authenticate(message)
        elif self.upstream is None:
            raise CloseSocket(NOT_AUTHENTICATED, "The first message must be auth.")
        else:
            self._introduced = True
            handler = self._handlers.get(kind)
            answer = await handler(self, message) if handler else _unknown(kind)
            await self.say(_json.encode({"type": "ack", "id": message.get("id"), **answer}))

    async def _authenticate(self, message: dict[str, Any]) -> None:
        if self._introduced:
            raise CloseSocket(CLOSE_CODES[400], "auth comes first, and once.")
        self._introduced = True
        try:
            payload = auth_payload({name: value for name, value in message.items() if name != "type"})
        except BadRequest as error:
            raise CloseSocket(CLOSE_CODES[400], str(error)) from None
        asked, credentials = self._asked(payload)
        if self._opening is not None and credentials.ticket and not payload.ticket:
            # The ticket of the URL is used up: it has opened the stream that is open.
            await self._open_anew(asked, *redeemed(credentials, self._opening.session))
        else:
            await self._open_anew(asked, credentials)

    async def _chat_message(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self.upstream is not None
        document = message.get("data")
        key = document.get("idempotency_key") if isinstance(document, dict) else None
        return await self.upstream.chat_message(lambda: RawSubmission(document, idempotency_key=key))

    async def _conversation_state(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self.upstream is not None
        return await self.upstream.conversation_state(message.get("data"))

    async def _ping(self, message: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "timestamp": stamp()[0]}

    _handlers: dict[str, Callable[["WebSocketConsumer", dict[str, Any]], Awaitable[dict[str, Any]]]] = {
        "chat_message": _chat_message,
        "conv_status.get": _conversation_state,
        "ping": _ping,
    }

    def refusal(self, sentence: str) -> bytes:
        """Say why the socket closes: not every server passes a close frame's reason on."""
        return _json.encode({"type": "error", "error": sentence})

    # --- the way down ---------------------------------------------------------------------------------

    @property
    def encode(self) -> Encoder:
        """JSON text with the route and the position beside the envelope."""
        return websocket_frame

    def ready(self, peer: Peer, resume: dict[str, Any], position: Position) -> list[bytes]:
        """Return the `ready` frame."""
        return [websocket_frame(READY, encode_body(ready_body(peer, resume)), position)]

    def goodbye(self, peer: Peer, retry_after_ms: int) -> bytes:
        """Return the `server_shutdown` frame."""
        self.goodbye_code = DRAINING
        return websocket_frame(GOODBYE, encode_body(goodbye_body(peer, retry_after_ms)), None)


def _unknown(kind: str) -> dict[str, Any]:
    known = ", ".join(("auth", *WebSocketConsumer._handlers))
    return refusal_of(BadRequest("type", f"is {kind!r:.60}; expected one of {known}"))
