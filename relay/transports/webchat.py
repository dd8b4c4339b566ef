"""The web chat channel, `/chat/ws/{conversation_id}`: one conversation on a WebSocket, in the words of its clients."""

import asyncio
import uuid
from collections import deque
from typing import Any

import msgspec
from django.http import HttpRequest

from comm.bundles.registry import bundle_ids
from comm.envelope import ANSWER
from comm.history import Position
from relay.conf import relay_settings
from relay.credentials import Credentials, Identity
from relay.exceptions import BadRequest, RelayError
from relay.hub import get_hub
from relay.ingress.bodies import RawSubmission
from relay.ingress.checking import check_storable, convert, identifier
from relay.ingress.upstream import Upstream
from relay.lifecycle import is_draining
from relay.models import Session
from relay.peers import Peer

from .frames import Encoder, encode_body
from .greeting import DEFAULT_RETRY_MS, GOODBYE
from .opening import Asked, admit, peer_of
from .sockets import CloseSocket, SocketConsumer

NOT_AUTHENTICATED = 4001
BAD_FRAME = 4400
DRAINING = 4503
TRUSTED_PREFIX = "webchat:"
"""Keeps who merely says who they are apart from users who proved it: a claimed id never opens their session."""
CONVERSATIONS = 100
"""Conversations that one socket may speak in."""
AUTHOR_CHARACTERS = 150
TIMED_OUT = "Agent did not respond in time. Please try again."
TYPING = encode_body({"type": "typing"})


class _Auth(msgspec.Struct):
    """The first message."""

    userId: str | None = None
    role: str | None = None
    tenantId: str | None = None
    token: str | None = None
    last_event_id: str | None = None


class _Said(msgspec.Struct):
    """A message of the user."""

    text: str | None = None
    agentId: str | None = None
    conversationId: str | None = None
    displayName: str | None = None


class _Service(msgspec.Struct):
    tenant: str = ""


class _Conversation(msgspec.Struct):
    conversation_id: str = ""
    turn_id: str = ""


class _Delta(msgspec.Struct):
    text: str
    marker: str


class _Heard(msgspec.Struct):
    """What this channel looks at of an envelope."""

    service: _Service
    conversation: _Conversation
    type: str = ""
    data: dict[str, Any] = {}
    delta: _Delta | None = None


_decoder = msgspec.json.Decoder(_Heard)


class WebChatConsumer(SocketConsumer):
    """One web chat socket.

    The first message must be auth. Each message of the user is answered by `typing` at once, by a `chunk` for
    each delta of the answer, and by `done` or `error`; every socket on the conversation gets those, `typing`
    goes to the sender. Turns run and are saved whether or not a socket is open.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.request: HttpRequest
        self.upstream: Upstream | None = None
        self.tenant = ""
        self.greets = False
        self._conversations: set[str] = set()
        self._awaited: dict[str, float] = {}
        """Turn id → until when the next sign of its answer is waited for."""
        self._ended: deque[str] = deque(maxlen=CONVERSATIONS)

    @property
    def bad_frame_code(self) -> int:  # type: ignore[override]
        """Until it has introduced itself, whatever a client does wrong is that."""
        return NOT_AUTHENTICATED if self.upstream is None else BAD_FRAME

    async def accepted(self, request: HttpRequest) -> None:
        """Keep the handshake, whose cookies may prove who this is."""
        self.request = request

    def refusal(self, sentence: str) -> bytes:
        """Say why the socket closes."""
        return _error(sentence)

    # --- auth -----------------------------------------------------------------------------------------

    async def heard(self, message: dict[str, Any]) -> None:
        """Take the auth, then messages; other types are ignored."""
        if self.upstream is None:
            if message.get("type") != "auth":
                raise CloseSocket(NOT_AUTHENTICATED, "First message must be auth")
            await self._authenticate(message)
        elif message.get("type") == "message":
            await self.say(TYPING)
            try:
                await self._take(message)
            except RelayError as error:
                await self.say(_error(str(error)))

    async def _authenticate(self, message: dict[str, Any]) -> None:
        try:
            check_storable(message)
            auth: _Auth = convert(message, _Auth, "")
            self._conversations.add(identifier(self._own_conversation, "conversation_id"))
            if not (auth.userId and auth.tenantId):
                raise CloseSocket(NOT_AUTHENTICATED, "Missing userId or tenantId in auth")
            user_id, self.tenant = _uuid(auth.userId, "userId"), _uuid(auth.tenantId, "tenantId")
            await self._open(auth, user_id)
        except RelayError as error:
            raise CloseSocket(NOT_AUTHENTICATED, str(error)) from None

    async def _open(self, auth: _Auth, user_id: str) -> None:
        credentials = Credentials.from_request(self.request).presenting(auth.token, None, None, None)
        identity = None
        if not auth.token and relay_settings().WEBCHAT_TRUST_IDS:
            credentials, identity = Credentials(), _trusted(user_id, auth.role or "")
        asked = Asked(stream_id=str(uuid.uuid4()), tenant=self.tenant, last_event_id=auth.last_event_id or "")
        opening = await admit(asked, credentials, "ws", identity)
        if opening.session.is_anonymous:
            raise BadRequest("token", "is missing; this server believes no ids without one")
        self.greets = opening.last_event_id is not None
        self.peer = peer_of(self, opening)
        self.upstream = Upstream(opening, self.peer)
        tail = await get_hub().join(self.peer, opening.last_event_id)
        self.peer.begin(tail)
        if is_draining():
            self.peer.say_goodbye(DEFAULT_RETRY_MS)

    # --- messages -------------------------------------------------------------------------------------

    async def _take(self, message: dict[str, Any]) -> None:
        """Hand a message in. Errors: RelayError."""
        assert self.upstream is not None
        check_storable(message)
        said: _Said = convert(message, _Said, "")
        conversation_id = identifier(said.conversationId, "conversationId") or self._own_conversation
        if conversation_id not in self._conversations and len(self._conversations) >= CONVERSATIONS:
            raise BadRequest("conversationId", f"is one too many; a socket may speak in {CONVERSATIONS}")
        # Before the message is taken: its first chunk may be here before its acknowledgement is.
        self._conversations.add(conversation_id)
        body = {
            "text": said.text or "",
            "conversation_id": conversation_id,
            "bundle_id": said.agentId if said.agentId in bundle_ids() else "",
            "tenant": self.tenant,
        }
        author = identifier(said.displayName, "displayName", AUTHOR_CHARACTERS)
        answer = await self.upstream.chat_message(lambda: RawSubmission({"message": body}), author)
        if not answer["ok"]:
            await self.say(_error(answer["error"]))
        elif answer["turn_id"] not in self._ended:
            self._awaited[answer["turn_id"]] = self._deadline()

    @property
    def _own_conversation(self) -> str:
        return str(self.scope["url_route"]["kwargs"]["conversation_id"])

    # --- waiting --------------------------------------------------------------------------------------

    def patience_seconds(self) -> float | None:
        """Until the auth, until the next answer is due, or for ever."""
        if self.upstream is None:
            return relay_settings().SOCKET_AUTH_SECONDS
        if not self._awaited:
            return None
        return max(0.0, min(self._awaited.values()) - asyncio.get_running_loop().time())

    async def waited(self) -> None:
        """Tell of answers that are overdue; their turns go on, and are saved when they end."""
        if self.upstream is None:
            limit = relay_settings().SOCKET_AUTH_SECONDS
            raise CloseSocket(NOT_AUTHENTICATED, f"No auth came within {limit:g} seconds.")
        now = asyncio.get_running_loop().time()
        for turn_id in [turn_id for turn_id, due in self._awaited.items() if due <= now]:
            del self._awaited[turn_id]
            await self.say(_error(TIMED_OUT))

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + relay_settings().WEBCHAT_TIMEOUT_SECONDS

    # --- the way down ---------------------------------------------------------------------------------

    @property
    def encode(self) -> Encoder:
        """What this channel's clients are told of an envelope; nothing for most."""
        return self._told

    def _told(self, route: str, body: bytes, position: Position | None) -> bytes:
        heard = _decoder.decode(body)
        where = heard.conversation
        if where.conversation_id not in self._conversations or heard.service.tenant != self.tenant:
            return b""
        told = self._worded(route, heard)
        if told is None:
            return b""
        return encode_body({**told, "id": str(position)} if position is not None else told)

    def _worded(self, route: str, heard: _Heard) -> dict[str, Any] | None:
        turn_id, data = heard.conversation.turn_id, heard.data
        if turn_id in self._awaited:
            self._awaited[turn_id] = self._deadline()
        if route == "chat_delta" and heard.delta is not None:
            is_answer = heard.delta.marker == ANSWER and heard.delta.text
            return {"type": "chunk", "text": heard.delta.text} if is_answer else None
        if heard.type == "queue.followup_absorbed":
            self._follow(str(data.get("queued_turn_id")), str(data.get("active_turn_id")))
        elif route == "chat_complete":
            self._end(turn_id)
            text = str(data.get("final_answer") or "")
            return {"type": "done", "text": text, "conversation_id": heard.conversation.conversation_id}
        elif route == "chat_error" and turn_id:
            # One without a turn is the refusal of a message, which its sender is told of anyway.
            self._end(turn_id)
            return {"type": "error", "message": str(data.get("error") or "Something went wrong.")}
        return None

    def _follow(self, absorbed: str, active: str) -> None:
        """A running turn has read the message of another: that one's end is now the answer's."""
        if self._awaited.pop(absorbed, None) is not None and active not in self._ended:
            self._awaited[active] = self._deadline()
        self._ended.append(absorbed)

    def _end(self, turn_id: str) -> None:
        self._awaited.pop(turn_id, None)
        self._ended.append(turn_id)

    def ready(self, peer: Peer, resume: dict[str, Any], position: Position) -> list[bytes]:
        """Greet who resumes, or has lost something; other clients of this channel know no greeting."""
        if not self.greets and resume["outcome"] != "reset":
            return []
        return [encode_body({"type": "ready", "id": str(position), "resume": resume})]

    def goodbye(self, peer: Peer, retry_after_ms: int) -> bytes:
        """Announce the drain."""
        self.goodbye_code = DRAINING
        return encode_body({"type": GOODBYE, "retry_after_ms": retry_after_ms})


def _trusted(user_id: str, role: str) -> Identity:
    user_type = relay_settings().WEBCHAT_ROLES.get(role, str(Session.UserType.REGISTERED))
    return Identity(TRUSTED_PREFIX + user_id, "", user_type, (role,) if role else ())


def _uuid(text: str, field: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise CloseSocket(NOT_AUTHENTICATED, f"Invalid UUID format in auth: {field}") from None


def _error(sentence: str) -> bytes:
    return encode_body({"type": "error", "message": sentence})
