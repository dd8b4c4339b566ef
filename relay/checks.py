"""System checks of relay: a wrong setting is told at start, not at the first message."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string
from limits import parse

from .conf import RelaySettings, relay_settings
from .layers.address import Address
from .models import Session
from .tokens import ASYMMETRIC, PEM, SYMMETRIC, algorithms_of

TOKENS = "relay.tokens.BearerToken"


@register()
def check_relay_settings(**kwargs: Any) -> list[CheckMessage]:
    """RELAY has only known keys, its dotted paths import, and its rate can be read."""
    try:
        conf = relay_settings()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="relay.E001")]
    found: list[CheckMessage] = []
    for path in conf.AUTHENTICATORS:
        try:
            import_string(path)
        except ImportError as error:
            found.append(Error(f"RELAY['AUTHENTICATORS'] names {path}: {error}", id="relay.E002"))
    for name in ("WEBCHAT_ROLES", "TOKEN_ROLES"):
        for role, user_type in getattr(conf, name).items():
            if user_type not in Session.UserType.values:
                known = ", ".join(Session.UserType.values)
                sentence = f"RELAY[{name!r}] maps {role} to {user_type!r}; user types are {known}"
                found.append(Error(sentence, id="relay.E004"))
    for name in ("MESSAGE_RATE", "OPERATION_RATE"):
        rate = getattr(conf, name)
        try:
            if rate:
                parse(rate)
        except ValueError:
            sentence = f"RELAY[{name!r}] is {rate!r}; write it as 120/minute"
            found.append(Error(sentence, id="relay.E003"))
    return found


@register()
def check_channel_layer(**kwargs: Any) -> list[CheckMessage]:
    """The address of Redis can be read, where the channel layer is on Redis."""
    layer: dict[str, Any] = settings.CHANNEL_LAYERS.get("default", {})
    if not layer.get("BACKEND", "").endswith(".RedisChannelLayer"):
        return []
    try:
        Address.parse(layer.get("CONFIG", {}).get("url", ""))
    except ValueError as error:
        # The URL itself may hold a password.
        return [Error(f"The address of Redis (REDIS_URL) cannot be read: {error}", id="relay.E008")]
    return []


@register(deploy=True)
def check_trust(**kwargs: Any) -> list[CheckMessage]:
    """Whoever opens a web chat is believed to be whom it names: not in production."""
    if not relay_settings().WEBCHAT_TRUST_IDS:
        return []
    sentence = "RELAY['WEBCHAT_TRUST_IDS'] is on: whoever opens a web chat is believed to be whom it names"
    return [Warning(sentence, hint="Set WEBCHAT_TRUST_IDS=false.", id="relay.W001")]


@register()
def check_tokens(**kwargs: Any) -> list[CheckMessage]:
    """Where tokens are known, there is one source of keys, and algorithms that fit it."""
    conf = _conf()
    if conf is None or TOKENS not in conf.AUTHENTICATORS:
        return []
    if bool(conf.TOKEN_JWKS_URL) == bool(conf.TOKEN_KEY):
        return [Error("Set either TOKEN_JWKS_URL or TOKEN_KEY, one of the two", id="relay.E005")]
    if conf.TOKEN_JWKS_URL and not conf.TOKEN_JWKS_URL.startswith(("https://", "http://")):
        return [Error(f"TOKEN_JWKS_URL is {conf.TOKEN_JWKS_URL!r}, no http(s) URL", id="relay.E006")]
    public = bool(conf.TOKEN_JWKS_URL) or conf.TOKEN_KEY.startswith(PEM)
    unfit = sorted(set(algorithms_of(conf)) - set(ASYMMETRIC if public else SYMMETRIC))
    if unfit:
        kind = "a public key" if public else "a shared secret"
        sentence = f"TOKEN_ALGORITHMS has {', '.join(unfit)}, which {kind} is not for"
        return [Error(sentence, id="relay.E007")]
    return []


@register(deploy=True)
def check_tokens_are_ours(**kwargs: Any) -> list[CheckMessage]:
    """An issuer that serves many makes tokens for all of them: ours name us. Keys come over a safe line."""
    conf = _conf()
    if conf is None or TOKENS not in conf.AUTHENTICATORS:
        return []
    found: list[CheckMessage] = []
    if not (conf.TOKEN_ISSUER and conf.TOKEN_AUDIENCES):
        told = "Tokens are accepted from any issuer or for any service that the key signs for"
        found.append(Warning(told, hint="Set TOKEN_ISSUER and TOKEN_AUDIENCES.", id="relay.W002"))
    if conf.TOKEN_JWKS_URL.startswith("http://"):
        told = "TOKEN_JWKS_URL is no https URL: whoever sits between can make tokens"
        found.append(Warning(told, id="relay.W003"))
    return found


def _conf() -> RelaySettings | None:
    try:
        return relay_settings()
    except ImproperlyConfigured:
        # check_relay_settings tells of it.
        return None
