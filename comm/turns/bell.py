"""The bell: telling a runner that a row changed. A bell that nobody hears costs a sweep, never a turn."""

import asyncio
import logging
from collections.abc import Callable

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer

from comm.publisher import home_loop

logger = logging.getLogger(__name__)

COMMAND = "turn.command"

_ring: Callable[[str], None] | None = None


def set_bell(ring: Callable[[str], None] | None) -> None:
    """Name what hears of accepted turns in this process."""
    global _ring
    _ring = ring


def ring(turn_id: str) -> None:
    """Tell this process's runner that a turn was accepted; any thread."""
    if _ring is not None:
        _ring(turn_id)


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
