"""Who looks on while a turn runs: a feature that shows turns in a way of its own."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from django.utils.module_loading import import_string

from comm.conf import comm_settings
from comm.envelope import Envelope
from comm.history import Position
from comm.models import Turn

logger = logging.getLogger(__name__)

Database = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs synchronous ORM code on the runner's own thread."""

CATCH_UP_SECONDS = 2.0
"""How long the end of a turn waits for its observer before it is written down."""
CLOSE_SECONDS = 5.0
"""What an observer has to finish after its turn; the next turn of the conversation waits meanwhile."""


class TurnObserver:
    """Base class of observers; one for each run of a turn. None of its failures reaches the turn."""

    def __init__(self, turn: Turn, database: Database) -> None:
        self.turn = turn
        self.database = database

    def begin(self) -> None:
        """The turn begins, or is declared interrupted."""

    def saw(self, envelope: Envelope, target_sid: str | None, position: Position | None) -> None:
        """An event was published; called on the event loop, and must not wait."""

    async def catch_up(self) -> None:
        """Write down what was seen so far; the turn's end is written down after it."""

    def ended(self, status: str) -> None:
        """The turn's end was written down; not called when the claim was lost."""

    async def aclose(self) -> None:
        """Finish what was seen."""


def observer_of(turn: Turn, database: Database) -> TurnObserver | None:
    """Return the observer of a turn's channel, None where it has none."""
    path = comm_settings().TURN_OBSERVERS.get(str(turn.request.get("channel") or ""))
    if path is None:
        return None
    observer: TurnObserver = import_string(path)(turn, database)
    return observer


async def caught_up(observer: TurnObserver | None) -> None:
    """Let an observer catch up before the turn's end is written: whoever sees the end in a row sees all before it."""
    if observer is None:
        return
    try:
        await asyncio.wait_for(observer.catch_up(), CATCH_UP_SECONDS)
    except Exception:
        # The end does not wait any longer; what is written late is told late.
        logger.exception("The observer of turn %s is behind at its end", observer.turn.turn_id)


@asynccontextmanager
async def observing(observer: TurnObserver | None) -> AsyncIterator[None]:
    """Let an observer look on for the length of a block, and finish at its end."""
    if observer is None:
        yield
        return
    observer.begin()
    try:
        yield
    finally:
        try:
            await asyncio.wait_for(observer.aclose(), CLOSE_SECONDS)
        except Exception:
            # The turn has ended as it has; only who looked on is behind.
            logger.exception("The observer of turn %s failed at its end", observer.turn.turn_id)
