"""System checks of relay: a wrong setting is told at start, not at the first message."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string
from limits import parse

from .conf import relay_settings
from .layers.address import Address
from .models import Session


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
    for role, user_type in conf.WEBCHAT_ROLES.items():
        if user_type not in Session.UserType.values:
            known = ", ".join(Session.UserType.values)
            sentence = f"RELAY['WEBCHAT_ROLES'] maps {role} to {user_type!r}; user types are {known}"
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
        return [Error(f"The address of Redis (REDIS_URL) cannot be read: {error}", id="relay.E005")]
    return []


@register(deploy=True)
def check_trust(**kwargs: Any) -> list[CheckMessage]:
    """Whoever opens a web chat is believed to be whom it names: not in production."""
    if not relay_settings().WEBCHAT_TRUST_IDS:
        return []
    sentence = "RELAY['WEBCHAT_TRUST_IDS'] is on: whoever opens a web chat is believed to be whom it names"
    return [Warning(sentence, hint="Set WEBCHAT_TRUST_IDS=false.", id="relay.W001")]
