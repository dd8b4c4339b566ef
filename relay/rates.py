"""How often a session may do something: moving windows, counted here or, with a store, for all processes together."""

import logging
import time
from functools import cache
from typing import NamedTuple

from django.core.signals import setting_changed
from django.dispatch import receiver
from limits import RateLimitItem, parse
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage, Storage
from limits.strategies import MovingWindowRateLimiter

from .conf import relay_settings

logger = logging.getLogger(__name__)

STORE_SECONDS = 1.0
"""How long a request waits for the store."""
PAUSE_SECONDS = 5.0
"""How long a store that did not answer is not asked again: requests must not all wait for it."""


class Spent(NamedTuple):
    """What became of one request: whether it was allowed, how many are left, and when the oldest one expires."""

    rate: RateLimitItem
    allowed: bool
    remaining: int
    reset_time: float


class Rates:
    """Counts requests against rates. While the store is away everything is allowed, and the log says so."""

    def __init__(self, storage: Storage) -> None:
        # MovingWindowRateLimiter checks that the storage can do this.
        self._limiter = MovingWindowRateLimiter(storage)
        self._asked_again_at = 0.0

    def spend(self, rate: RateLimitItem, *key: str) -> Spent | None:
        """Count one request; None when the store cannot be asked."""
        if time.monotonic() < self._asked_again_at:
            return None
        try:
            allowed = self._limiter.hit(rate, *key)
            window = self._limiter.get_window_stats(rate, *key)
        except StorageError as error:
            self._asked_again_at = time.monotonic() + PAUSE_SECONDS
            logger.warning("Rates are not limited for now, their store is away: %s", error.storage_error)
            return None
        return Spent(rate, allowed, window.remaining if allowed else 0, window.reset_time)


def spend(setting: str, *key: str) -> Spent | None:
    """Count one request against a rate of the settings; None when there is no rate, or no answer."""
    rate = _rate(setting)
    return _rates().spend(rate, *key) if rate is not None else None


@cache
def _rates() -> Rates:
    conf = relay_settings()
    if not conf.RATE_STORE_URL:
        return Rates(MemoryStorage())
    options = {"socket_timeout": STORE_SECONDS, "socket_connect_timeout": STORE_SECONDS}
    return Rates(
        RedisStorage(conf.RATE_STORE_URL, None, conf.RATE_STORE_PREFIX, wrap_exceptions=True, **options)
    )


@cache
def _rate(setting: str) -> RateLimitItem | None:
    rate: str = getattr(relay_settings(), setting)
    return parse(rate) if rate else None


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: object) -> None:
    if setting == "RELAY":
        for remembered in (_rates, _rate):
            remembered.cache_clear()
