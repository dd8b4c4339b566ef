"""When Python's cyclic collector may stop the process: not in the middle of a stream of events.

A full collection walks every object that lives: with Django loaded and a thousand streams open that is a pause
of 40 to 100 ms, for every stream at once, and Python's own thresholds ask for one every few seconds under load.
"""

import asyncio
import gc
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from .conf import relay_settings

logger = logging.getLogger(__name__)

YOUNG_THRESHOLD = 2_000
"""Objects that a young collection looks at: some 0.3 ms."""
MIDDLE_THRESHOLD = 10
"""Young collections to one of the middle generation: some 4 ms, every few seconds under load."""
NEVER = 1_000_000_000
"""Middle collections to a full one: those are ours to begin."""

CHECK_SECONDS = 1.0
GROWTH_BYTES = 96 * 1024 * 1024
"""What the process may grow by before it is looked whether that was garbage."""

_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Collector:
    """Keeps full collections for quiet moments, at the latest every FULL_COLLECTION_SECONDS, or when memory grows.

    What lives after the start (code, models, settings) is frozen: no collection looks at it again. Whoever
    starts it closes it, which brings back the thresholds of before. `delivered` counts what the hub delivers.
    """

    def __init__(self, delivered: Callable[[], int]) -> None:
        self._delivered = delivered
        self._task: asyncio.Task[None] | None = None
        self._before = gc.get_threshold()

    def start(self) -> None:
        """Freeze what lives now, and take over."""
        self._before = gc.get_threshold()
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG_THRESHOLD, MIDDLE_THRESHOLD, NEVER)
        self._task = asyncio.create_task(self._collect(), name="full collections")

    async def aclose(self) -> None:
        """Leave it to Python again."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        gc.set_threshold(*self._before)
        gc.unfreeze()

    async def _collect(self) -> None:
        quiet, latest = relay_settings().QUIET_COLLECTION_SECONDS, relay_settings().FULL_COLLECTION_SECONDS
        collected_at, seen, size = time.monotonic(), self._delivered(), resident_bytes()
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            delivered = self._delivered()
            waited = time.monotonic() - collected_at
            has_grown = resident_bytes() - size > GROWTH_BYTES
            if waited >= latest or has_grown or (waited >= quiet and delivered == seen):
                gc.collect()
                collected_at, size = time.monotonic(), resident_bytes()
            seen = delivered


def resident_bytes() -> int:
    """Return how much memory this process has; 0 where the system does not say."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    except OSError:
        return 0
