"""The channel layers that the contract suites run over."""

import os
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from relay.layers.base import HistoryChannelLayer
from relay.layers.memory import MemoryChannelLayer
from relay.layers.redis import RedisChannelLayer
from tests.valkey import shared_valkey

LayerFactory = Callable[..., Awaitable[HistoryChannelLayer]]


def redis_layer(**options: Any) -> RedisChannelLayer:
    """A layer under a prefix of its own, on the Redis of this test run."""
    # Redis bounds all logs together by its own setting, `maxmemory`.
    options.pop("history_total_bytes", None)
    options.setdefault("prefix", f"test-{secrets.token_hex(6)}")
    return RedisChannelLayer(url=redis_url(), **options)


def redis_url() -> str:
    """The Redis of the environment, or else a Valkey that this test process starts."""
    return os.environ.get("REDIS_URL") or shared_valkey().url


BACKENDS: dict[str, Callable[..., HistoryChannelLayer]] = {
    "memory": MemoryChannelLayer,
    "redis": redis_layer,
}
"""Layers of every kind for the contract suites."""
