"""Bearer tokens: JSON Web Tokens of somebody else's login, checked by key, issuer, audience and time."""

import logging
import threading
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import jwt
from django.core.signals import setting_changed
from django.dispatch import receiver

from .conf import RelaySettings, relay_settings
from .credentials import Credentials, Identity
from .exceptions import TokenInvalid, Unavailable
from .models import Session

logger = logging.getLogger(__name__)

ASYMMETRIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
SYMMETRIC = ("HS256", "HS384", "HS512")
PEM = "-----BEGIN"
USER_ID_CHARACTERS = 150
"""As long as the column that keeps it; of a user's name the rest is cut."""
AWAY_SECONDS = 10.0
"""Keys that could not be fetched are not asked for again so soon: who waits for them waits for a timeout."""
RANKS = (Session.UserType.REGISTERED, Session.UserType.PAID, Session.UserType.PRIVILEGED)
NAMES = ("preferred_username", "username", "cognito:username", "email", "name")
"""Claims that may hold what a user is called, the best first."""

_SENTENCES: tuple[tuple[type[Exception], str], ...] = (
    (jwt.ExpiredSignatureError, "has expired; log in again and send a new one"),
    (jwt.ImmatureSignatureError, "is not valid yet; the clocks of its issuer and of this server differ"),
    (jwt.InvalidAudienceError, "is for another service"),
    (jwt.InvalidIssuerError, "comes from an issuer that is not trusted here"),
    (jwt.InvalidAlgorithmError, "is signed in a way that is not accepted here"),
    (jwt.InvalidSignatureError, "has a signature that is wrong"),
)


class BearerToken:
    """Knows users by a signed access token; an id token beside it says what they are called.

    Runs off the event loop: keys may have to be fetched, within `TOKEN_JWKS_TIMEOUT_SECONDS`. Errors: TokenInvalid
    says what is wrong with a token; Unavailable when no key could be fetched so far.
    """

    def authenticate(self, credentials: Credentials) -> Identity | None:
        """Return whose token it is; None where there is none."""
        conf = relay_settings()
        if not credentials.bearer_token:
            if credentials.id_token:
                raise TokenInvalid("An id token alone admits nobody; send the access token with it.")
            return None
        claims = _claims(credentials.bearer_token, conf.TOKEN_AUDIENCES, "token")
        user_id = _user_id(claims["sub"], conf)
        named = claims
        if credentials.id_token:
            audiences = conf.ID_TOKEN_AUDIENCES or conf.TOKEN_AUDIENCES
            named = _claims(credentials.id_token, audiences, "id token")
            if named["sub"] != claims["sub"]:
                raise TokenInvalid("The id token is another user's than the access token.")
        roles = _texts(_claim(claims, conf.TOKEN_ROLES_CLAIM))
        return Identity(
            user_id=user_id,
            username=_username(named, user_id),
            user_type=_user_type(roles, conf.TOKEN_ROLES),
            roles=roles,
            permissions=_texts(claims.get("permissions")) or _texts(claims.get("scope")),
            by_cookie=credentials.token_by_cookie,
            origin_proves=True,
        )


def _claims(token: str, audiences: tuple[str, ...] | list[str] | Any, what: str) -> dict[str, Any]:
    """Return what a token says, once it is known to be true. Errors: TokenInvalid, Unavailable."""
    conf = relay_settings()
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            _key_of(token, conf),
            algorithms=list(algorithms_of(conf)),
            audience=list(audiences) or None,
            issuer=conf.TOKEN_ISSUER or None,
            leeway=conf.TOKEN_LEEWAY_SECONDS,
            options={
                "require": ["exp", "sub"],
                "verify_aud": bool(audiences),
                "verify_iss": bool(conf.TOKEN_ISSUER),
            },
        )
    except jwt.MissingRequiredClaimError as error:
        raise TokenInvalid(f"The {what} has no claim {error.claim!r}.") from None
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        said = next((said for kind, said in _SENTENCES if isinstance(error, kind)), "cannot be read")
        raise TokenInvalid(f"The {what} {said}.") from None
    return claims


def algorithms_of(conf: RelaySettings) -> tuple[str, ...]:
    """Return the accepted algorithms: those of the settings, else those that fit the key; never the token's choice."""
    if conf.TOKEN_ALGORITHMS:
        return tuple(conf.TOKEN_ALGORITHMS)
    return ASYMMETRIC if conf.TOKEN_JWKS_URL or conf.TOKEN_KEY.startswith(PEM) else SYMMETRIC


def _key_of(token: str, conf: RelaySettings) -> Any:
    if not conf.TOKEN_JWKS_URL:
        return conf.TOKEN_KEY
    kid = jwt.get_unverified_header(token).get("kid")
    if not isinstance(kid, str):
        raise TokenInvalid("The token does not name the key that it is signed with.")
    return _key_set(conf.TOKEN_JWKS_URL, conf.TOKEN_JWKS_SECONDS, conf.TOKEN_JWKS_TIMEOUT_SECONDS).find(kid)


class KeySet:
    """The keys at a URL, fetched when they are first wanted, are old, or lack one that a token names.

    An unknown name makes it look again once in 30 seconds at most. While the URL does not answer, the keys
    that were fetched last go on being used. One thread fetches; only who has no key yet waits for it.
    """

    def __init__(self, url: str, lifespan_seconds: float, timeout_seconds: float) -> None:
        self._client = jwt.PyJWKClient(url, lifespan=lifespan_seconds, timeout=timeout_seconds)
        self._lock = threading.Lock()
        self._known: dict[str, Any] = {}
        self._away_until = 0.0

    def find(self, kid: str) -> Any:
        """Return a key by its name. Errors: TokenInvalid, Unavailable when it cannot be known whether there is one."""
        key = self._known.get(kid)
        if key is not None and not self._is_due():
            return key
        if not self._lock.acquire(blocking=key is None):
            return key
        try:
            key = self._fetched(kid) if time.monotonic() >= self._away_until else None
            key = key or self._known.get(kid)
        finally:
            self._lock.release()
        if key is not None:
            return key
        if time.monotonic() < self._away_until:
            raise Unavailable("Tokens cannot be checked right now.", retry_after=int(AWAY_SECONDS))
        raise TokenInvalid("The token is signed with a key that is not known here.")

    def _is_due(self) -> bool:
        """Whether the keys are old and may be asked for again."""
        cache = self._client.jwk_set_cache
        return time.monotonic() >= self._away_until and (cache is None or cache.get() is None)

    def _fetched(self, kid: str) -> Any:
        try:
            self._known = {str(key.key_id): key for key in self._client.get_signing_keys()}
            if kid in self._known:
                return self._known[kid]
            return self._client.get_signing_key(kid)
        except (jwt.PyJWKClientConnectionError, jwt.PyJWKSetError, OSError, ValueError):
            logger.exception("The keys of tokens could not be fetched")
            self._away_until = time.monotonic() + AWAY_SECONDS
        except jwt.PyJWKClientError as error:
            # It has no such key, also after a second look.
            logger.info("%s", error)
        return None


@cache
def _key_set(url: str, lifespan_seconds: float, timeout_seconds: float) -> KeySet:
    return KeySet(url, lifespan_seconds, timeout_seconds)


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "RELAY":
        _key_set.cache_clear()


# --- what the claims mean -------------------------------------------------------------------------


def _user_id(subject: Any, conf: RelaySettings) -> str:
    """Return the user's id here. A number is an account of this site, and so nobody else's id."""
    user_id = f"{conf.TOKEN_USER_PREFIX}{subject}"
    if not subject or len(user_id) > USER_ID_CHARACTERS or not user_id.isprintable():
        raise TokenInvalid("The token's subject cannot be a user's id here.")
    if user_id.isdecimal() or user_id.startswith("webchat:"):
        logger.error("A token's subject looks like an account of this site; set TOKEN_USER_PREFIX")
        raise TokenInvalid("The token's subject could be taken for another account of this site.")
    return user_id


def _username(claims: Mapping[str, Any], user_id: str) -> str:
    names = (claims.get(name) for name in NAMES)
    found = next((name for name in names if isinstance(name, str) and name.isprintable() and name), user_id)
    return found[:USER_ID_CHARACTERS]


def _user_type(roles: tuple[str, ...], types: Mapping[str, str]) -> str:
    """Return the highest type that one of the roles stands for."""
    given = {types[role] for role in roles if role in types}
    return next((str(rank) for rank in reversed(RANKS) if rank in given), str(Session.UserType.REGISTERED))


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """Return a claim by its name, or by a path of names with dots between; None where there is none."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _texts(value: Any) -> tuple[str, ...]:
    """Return a list of texts, or the words of a text."""
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(word for word in words if isinstance(word, str) and word.isprintable())
