"""Opening a stream: what a connecting client asks for, checked, and the session that it gets."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import msgspec
from django.core.exceptions import BadRequest as DjangoBadRequest
from django.core.handlers.asgi import ASGIRequest
from django.db import DatabaseError
from django.http import HttpRequest

from comm.conf import comm_settings
from relay import gateway
from relay.clocks import Clock, read_clock
from relay.credentials import Credentials, Identity, identify
from relay.exceptions import BadRequest, StreamIdRequired, Unavailable
from relay.ingress.checking import check_storable, convert
from relay.models import Session
from relay.peers import Peer, Wire
from relay.sessions import Transport, session_by_ticket, session_of, sessions_named
from relay.together import Together

logger = logging.getLogger(__name__)

STREAM_ID_CHARACTERS = 200
SCOPE_CHARACTERS = 100


class AuthPayload(msgspec.Struct):
    """What a client may say when it introduces itself in a message, where it could not set headers."""

    bearer_token: str | None = None
    id_token: str | None = None
    ticket: str | None = None
    user_session_id: str | None = None
    tenant: str | None = None
    project: str | None = None
    stream_id: str | None = None
    last_event_id: str | None = None
    project_events: bool | int | str | None = None
    user_timezone: str | None = None
    user_utc_offset_min: int | str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks of its stream, wherever it said so; an empty string is a thing that it did not."""

    stream_id: str = ""
    tenant: str = ""
    project: str = ""
    project_events: str = ""
    last_event_id: str = ""
    timezone: str = ""
    utc_offset_min: str = ""

    @classmethod
    def from_request(cls, request: HttpRequest) -> "Asked":
        """Read the query; for the position, the header wins, since a browser that reconnects sends both."""
        query = request.GET
        return cls(
            stream_id=query.get("stream_id", ""),
            tenant=query.get("tenant", ""),
            project=query.get("project", ""),
            project_events=query.get("project_events", ""),
            last_event_id=request.headers.get("Last-Event-ID") or query.get("last_event_id", ""),
            timezone=query.get("user_timezone", ""),
            utc_offset_min=query.get("user_utc_offset_min", ""),
        )

    def overlaid(self, payload: AuthPayload) -> "Asked":
        """Return the same with what an auth message says, which wins."""
        said = {
            "stream_id": payload.stream_id,
            "tenant": payload.tenant,
            "project": payload.project,
            "project_events": payload.project_events,
            "last_event_id": payload.last_event_id,
            "timezone": payload.user_timezone,
            "utc_offset_min": payload.user_utc_offset_min,
        }
        return replace(self, **{name: str(value) for name, value in said.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Opening:
    """One admitted stream: whose it is, what it is called, what it wants to see, and its user's clock."""

    session: Session
    stream_id: str
    tenant: str
    project: str
    project_events: bool
    last_event_id: str | None
    clock: Clock


def request_of(scope: Mapping[str, Any]) -> HttpRequest:
    """Return the request that opens a stream, as Django reads it; a WebSocket's handshake is a GET."""
    return ASGIRequest({**scope, "type": "http", "method": scope.get("method", "GET")}, BytesIO())


def auth_payload(value: Any, field: str = "auth") -> AuthPayload:
    """Check an auth message; none at all is an empty one. Errors: BadRequest."""
    if value is None:
        return AuthPayload()
    check_storable(value, (field,))
    payload: AuthPayload = convert(value, AuthPayload, field)
    return payload


async def admit(
    asked: Asked, credentials: Credentials, transport: Transport, identity: Identity | None = None
) -> Opening:
    """Check what a client asks for and find its session, made when there is none.

    `identity` is whose it is where that is known already; else the credentials say so.
    Errors: Draining and Unavailable (503), StreamIdRequired (422), BadRequest (400), and those of
    relay.sessions.session_of.
    """
    gateway.refuse_when_draining()
    try:
        return await admissions.ask(_Knock(asked, credentials, transport, identity))
    except (DjangoBadRequest, UnicodeError) as error:
        raise BadRequest("query", "the query string cannot be read") from error
    except (DatabaseError, OSError) as error:
        logger.exception("A stream could not be opened")
        raise Unavailable("The stream cannot be opened right now.", retry_after=2) from error


@dataclass(frozen=True, slots=True)
class _Knock:
    """What `admit` was asked."""

    asked: Asked
    credentials: Credentials
    transport: Transport
    identity: Identity | None


def _admit_all(knocks: list[_Knock]) -> list[Opening | Exception]:
    known = sessions_named({knock.credentials.session_id for knock in knocks})
    openings: list[Opening | Exception] = []
    for knock in knocks:
        try:
            openings.append(_admit(knock, known))
        except Exception as error:  # noqa: BLE001 - it is for whoever knocked, who maps and logs it
            openings.append(error)
    return openings


admissions = Together(_admit_all)
"""Clients that connect at once are admitted together: after a restart all of them come back."""


def _admit(knock: _Knock, known: Mapping[str, Session]) -> Opening:
    conf = comm_settings()
    asked = knock.asked
    stream_id = asked.stream_id.strip()
    if not stream_id:
        raise StreamIdRequired("stream_id: required; the client names its stream, best with a random UUID")
    check_stream_id(stream_id)
    tenant, project = _scope(asked.tenant, "tenant"), _scope(asked.project, "project")
    return Opening(
        session=_session(knock, known),
        stream_id=stream_id,
        tenant=tenant or conf.DEFAULT_TENANT,
        project=project or conf.DEFAULT_PROJECT,
        project_events=asked.project_events.strip().lower() in ("1", "true", "yes", "on"),
        last_event_id=asked.last_event_id or None,
        clock=read_clock(asked.timezone, asked.utc_offset_min),
    )


def _session(knock: _Knock, known: Mapping[str, Session]) -> Session:
    credentials, identity = knock.credentials, knock.identity
    if credentials.ticket and identity is None:
        return session_by_ticket(credentials, knock.transport)
    identity = identity or identify(credentials)
    return session_of(identity, credentials, create=True, transport=knock.transport, known=known)


def check_stream_id(stream_id: str) -> None:
    """Raise StreamIdRequired for what cannot name a stream."""
    if len(stream_id) > STREAM_ID_CHARACTERS or not stream_id.isprintable():
        raise StreamIdRequired(f"stream_id: at most {STREAM_ID_CHARACTERS} printable characters")


def _scope(text: str, name: str) -> str:
    value = text.strip()
    if len(value) > SCOPE_CHARACTERS or not value.isprintable():
        raise BadRequest(name, f"at most {SCOPE_CHARACTERS} printable characters")
    return value


def peer_of(wire: Wire, opening: Opening, *sids: str) -> Peer:
    """Return the peer of an admitted stream; `sids` are other names under which it can be reached."""
    return Peer(
        wire,
        session_id=opening.session.session_id,
        user_type=opening.session.user_type,
        stream_id=opening.stream_id,
        tenant=opening.tenant,
        project=opening.project,
        project_events=opening.project_events,
        sids=sids,
    )
