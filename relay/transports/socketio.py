"""The Socket.IO transport: python-socketio speaks the protocol, our hub fans out; there is no client manager."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import socketio
from django.core.files.uploadedfile import SimpleUploadedFile, UploadedFile
from django.http import HttpRequest, HttpResponse
from socketio.exceptions import ConnectionRefusedError as Refused

from comm.envelope import stamp
from comm.history import Position
from relay.conf import MIB, relay_settings
from relay.credentials import Credentials
from relay.exceptions import BadRequest, Draining, MessageTooLarge, RelayError
from relay.gateway import DRAINING_RETRY_SECONDS
from relay.hub import get_hub
from relay.ingress.attachments import safe_name
from relay.ingress.bodies import RawSubmission
from relay.ingress.parsing import FileHint, announced_files
from relay.ingress.upstream import Answer, Upstream, refusal_of
from relay.lifecycle import is_draining
from relay.peers import Peer

from .frames import Encoder, encode_body, socketio_frame
from .greeting import DEFAULT_RETRY_MS, GOODBYE, READY, goodbye_body, ready_body
from .opening import Asked, Opening, admit, auth_payload, check_stream_id, peer_of, request_of
from .origins import origin_allowed
from .packets import NOT_PACKETS, GuardedServer, Oversized
from .responses import headers_of

logger = logging.getLogger(__name__)

BUFFER_BYTES = 64 * MIB
"""The largest packet, or polling request, that is read: a whole message with its files in base64 is below it,
so that what is too large is refused in our words."""


BAD_PACKET = 4400
POLLED_PACKETS = 12
"""Packets of ours in one polling response: clients in Python refuse one with more than 16."""


@dataclass(slots=True)
class Client:
    """One connected client: its peer, and its way up."""

    peer: Peer
    upstream: Upstream


class SocketIoWire:
    """Writes one client's frames as packets. The engine's queue is never given more than one write at a time."""

    keepalive = b""

    def __init__(self, server: GuardedServer, sid: str, opening: Opening) -> None:
        self._server = server
        self._eio_sid: str = server.manager.eio_sid_from_sid(sid, "/")
        self._opening = opening
        self._greeted = False

    @property
    def encode(self) -> Encoder:
        """EVENT packets."""
        return socketio_frame

    async def write(self, frames: Sequence[bytes]) -> None:
        """Queue frames for the client, once it has taken those of the write before."""
        engine = self._server.eio.sockets.get(self._eio_sid)
        if engine is None or engine.closed:
            raise ConnectionResetError("the client has gone")
        at_once = len(frames) if engine.upgraded else POLLED_PACKETS
        for start in range(0, len(frames), at_once):
            if not engine.queue.empty():
                await engine.queue.join()
            for frame in frames[start : start + at_once]:
                await self._server.eio.send(self._eio_sid, frame.decode())

    async def finish(self) -> None:
        """Close the connection: a client of the protocol then connects again by itself."""
        self._server.end(self._eio_sid)

    def ready(self, peer: Peer, resume: dict[str, Any], position: Position) -> list[bytes]:
        """Return `ready`, and the first time also `session_info`."""
        frames = [socketio_frame(READY, encode_body(ready_body(peer, resume)), position)]
        if not self._greeted:
            self._greeted = True
            frames.append(socketio_frame("session_info", encode_body(self._session_info(peer)), None))
        return frames

    def goodbye(self, peer: Peer, retry_after_ms: int) -> bytes:
        """Return the `server_shutdown` packet."""
        return socketio_frame(GOODBYE, encode_body(goodbye_body(peer, retry_after_ms)), None)

    def _session_info(self, peer: Peer) -> dict[str, Any]:
        session = self._opening.session
        return {
            "session_id": session.session_id,
            "user_type": session.user_type,
            "user_id": session.user_id,
            "username": session.username,
            "project": peer.project,
            "tenant": peer.tenant,
            "connected_at": stamp()[0],
        }


class SocketIoTransport:
    """Socket.IO beside the other transports, on the same hub, sessions and service. `aclose` ends it."""

    def __init__(self) -> None:
        self._server = GuardedServer(
            cors_allowed_origins=_origin_allowed,
            max_http_buffer_size=BUFFER_BYTES,
            ping_interval=relay_settings().KEEPALIVE_SECONDS,
        )
        self._clients: dict[str, Client] = {}
        self._protocol = socketio.ASGIApp(self._server, socketio_path="socket.io")
        for name, handler in {
            "connect": self._connect,
            "disconnect": self._disconnect,
            "chat_message": self._chat_message,
            "conv_status.get": self._conversation_state,
            "ping": self._ping,
            "*": self._unknown,
        }.items():
            self._server.on(name, handler)

    async def application(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request or WebSocket below /socket.io/.

        While the process drains a new connection is refused here: a client tries again by itself then, which it
        does not after a connect_error.
        """
        if is_draining() and b"sid=" not in scope.get("query_string", b""):
            await _refuse_draining(scope, send)
            return
        if scope["type"] != "http":
            try:
                await self._protocol(scope, receive, send)
            except NOT_PACKETS as error:
                logger.info("A client sent what is no packet (%s); its socket is closed", error)
                await send({"type": "websocket.close", "code": BAD_PACKET})
            return
        event = await _in_one_piece(receive)

        async def receive_again() -> Any:
            nonlocal event
            first, event = event, None
            return await receive() if first is None else first

        await self._protocol(scope, receive_again, send)

    async def aclose(self) -> None:
        """Stop; the streams have had their goodbye."""
        await self._server.aclose()

    # --- coming and going -----------------------------------------------------------------------------

    async def _connect(self, sid: str, environ: dict[str, Any], auth: Any = None) -> None:
        try:
            asked, credentials, name = _asked(request_of(environ["asgi.scope"]), auth, sid)
            opening = await admit(asked, credentials, "ws")
        except RelayError as error:
            raise Refused(str(error), {**error.detail(), "status": error.status}) from None
        peer = peer_of(SocketIoWire(self._server, sid, opening), opening, *([name] if name else []))
        self._clients[sid] = Client(peer, Upstream(opening, peer))
        try:
            tail = await get_hub().join(peer, opening.last_event_id)
        except RelayError as error:
            await self._disconnect(sid)
            raise Refused(str(error), {**error.detail(), "status": error.status}) from None
        except BaseException:
            await self._disconnect(sid)
            raise
        # The library queues its answer to this connect before the loop comes to run it.
        asyncio.get_running_loop().call_soon(_begin, peer, tail)

    async def _disconnect(self, sid: str, reason: str = "") -> None:
        client = self._clients.pop(sid, None)
        if client is not None:
            await get_hub().leave(client.peer)

    # --- what clients send ----------------------------------------------------------------------------

    async def _chat_message(self, sid: str, document: Any = None, *files: Any) -> Answer:
        client = self._clients.get(sid)
        if client is None:
            return _gone()
        return await client.upstream.chat_message(lambda: _submission(document, files))

    async def _conversation_state(self, sid: str, document: Any = None, *rest: Any) -> Answer:
        client = self._clients.get(sid)
        return _gone() if client is None else await client.upstream.conversation_state(document)

    async def _ping(self, sid: str, *ignored: Any) -> Answer:
        body = {"timestamp": stamp()[0]}
        client = self._clients.get(sid)
        if client is not None:
            client.peer.say(socketio_frame("pong", encode_body(body), None))
            await client.peer.has_room()
        return {"ok": True, **body}

    async def _unknown(self, event: str, sid: str, *ignored: Any) -> Answer:
        known = "chat_message, conv_status.get, ping"
        return refusal_of(BadRequest("event", f"is {event!r:.60}; expected one of {known}"))


async def _refuse_draining(scope: Any, send: Any) -> None:
    if scope["type"] != "http":
        # Before it is accepted, which servers answer with 403.
        await send({"type": "websocket.close", "code": 4503})
        return
    refusal = Draining(
        "This server is restarting; connect again in a moment.", retry_after=DRAINING_RETRY_SECONDS
    )
    status, headers, body = refusal.render()
    response = HttpResponse(body, status=status, headers=headers)
    await send({"type": "http.response.start", "status": status, "headers": headers_of(response)})
    await send({"type": "http.response.body", "body": body})


async def _in_one_piece(receive: Any) -> Any:
    """Return a request's body as one event: the library joins pieces by copying all of them each time.

    Past the limit the rest is left to the library, which then refuses it by its length.
    """
    event = await receive()
    pieces, size = [event.get("body", b"")], len(event.get("body", b""))
    while event["type"] == "http.request" and event.get("more_body") and size <= BUFFER_BYTES:
        event = await receive()
        pieces.append(event.get("body", b""))
        size += len(pieces[-1])
    return event if event["type"] != "http.request" else {**event, "body": b"".join(pieces)}


def _origin_allowed(origin: str, environ: dict[str, Any]) -> bool:
    return origin_allowed(request_of(environ["asgi.scope"]))


def _asked(request: HttpRequest, auth: Any, sid: str) -> tuple[Asked, Credentials, str]:
    """Return what a client asks for, who it says it is, and the stable name that it has beside its sid."""
    payload = auth_payload(auth)
    asked = Asked.from_request(request).overlaid(payload)
    name = asked.stream_id.strip()
    if name:
        check_stream_id(name)
    credentials = Credentials.from_request(request).presenting(
        payload.bearer_token, payload.id_token, payload.ticket, payload.user_session_id
    )
    return replace(asked, stream_id=sid), credentials, name


def _begin(peer: Peer, tail: Any) -> None:
    peer.begin(tail)
    if is_draining():
        peer.say_goodbye(DEFAULT_RETRY_MS)


def _gone() -> Answer:
    return refusal_of(BadRequest("connection", "has ended; connect again"))


# --- a message and its files --------------------------------------------------------------------------


def _submission(document: Any, arguments: Sequence[Any]) -> RawSubmission:
    """Return what came as one: the message's object, and one binary argument for each of its files.

    Errors: BadRequest, MessageTooLarge.
    """
    hints = announced_files(document)
    if len(hints) > len(arguments):
        raise BadRequest("attachment_meta", f"names {len(hints)} files, but {len(arguments)} came")
    if any(isinstance(argument, Oversized) for argument in arguments):
        limit = relay_settings().MESSAGE_BYTES // MIB
        raise MessageTooLarge(f"The message is too large; text and files may have {limit} MiB together.")
    files: list[UploadedFile[Any]] = [
        _upload(number, argument, hints[number] if number < len(hints) else FileHint())
        for number, argument in enumerate(arguments)
    ]
    key = document.get("idempotency_key") if isinstance(document, dict) else None
    return RawSubmission(document, files=files, idempotency_key=key)


def _upload(number: int, content: Any, hint: FileHint) -> SimpleUploadedFile:
    if not isinstance(content, bytes):
        raise BadRequest(f"argument {number + 2}", "is not binary; after the message come its files")
    return SimpleUploadedFile(safe_name(hint.filename or f"attachment-{number + 1}"), content, hint.mime)
