"""The sweeper: finds turns that nobody heard of, and turns whose process has died."""

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from channels.layers import get_channel_layer
from django.db import Error

from comm.conf import comm_settings
from comm.exceptions import CommError
from comm.models import Turn

from . import leases
from .database import DatabaseThread, Outage, for_tenant
from .endings import archived_answer, declare_interrupted
from .observing import observer_of, observing
from .queue import turn_queue
from .voice import Hold, communicator_of

logger = logging.getLogger(__name__)

RUNG_AT_ONCE = 100
"""Turns that one sweep rings again; those that have waited longest come first."""
DECLARED_AT_ONCE = 8
"""A dead worker leaves as many turns as it ran; each is told of, written down, and looked up in the archive."""


class TurnSweeper:
    """Looks at the rows each TURN_SWEEP_SECONDS, in every process that serves or works.

    What was accepted and is not claimed is rung again: `ring_here` tells this process's runner, without it the
    queue is told. A turn whose lease has ended is declared interrupted by whoever claims that first, and is never
    run again by itself. Whoever starts it closes it.
    """

    def __init__(self, ring_here: Callable[[Iterable[str]], None] | None = None) -> None:
        self._ring_here = ring_here
        self._database = DatabaseThread("sweeper")
        self._channel = ""
        self._task: asyncio.Task[None] | None = None

    async def start(self, *, sole_owner: bool = False) -> None:
        """Declare what has died, then go on sweeping; `sole_owner`: no other process can be running a turn."""
        self._channel = await _new_channel()
        await self._declare_dead(sole_owner=sole_owner)
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._keep_sweeping(), name="sweeper", context=contextvars.Context())

    async def aclose(self) -> None:
        """Stop sweeping; what it was about to declare is declared by the next."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._database.aclose()

    async def _keep_sweeping(self) -> None:
        outage = Outage()
        while True:
            try:
                await self._declare_dead(sole_owner=False)
                await self._ring_waiting()
                if outage.is_over():
                    logger.warning("Turns are swept again")
            except Exception:
                # Somebody must go on looking: the database may be back for the next sweep.
                if outage.begins():
                    logger.exception("Turns could not be swept; it is tried until it works")
            await asyncio.sleep(comm_settings().TURN_SWEEP_SECONDS)

    async def _ring_waiting(self) -> None:
        if self._ring_here is not None:
            self._ring_here(await self._database(partial(leases.waiting_turn_ids, RUNG_AT_ONCE)))
        else:
            await self._database(_ring_workers)

    async def _declare_dead(self, *, sole_owner: bool) -> None:
        held_until = time.monotonic() + comm_settings().TURN_LEASE_SECONDS
        dead: list[Turn] = await self._database(
            lambda: leases.take_over_dead(self._channel, sole_owner=sole_owner)
        )
        places = asyncio.Semaphore(DECLARED_AT_ONCE)
        declaring = (self._declare(turn, held_until, places) for turn in dead)
        # A publish that the time limit cuts off may be cancelled after it: that ends one turn's declaration, no more.
        for outcome in await asyncio.gather(*declaring, return_exceptions=True):
            if isinstance(outcome, Exception):
                logger.error("A turn could not be declared interrupted", exc_info=outcome)

    async def _declare(self, turn: Turn, held_until: float, places: asyncio.Semaphore) -> None:
        logger.warning("Turn %s: its process has died; it is declared interrupted", turn.turn_id)
        hold = Hold(turn.turn_id, held_until)
        try:
            async with places, asyncio.timeout(held_until - time.monotonic()):
                database = for_tenant(turn.conversation.tenant, self._database)
                observer = observer_of(turn, database)
                async with observing(observer):
                    await declare_interrupted(
                        turn,
                        communicator_of(turn, hold.check, observer),
                        database,
                        partial(archived_answer, turn),
                        observer,
                    )
        except (CommError, OSError, Error, TimeoutError):
            # It is held with a lease: when that ends, the next sweep of any process tries again.
            logger.exception("Turn %s could not be declared interrupted; it is tried again", turn.turn_id)


def _ring_workers() -> None:
    """Ring what the workers have not heard of within a sweep: the bell of a moment ago may still be on its way."""
    queue = turn_queue()
    waited = 2 * comm_settings().TURN_SWEEP_SECONDS
    waiting = leases.waiting_turn_ids(RUNG_AT_ONCE, waited_seconds=waited)
    if queue is not None and waiting:
        queue.ring(waiting)


async def _new_channel() -> str:
    layer: Any = get_channel_layer()
    assert layer is not None
    return str(await layer.new_channel("sweeper"))
