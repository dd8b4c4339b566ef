"""Working until the user stops the turn: what is under way is cancelled, and with it the request upstream."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from comm.turns.context import TurnContext

T = TypeVar("T")


class TurnStopped(Exception):
    """The user wants no more of this turn."""


async def unless_stopped(turn: TurnContext, work: Coroutine[Any, Any, T]) -> T:
    """Return what the work returns; a stop cancels it, waits for its end and raises TurnStopped."""
    task = asyncio.create_task(work)
    stop = asyncio.create_task(turn.wait_stopped())
    try:
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
    finally:
        task.cancel()
        stop.cancel()
        await asyncio.gather(task, stop, return_exceptions=True)
    raise TurnStopped
