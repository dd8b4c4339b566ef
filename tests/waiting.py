"""Waiting for what must come true, with a limit."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any


def eventually(predicate: Callable[[], Any], timeout: float = 10.0, what: str = "the condition") -> Any:
    """Return the predicate's first true value; fail when it stays false for `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout} s")
        time.sleep(0.02)


async def aeventually(
    predicate: Callable[[], Any | Awaitable[Any]], timeout: float = 10.0, what: str = "the condition"
) -> Any:
    """Return the (possibly awaited) predicate's first true value, as `eventually` does."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout} s")
        await asyncio.sleep(0.02)
