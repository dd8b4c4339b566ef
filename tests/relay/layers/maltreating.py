"""What the tests of a maltreated Redis say to it, and through it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import redis
from channels.layers import channel_layers

from comm.groups import session_group
from comm.history import Position
from relay.layers.calls import RedisAway
from relay.layers.redis import RedisChannelLayer
from tests.valkey import ValkeyProcess

GROUP = session_group("one")
OTHER = session_group("two")


def numbered(n: object) -> dict[str, Any]:
    return {"type": "test.message", "n": n}


def client(server: ValkeyProcess) -> redis.Redis:
    return redis.Redis(port=server.port)


async def sends(layer: RedisChannelLayer, n: object) -> Position | None:
    """Try to send; None while Redis is away."""
    try:
        return await layer.group_send(GROUP, numbered(n))
    except RedisAway:
        return None


@contextlib.contextmanager
def default_layer(layer: RedisChannelLayer) -> Iterator[None]:
    """Make a layer the one of this process."""
    before = channel_layers.set("default", layer)
    try:
        yield
    finally:
        channel_layers.backends.pop("default", None)
        if before is not None:
            channel_layers.set("default", before)
