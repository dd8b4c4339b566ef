"""A Valkey of a test's own, and layers on it."""

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from relay.layers.redis import RedisChannelLayer
from tests.valkey import ValkeyProcess


@pytest.fixture(params=[{}])
def valkey(request: pytest.FixtureRequest) -> Iterator[ValkeyProcess]:
    """A server of the test's own, to be maltreated."""
    server = ValkeyProcess(**request.param).start()
    yield server
    server.close()


@pytest.fixture
async def make(valkey: ValkeyProcess) -> AsyncIterator[Callable[..., RedisChannelLayer]]:
    """Make layers, all of one house."""
    made: list[RedisChannelLayer] = []
    prefix = f"test-{secrets.token_hex(4)}"

    def make(**options: Any) -> RedisChannelLayer:
        layer = RedisChannelLayer(**{"url": valkey.url, "prefix": prefix, **options})
        made.append(layer)
        return layer

    make.prefix = prefix  # type: ignore[attr-defined]
    yield make
    for layer in made:
        await layer.aclose()
