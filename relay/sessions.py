"""Which session a request belongs to, by the rules of the wire contract."""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal

from django.utils import timezone

from .conf import relay_settings
from .credentials import Credentials, Identity, identify
from .exceptions import AnonymousRejected, SessionForbidden, SessionRequired, SessionUnknown
from .models import Session
from .registry import find_streams
from .tickets import redeem_ticket

Transport = Literal["sse", "ws", "http"]
"""`http` is for endpoints that stand beside the transports, such as /profile."""

SEEN_EVERY = timedelta(minutes=5)
"""How exact `last_seen_at` is: not every request is worth a write."""


def resolve_session(credentials: Credentials, *, create: bool, transport: Transport = "sse") -> Session:
    """Return the session that the credentials belong to; `create` makes an anonymous one where there is none.

    Errors: TokenInvalid, SessionUnknown, SessionRequired, AnonymousRejected (401), SessionForbidden (403).
    """
    return session_of(identify(credentials), credentials, create=create, transport=transport)


def sessions_named(names: Iterable[str]) -> dict[str, Session]:
    """Return those sessions of these names that there are, in one query."""
    return Session.objects.in_bulk([name for name in names if name])


def session_of(
    identity: Identity | None,
    credentials: Credentials,
    *,
    create: bool,
    transport: Transport = "sse",
    known: Mapping[str, Session] | None = None,
) -> Session:
    """Return the session of an identity (None is an anonymous caller); errors as for resolve_session.

    `known` are the `sessions_named` of the name in these credentials, where a caller asked for many at once.
    """
    named = _named(credentials.session_id, known)
    if identity is not None:
        return _session_of_user(identity, named)
    if named is not None and not named.is_anonymous:
        raise SessionForbidden("This session belongs to a user; log in as that user to use it.")
    _refuse_anonymous(transport)
    session = named or _by_cookie(credentials.cookie_session_id) or _by_stream(credentials.stream_id)
    if session is not None:
        return _seen(session)
    if not create:
        raise SessionRequired(
            "No session: send a token, a User-Session-ID header or the session cookie, "
            "or name an open stream of an anonymous session."
        )
    return Session.objects.create(session_id=_new_id(), fingerprint=credentials.fingerprint)


def session_by_ticket(credentials: Credentials, transport: Transport) -> Session:
    """Return the session of a ticket, which decides alone.

    Errors: TicketInvalid, AnonymousRejected (401), SessionForbidden (403).
    """
    session = redeem_ticket(credentials.ticket)
    if credentials.session_id not in ("", session.session_id):
        raise SessionForbidden("The ticket is of another session than the one that is named.")
    if session.is_anonymous:
        _refuse_anonymous(transport)
    return _seen(session)


def redeemed(credentials: Credentials, session: Session) -> tuple[Credentials, Identity | None]:
    """Return what stands for the ticket that has opened a session, when the same connection opens it again."""
    if session.is_anonymous:
        return replace(credentials, ticket="", session_id=session.session_id), None
    roles, permissions = tuple(session.roles), tuple(session.permissions)
    identity = Identity(str(session.user_id), session.username, session.user_type, roles, permissions)
    return replace(credentials, ticket=""), identity


def session_headers(session: Session) -> dict[str, str]:
    """The two headers of every reply whose session is known."""
    return {"X-Session-ID": session.session_id, "X-User-Type": session.user_type}


def profile_of(session: Session) -> dict[str, Any]:
    """What /profile says; here, and only here, user types are written in upper case."""
    created_at = session.created_at.isoformat()
    user_type = session.user_type.upper()
    if session.is_anonymous:
        return {
            "session_id": session.session_id,
            "user_type": user_type,
            "fingerprint": session.fingerprint,
            "created_at": created_at,
        }
    return {
        "session_id": session.session_id,
        "user_type": user_type,
        "user_id": session.user_id,
        "username": session.username,
        "roles": session.roles,
        "permissions": session.permissions,
        "created_at": created_at,
    }


def _new_id() -> str:
    return str(uuid.uuid4())


def _named(session_id: str, known: Mapping[str, Session] | None) -> Session | None:
    if not session_id:
        return None
    session = (sessions_named([session_id]) if known is None else known).get(session_id)
    if session is None:
        raise SessionUnknown("There is no such session; open one without naming it, or log in.")
    return session


def _session_of_user(identity: Identity, named: Session | None) -> Session:
    """Return the user's one session, made on first sight, with what the credentials now say of the user.

    A named anonymous session is left alone: upgrading it would let whoever planted its id read along.
    """
    if named is not None and not named.is_anonymous and named.user_id != identity.user_id:
        raise SessionForbidden("This session belongs to another user.")
    known: dict[str, Any] = {
        "user_type": identity.user_type,
        "username": identity.username,
        "roles": list(identity.roles),
        "permissions": list(identity.permissions),
    }
    session, _ = Session.objects.get_or_create(
        user_id=identity.user_id, defaults={"session_id": _new_id(), **known}
    )
    return _seen(session, known)


def _by_cookie(session_id: str) -> Session | None:
    """The anonymous session of our cookie; a cookie that outlived its session is none."""
    if not session_id:
        return None
    return Session.objects.filter(session_id=session_id, user_id=None).first()


def _by_stream(stream_id: str) -> Session | None:
    """The anonymous session of an open stream; one id open in two of them proves neither."""
    if len(stream_id) < relay_settings().STREAM_ID_LENGTH_TRUSTED:
        return None
    owners = {stream.session_id for stream in find_streams(stream_id) if stream.anonymous}
    return _by_cookie(owners.pop()) if len(owners) == 1 else None


def _refuse_anonymous(transport: Transport) -> None:
    conf = relay_settings()
    closed = {"sse": conf.REJECT_ANONYMOUS_SSE, "ws": conf.REJECT_ANONYMOUS_WS, "http": False}
    if closed[transport]:
        raise AnonymousRejected("Anonymous sessions are not admitted here; log in first.")


def _seen(session: Session, known: Mapping[str, Any] | None = None) -> Session:
    """Write down what changed about a session, which mostly is nothing."""
    changed = {name: value for name, value in (known or {}).items() if getattr(session, name) != value}
    now = timezone.now()
    if now - session.last_seen_at > SEEN_EVERY:
        changed["last_seen_at"] = now
    if changed:
        Session.objects.filter(pk=session.pk).update(**changed)
        for name, value in changed.items():
            setattr(session, name, value)
    return session
