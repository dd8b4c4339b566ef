"""Credentials: what a request carries to say who it is, and who that turns out to be.

A request becomes `Credentials` (this module knows the names of headers, cookies and parameters), an
authenticator makes them an `Identity`, and relay.sessions makes that a session.
"""

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Protocol

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, load_backend
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import AbstractUser
from django.contrib.sessions.backends.base import SessionBase
from django.http import HttpRequest
from django.utils.crypto import constant_time_compare, salted_hmac
from django.utils.module_loading import import_string

from .conf import relay_settings
from .exceptions import TokenInvalid
from .models import Session

VALUE_CHARACTERS = 8192
"""Longer than any token that a server takes in a header; what is longer is no credential."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client presented; an empty string is a thing that it did not.

    `session_id` was named by the client (header or query), `cookie_session_id` came with our cookie,
    `login_key` is the key of a Django session. `token_by_cookie` says that the tokens came in cookies. `stream_id`
    is set where it may stand for an anonymous session, which is on POST. `fingerprint` tells devices apart for
    people, it proves nothing.
    """

    bearer_token: str = ""
    id_token: str = ""
    token_by_cookie: bool = False
    ticket: str = ""
    session_id: str = ""
    cookie_session_id: str = ""
    login_key: str = ""
    stream_id: str = ""
    fingerprint: str = ""

    @classmethod
    def from_request(cls, request: HttpRequest, *, query_tokens: bool = False) -> "Credentials":
        """Read a request: headers first, the query where the endpoint allows it, then cookies."""
        conf = relay_settings()
        query = request.GET if query_tokens else {}
        bearer = _bearer(request.headers.get("Authorization", ""))
        id_token = _plain(request.headers.get(conf.ID_TOKEN_HEADER_NAME))
        if not bearer and not id_token:
            # A source counts as a whole: an id token of one login never joins the access token of another.
            bearer, id_token = _plain(query.get("bearer_token")), _plain(query.get("id_token"))
        ticket = "" if bearer or id_token else _plain(query.get("ticket"))
        by_cookie = not (bearer or id_token or ticket)
        if by_cookie:
            bearer = _plain(request.COOKIES.get(conf.AUTH_TOKEN_COOKIE_NAME))
            id_token = _plain(request.COOKIES.get(conf.ID_TOKEN_COOKIE_NAME))
        return cls(
            bearer_token=bearer,
            id_token=id_token,
            token_by_cookie=by_cookie,
            ticket=ticket,
            session_id=_plain(request.headers.get("User-Session-ID")) or _plain(query.get("user_session_id")),
            cookie_session_id=_plain(request.COOKIES.get(conf.SESSION_COOKIE_NAME)),
            login_key=_plain(request.COOKIES.get(settings.SESSION_COOKIE_NAME)),
            stream_id=stream_id_of(request) if request.method == "POST" else "",
            fingerprint=_fingerprint(request),
        )

    @property
    def says_who(self) -> bool:
        """Whether anything here may name a user or a session."""
        named = (self.bearer_token, self.id_token, self.ticket, self.session_id)
        return any((*named, self.cookie_session_id, self.login_key))

    def presenting(
        self, bearer_token: str | None, id_token: str | None, ticket: str | None, session_id: str | None
    ) -> "Credentials":
        """The same credentials with those of an auth message, which win; its tokens and ticket count as a whole."""
        bearer, identity, given = _plain(bearer_token), _plain(id_token), _plain(ticket)
        named = replace(self, session_id=_plain(session_id) or self.session_id)
        if not (bearer or identity or given):
            return named
        return replace(
            named,
            bearer_token=bearer,
            id_token=identity,
            token_by_cookie=False,
            ticket="" if bearer or identity else given,
        )

    def with_stream(self, stream_id: str) -> "Credentials":
        """The same credentials, and a stream that was named in the body."""
        return replace(self, stream_id=stream_id)


def stream_id_of(request: HttpRequest) -> str:
    """The stream that a request names: `stream_id` in the query, else the KDC-Stream-ID header."""
    return _plain(request.GET.get("stream_id")) or _plain(request.headers.get("KDC-Stream-ID"))


def _plain(value: str | None) -> str:
    """Return a value that can be compared and stored: one with control characters is none."""
    text = (value or "").strip()
    return text if len(text) <= VALUE_CHARACTERS and text.isprintable() else ""


def _bearer(header: str) -> str:
    scheme, _, token = header.partition(" ")
    return _plain(token) if scheme.lower() == "bearer" else ""


def _fingerprint(request: HttpRequest) -> str:
    parts = [request.META.get("REMOTE_ADDR", ""), request.headers.get("User-Agent", "")]
    digest = salted_hmac("relay.fingerprint", "\0".join(parts), algorithm="sha256")
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the credentials belong to.

    `user_type` is registered, paid or privileged. `by_cookie` says that a browser sends the proof by
    itself, so that a page elsewhere could have caused the request; `origin_proves`, that the page's Origin is enough
    to tell (pages with tokens of another login have no CSRF token of ours).
    """

    user_id: str
    username: str
    user_type: str
    roles: tuple[str, ...] = ()
    permissions: tuple[str, ...] = ()
    by_cookie: bool = False
    origin_proves: bool = False


class Authenticator(Protocol):
    """Knows one kind of credentials; `RELAY["AUTHENTICATORS"]` names those in use, in order."""

    def authenticate(self, credentials: Credentials) -> Identity | None:
        """Return who it is, or None where these credentials are not of this kind."""
        ...


def identify(credentials: Credentials) -> Identity | None:
    """Ask the authenticators in order; None is an anonymous caller.

    Errors: TokenInvalid when a token was presented that none of them knows.
    """
    for path in relay_settings().AUTHENTICATORS:
        authenticator: Authenticator = import_string(path)()
        identity = authenticator.authenticate(credentials)
        if identity is not None:
            return identity
    if credentials.bearer_token or credentials.id_token:
        raise TokenInvalid("The token is not valid here; log in again and send a new one.")
    return None


class DjangoLogin:
    """Knows people who logged in to this site (the admin, say) by the Django session in their cookie."""

    def authenticate(self, credentials: Credentials) -> Identity | None:
        """Return the logged-in user; a token, where there is one, says who it is instead."""
        if not credentials.login_key or credentials.bearer_token or credentials.id_token:
            return None
        user = _user_of(_open_login(credentials.login_key))
        return None if user is None else _identity_of(user)


def _open_login(key: str) -> SessionBase:
    store: SessionBase = import_module(settings.SESSION_ENGINE).SessionStore(key)
    return store


def _user_of(login: SessionBase) -> AbstractBaseUser | None:
    """Return the user of a Django session, as django.contrib.auth.get_user does but without writing.

    That function moves a session signed by a fallback key to a new one, whose cookie nobody would set here.
    """
    path = str(login.get(BACKEND_SESSION_KEY))
    if path not in settings.AUTHENTICATION_BACKENDS:
        return None
    user: AbstractBaseUser | None = load_backend(path).get_user(login[SESSION_KEY])
    if user is None:
        return None
    proof = str(login.get(HASH_SESSION_KEY, ""))
    hashes = [user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()]
    return user if any(constant_time_compare(proof, known) for known in hashes) else None


def _identity_of(user: AbstractBaseUser) -> Identity:
    roles: tuple[str, ...] = ()
    user_type = Session.UserType.REGISTERED
    if isinstance(user, AbstractUser):
        roles = tuple(user.groups.order_by("name").values_list("name", flat=True))
        if user.is_staff or user.is_superuser:
            user_type = Session.UserType.PRIVILEGED
        elif "paid" in roles:
            user_type = Session.UserType.PAID
    return Identity(str(user.pk), user.get_username(), str(user_type), roles, by_cookie=True)
