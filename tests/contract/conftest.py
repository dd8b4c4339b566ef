"""Layers of every kind for the contract suites."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from relay.layers.base import HistoryChannelLayer
from tests.contract.backends import BACKENDS, LayerFactory


@pytest.fixture(params=sorted(BACKENDS))
async def make_layer(request: pytest.FixtureRequest) -> AsyncIterator[LayerFactory]:
    """Make layers with settings of the test's own; each is flushed and closed after it."""
    made: list[HistoryChannelLayer] = []

    async def make(**options: Any) -> HistoryChannelLayer:
        layer = BACKENDS[request.param](**options)
        made.append(layer)
        return layer

    yield make
    for layer in made:
        await layer.flush()
        await layer.aclose()


@pytest.fixture
async def layer(make_layer: LayerFactory) -> HistoryChannelLayer:
    """A layer whose channels take three messages."""
    return await make_layer(capacity=3)
