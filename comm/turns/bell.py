"""The bell: telling who runs turns that a row changed. A bell that nobody hears costs a sweep, never a turn."""

import asyncio
import logging
from collections.abc import Callable

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.db import transaction

from comm.publisher import home_loop

from .queue import turn_queue

logger = logging.getLogger(__name__)

COMMAND = "turn.command"

_ring_here: Callable[[str], None] | None = None


def set_bell(ring_here: Callable[[str], None] | None) -> None:
    """Name what hears of accepted turns in this process, where there is no queue."""
    global _ring_here
    _ring_here = ring_here


def ring(turn_id: str) -> None:
    """Say that a turn waits, to the workers or to this process's runner; heard when the open transaction commits.

    Synchronous. With workers the ring is part of the transaction: either both stay, or neither does.
    """
    queue = turn_queue()
    if queue is not None:
        queue.ring([turn_id])
    else:
        transaction.on_commit(lambda: _ring_here and _ring_here(turn_id))


def wake_owner(channel: str, turn_id: str) -> None:
    """Tell the process that runs a turn, wherever it is, to look at the turn's row; not on the event loop."""
    if not channel:
        return
    loop = home_loop()
    if loop is None:
        async_to_sync(_send)(channel, turn_id)
    else:
        asyncio.run_coroutine_threadsafe(_send(channel, turn_id), loop)


async def _send(channel: str, turn_id: str) -> None:
    layer = get_channel_layer()
    try:
        if layer is not None:
            await layer.send(channel, {"type": COMMAND, "turn_id": turn_id})
    except Exception:
        # The row says the same; the owner's next renewal reads it.
        logger.exception("Turn %s: its owner could not be woken", turn_id)
