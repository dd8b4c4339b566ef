"""May this message come in, now? Draining, breaker, backlog and rate, asked in this order.

Each refusal is a RelayError that carries what every transport tells: status, retry time, and the
`chat_service` notices of the wire contract.
"""

import logging
import math
import time
from datetime import UTC, datetime, tzinfo
from functools import cache
from typing import Any

from django.core.signals import setting_changed
from django.db import DatabaseError
from django.dispatch import receiver

from comm.exceptions import BundleUnknown
from comm.exceptions import ConversationForbidden as ConversationOfAnother
from comm.models import Turn
from comm.tenants import every_tenant
from comm.turns.acceptance import accept
from comm.turns.incoming import Acknowledgement, Caller, IncomingMessage
from comm.zones import user_zone

from . import lifecycle, rates
from .breaker import Breaker
from .conf import relay_settings
from .exceptions import (
    Backpressure,
    BadRequest,
    CircuitOpen,
    ConversationForbidden,
    Draining,
    Notice,
    RateLimited,
    Unavailable,
)
from .rates import Spent

logger = logging.getLogger(__name__)

DRAINING_RETRY_SECONDS = 2
"""A successor is up, or another process answers, about this soon."""
BACKLOG_RETRY_SECONDS = 5
UNAVAILABLE_RETRY_SECONDS = 5


def admit(caller: Caller) -> list[Notice]:
    """Return the warnings that go with an admitted message, or raise the refusal.

    Errors: Draining, CircuitOpen, Backpressure (503), RateLimited (429).
    """
    refuse_when_draining()
    _refuse_when_open()
    _refuse_when_behind()
    return _spend(caller)


def admit_operation(caller: Caller) -> None:
    """Raise the refusal of a call to a bundle's operation: Draining (503) or RateLimited (429)."""
    refuse_when_draining()
    spent = rates.spend("OPERATION_RATE", "operation", caller.session_id)
    if spent is None or spent.allowed:
        return
    data = _rate_data(spent, caller, "operations")
    limit = data["rate_limit"]
    raise RateLimited(limit["user_message"], retry_after=limit["retry_after_sec"], data=data)


def refuse_when_draining() -> None:
    """Raise Draining while this process is about to stop."""
    if lifecycle.is_draining():
        raise Draining("The server is restarting; try again in a moment.", retry_after=DRAINING_RETRY_SECONDS)


def take(message: IncomingMessage) -> Acknowledgement:
    """Accept an admitted message; failures of the database or the storage count for the breaker.

    Errors: ConversationForbidden (403), BadRequest for an unknown bundle, Unavailable (503).
    """
    breaker = _breaker()
    try:
        acknowledgement = accept(message)
    except ConversationOfAnother:
        breaker.succeeded()
        raise ConversationForbidden("This conversation belongs to somebody else.") from None
    except BundleUnknown:
        breaker.succeeded()
        raise BadRequest("bundle_id", f"there is no bundle {message.bundle_id!r}") from None
    except (DatabaseError, OSError) as error:
        breaker.failed()
        logger.exception("Accepting a message of session %s failed", message.caller.session_id)
        raise Unavailable(
            "The message could not be stored; try again in a moment.", retry_after=UNAVAILABLE_RETRY_SECONDS
        ) from error
    breaker.succeeded()
    return acknowledgement


# --- the checks -----------------------------------------------------------------------------------


def _refuse_when_open() -> None:
    left = math.ceil(_breaker().seconds_left())
    if left:
        sentence = f"Messages cannot be stored at the moment; try again in {_spoken(left)}."
        notice = Notice("gateway.circuit_breaker", "Service interrupted", _limit_data(left, sentence))
        raise CircuitOpen(sentence, retry_after=left, notices=[notice])


def _refuse_when_behind() -> None:
    limit = relay_settings().BACKLOG_TURNS
    with every_tenant():
        waiting = Turn.objects.filter(status=Turn.Status.ACCEPTED)[:limit].count()
    if waiting >= limit:
        sentence = f"Too many messages are waiting already; try again in {_spoken(BACKLOG_RETRY_SECONDS)}."
        data = {**_limit_data(BACKLOG_RETRY_SECONDS, sentence), "waiting": waiting}
        notice = Notice("gateway.backpressure", "Server busy", data)
        raise Backpressure(sentence, retry_after=BACKLOG_RETRY_SECONDS, notices=[notice])


def _spend(caller: Caller) -> list[Notice]:
    """Count a message against its session's rate; return a warning when little is left."""
    spent = rates.spend("MESSAGE_RATE", caller.session_id)
    if spent is None:
        return []
    data = _rate_data(spent, caller)
    if not spent.allowed:
        limit = data["rate_limit"]
        raise RateLimited(
            limit["user_message"],
            retry_after=limit["retry_after_sec"],
            data=data,
            notices=[
                Notice("gateway.rate_limit", "Rate limit", data),
                Notice("rate_limit.denied", "Rate limit", data),
            ],
        )
    limit = spent.rate.amount
    if limit - spent.remaining < limit * relay_settings().MESSAGE_RATE_WARNING:
        return []
    return [Notice("rate_limit.warning", "Rate limit near", data)]


# --- wording --------------------------------------------------------------------------------------


def zone_of(caller: Caller) -> tzinfo:
    """The user's time zone: by name, else by offset, else UTC."""
    return user_zone(caller.timezone, caller.utc_offset_min)


def _rate_data(spent: Spent, caller: Caller, what: str = "messages") -> dict[str, Any]:
    """Return `data` of the rate events; the window moves, so "reset" is when its oldest message leaves it."""
    rate, remaining = spent.rate, spent.remaining
    wait = max(1, math.ceil(spent.reset_time - time.time()))
    reset_at = datetime.fromtimestamp(spent.reset_time, UTC)
    reset_text = _clock_text(reset_at, zone_of(caller))
    per = f"{rate.amount} {what} per {_spoken(rate.get_expiry())}"
    if remaining:
        sentence = f"{remaining} of {per} are left until {reset_text}."
    else:
        sentence = f"You have sent {per}, which is the limit. You can send again at {reset_text}."
    data = _limit_data(wait, sentence)
    data["rate_limit"] |= {
        "reset_text": reset_text,
        "reset_at": reset_at.isoformat(timespec="seconds"),
        "remaining": remaining,
        "limit": rate.amount,
        "window_sec": rate.get_expiry(),
    }
    return data


def _limit_data(retry_after: int, sentence: str) -> dict[str, Any]:
    return {
        "rate_limit": {
            "retry_after_sec": retry_after,
            "reset_text": f"in {_spoken(retry_after)}",
            "user_message": sentence,
        }
    }


def _clock_text(moment: datetime, zone: tzinfo) -> str:
    """Write a moment as a clock on the user's wall shows it, with the day when it is not today."""
    local, today = moment.astimezone(zone), datetime.now(zone).date()
    text = f"{local:%H:%M:%S}"
    return text if local.date() == today else f"{text} on {local:%d %B}"


def _spoken(seconds: int) -> str:
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size and seconds % size == 0:
            return unit if seconds == size else f"{seconds // size} {unit}s"
    return f"{seconds} second" if seconds == 1 else f"{seconds} seconds"


# --- what the checks remember, in this process ----------------------------------------------------


@cache
def _breaker() -> Breaker:
    conf = relay_settings()
    return Breaker(conf.BREAKER_FAILURES, conf.BREAKER_RESET_SECONDS)


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "RELAY":
        _breaker.cache_clear()
