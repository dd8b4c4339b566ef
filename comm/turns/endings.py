"""How a turn ends when its process has died, or must stop: told, and written down."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from comm.archive import get_archive
from comm.communicator import ChatCommunicator
from comm.envelope import ANSWER
from comm.exceptions import PublishFailed
from comm.models import Turn

from . import leases
from .observing import Database, TurnObserver, caught_up
from .outcome import outcome_of
from .voice import emit_status

logger = logging.getLogger(__name__)

INTERRUPTED = (
    "The turn was interrupted: the process that answered it has stopped. Send the message again to retry."
)
TELL_AGAIN_SECONDS = 0.5
SOON_SECONDS = 5.0
"""How long the end of a turn waits for a channel layer that is away before it is written down untold."""
LATE_SECONDS = 120.0
"""How long it is tried to tell an end that stands in the row already."""


async def told(work: Callable[[], Awaitable[object]], patience_seconds: float) -> bool:
    """Publish, again and again while the channel layer is away; False when it stayed away for so long.

    The layer itself has waited before it gave up.
    """
    gives_up_at = time.monotonic() + patience_seconds
    while True:
        try:
            await work()
        except PublishFailed:
            if time.monotonic() >= gives_up_at:
                return False
            await asyncio.sleep(TELL_AGAIN_SECONDS)
        else:
            return True


async def archived_answer(turn: Turn) -> str:
    """Return as much of a turn's answer as the archive has: its own process is gone."""
    return await get_archive().fold_text(turn.session_id, turn.turn_id, ANSWER)


async def declare_interrupted(
    turn: Turn,
    communicator: ChatCommunicator,
    database: Database,
    answer_of: Callable[[], Awaitable[str]],
    observer: TurnObserver | None = None,
    *,
    last_chance: bool = False,
) -> None:
    """Tell that a turn was interrupted, and write it down; what was said of the answer stays.

    PublishFailed when nobody could be told, and then nothing is written: somebody tries again. With `last_chance`
    it is written all the same, because this process has no time left.
    """
    answer = await answer_of()
    error = {"error": INTERRUPTED, "error_type": "turn_interrupted"}
    data = {"error_type": "turn_interrupted"}
    if not last_chance:
        await communicator.error(INTERRUPTED, data=data)
    elif not await told(lambda: communicator.error(INTERRUPTED, data=data), 0):
        logger.error("Turn %s: nobody could be told that it was interrupted", turn.turn_id)
    await caught_up(observer)
    written = await database(
        lambda: leases.finish(
            turn, Turn.Status.INTERRUPTED, answer=answer, outcome=outcome_of(communicator), error=error
        )
    )
    if written:
        patience = 0 if last_chance else LATE_SECONDS
        await told(lambda: emit_status(communicator, turn, "error", "interrupted"), patience)
        if observer is not None:
            observer.ended(Turn.Status.INTERRUPTED)
