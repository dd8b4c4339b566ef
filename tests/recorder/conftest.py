"""A recorder stream of a test's own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from tests.contract.backends import redis_url
from tests.recorder.streaming import Stream


@pytest.fixture
async def make_stream() -> AsyncIterator[Callable[..., Stream]]:
    """Make recorder streams; keyword arguments are the layer's."""
    made: list[Stream] = []

    def make(**layer_options: Any) -> Stream:
        made.append(Stream(redis_url(), **layer_options))
        return made[-1]

    yield make
    for stream in made:
        await stream.aclose()
    await sync_to_async(connections.close_all)()


@pytest.fixture
async def stream(make_stream: Callable[..., Stream]) -> Stream:
    """One recorder stream."""
    return make_stream()


@pytest.fixture
def within() -> Callable[[Callable[[], Any]], Awaitable[Any]]:
    """Run something synchronous (a query, a wait) on a thread, whose connection is closed again."""

    def closing(work: Callable[[], Any]) -> Any:
        try:
            return work()
        finally:
            connections.close_all()

    return lambda work: asyncio.to_thread(closing, work)
