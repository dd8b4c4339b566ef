"""Settings of relay: `RELAY` in the Django settings, over the defaults below."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.dispatch import receiver

MIB = 1024 * 1024


class RelaySettings(NamedTuple):
    """Every setting of relay with its default."""

    KEEPALIVE_SECONDS: float = 15.0
    """Below the 60 s after which common proxies cut an idle stream."""
    PEER_QUEUE_BYTES: int = 256 * 1024
    """Some 400 envelopes; a peer with more waiting reads the log at its own pace instead."""
    PULL_ENTRIES: int = 256
    """Entries that a catching-up peer reads from history at once."""
    TAIL_CHECK_SECONDS: float = 2.0
    """How soon a lost last event is found."""
    TURN_BUDGET_BYTES: int = 8 * MIB
    """Bytes handed to peers before the hub lets their sockets drain."""

    QUIET_COLLECTION_SECONDS: float = 30.0
    """A full collection of Python's cyclic collector waits so long, and then for a second without events."""
    FULL_COLLECTION_SECONDS: float = 300.0
    """So long at most: what it frees is bounded by what comes and goes in this time."""

    DRAIN_WINDOW_SECONDS: float = 2.0
    """Retry slots of the streams of a draining process are dealt out over this."""

    AUTHENTICATORS: Sequence[str] = ("relay.credentials.DjangoLogin",)
    """Dotted paths, asked in order; the first that knows the credentials names the user."""
    REJECT_ANONYMOUS_SSE: bool = False
    REJECT_ANONYMOUS_WS: bool = False
    AUTH_TOKEN_COOKIE_NAME: str = "__Secure-LATC"
    ID_TOKEN_COOKIE_NAME: str = "__Secure-LITC"
    ID_TOKEN_HEADER_NAME: str = "X-ID-Token"
    TOKEN_JWKS_URL: str = ""
    """Where the issuer's public keys are; relay.tokens.BearerToken wants this or TOKEN_KEY."""
    TOKEN_KEY: str = ""
    """One key instead: a public key in PEM, or a shared secret."""
    TOKEN_ALGORITHMS: Sequence[str] = ()
    """Accepted signatures; empty for all that fit the key."""
    TOKEN_ISSUER: str = ""
    TOKEN_AUDIENCES: Sequence[str] = ()
    ID_TOKEN_AUDIENCES: Sequence[str] = ()
    """Empty for those of access tokens."""
    TOKEN_LEEWAY_SECONDS: float = 30.0
    """How far the clocks of issuer and server may be apart."""
    TOKEN_JWKS_SECONDS: float = 300.0
    """How old fetched keys may be; a key that a token names and they lack is looked for at once."""
    TOKEN_JWKS_TIMEOUT_SECONDS: float = 3.0
    """Requests wait for it."""
    TOKEN_ROLES_CLAIM: str = "roles"
    """A claim, or a path such as realm_access.roles."""
    TOKEN_ROLES: Mapping[str, str] = {"admin": "privileged", "paid": "paid"}
    """Role of a token → user type; any other is registered."""
    TOKEN_USER_PREFIX: str = ""
    """Put before a token's subject, where subjects may look like the ids of this site's own accounts."""
    SESSION_COOKIE_NAME: str = "backchannel_session"
    SESSION_COOKIE_DAYS: int = 30
    STREAM_ID_LENGTH_TRUSTED: int = 16
    """A stream id shorter than this is guessable: it never stands for a session."""

    CHATBOT_BUNDLE: str = ""
    """Bundle that answers POST /api/chatbot/start/stream; empty for the default one."""
    CHATBOT_KEEPALIVE_SECONDS: float = 30.0
    """As the clients of that stream are used to."""
    SOCKET_AUTH_SECONDS: float = 10.0
    """How long a socket may stay open without saying whose it is."""
    NOT_READING_SECONDS: float = 15.0
    """A Socket.IO client that takes nothing of what waits for it is disconnected after so long."""
    WEBCHAT_TRUST_IDS: bool = False
    """Whether the web chat channel takes a client's word for its user and role; for development."""
    WEBCHAT_ROLES: Mapping[str, str] = {"platform_admin": "privileged", "customer_admin": "paid"}
    """Role of a trusted client → user type; any other role is registered."""
    WEBCHAT_TIMEOUT_SECONDS: float = 180.0
    """How long a web chat waits for the next sign of an answer."""

    TEXT_CHARACTERS: int = 32_000
    MESSAGE_BYTES: int = 25 * MIB
    IMAGE_BYTES: int = 5 * MIB
    PDF_BYTES: int = 10 * MIB
    FILE_BYTES: int = 25 * MIB

    MESSAGE_RATE: str = "120/minute"
    """Messages of one session, as `limits` writes rates; empty for none."""
    MESSAGE_RATE_WARNING: float = 0.9
    """Share of the rate from which on rate_limit.warning goes out."""
    OPERATION_RATE: str = "600/minute"
    """Calls of bundle operations of one session; pages make more of these than people write messages."""
    OPERATION_SECONDS: float = 60.0
    """How long an operation may take; common proxies give up after as long."""
    RATE_STORE_URL: str = ""
    """Redis, where the rates of all processes are counted together; empty counts in each for itself."""
    RATE_STORE_PREFIX: str = "backchannel:rates"
    BACKLOG_TURNS: int = 500
    """Turns accepted and not yet started, over which new messages get 503."""
    BREAKER_FAILURES: int = 5
    BREAKER_RESET_SECONDS: int = 10


@cache
def relay_settings() -> RelaySettings:
    """Return RELAY over its defaults; an unknown key is an ImproperlyConfigured error."""
    given: dict[str, Any] = getattr(settings, "RELAY", {})
    unknown = sorted(set(given) - set(RelaySettings._fields))
    if unknown:
        raise ImproperlyConfigured(f"RELAY has no setting {', '.join(unknown)}")
    return RelaySettings(**given)


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "RELAY":
        relay_settings.cache_clear()
