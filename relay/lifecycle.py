"""The life of a serving process: start, drain, stop.

No ASGI server tells an open stream that it is about to stop, so the drain is ours: it begins with the
signal, and the server's own handler is called only when every stream has had its goodbye and every sink
is flushed. `project/asgi.py` calls `start()`; on a server without lifespan, with its first request.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from channels.db import database_sync_to_async

from comm import publisher, services, sinks
from comm.bundles.registry import aclose_bundles, load_bundles
from comm.conf import comm_settings
from comm.processes import SignalHook
from comm.turns.queue import turn_queue
from comm.turns.runner import TurnRunner
from comm.turns.sweeper import TurnSweeper
from comm.wall import demand_wall

from .collecting import Collector
from .conf import relay_settings
from .history import history_layer
from .hub import get_hub
from .layers.base import HistoryChannelLayer
from .logs import redact_query_tokens
from .ownership import AlreadyServed, Ownership

logger = logging.getLogger(__name__)


class Closable(Protocol):
    """What a transport holds beyond its connections."""

    async def aclose(self) -> None:
        """Stop, and wait until nothing of it runs any more."""


class Lifecycle:
    """Starts and stops what serves in this process, once each."""

    def __init__(self) -> None:
        self.draining = False
        self._starting: asyncio.Task[None] | None = None
        self._drain: asyncio.Task[None] | None = None
        self._stopped = False
        self._ownership = Ownership()
        self._hook: SignalHook | None = None
        self._runner: TurnRunner | None = None
        self._sweeper: TurnSweeper | None = None
        self._closables: list[Closable] = []
        self._collector = Collector(lambda: get_hub().delivered)

    async def start(self) -> None:
        """Start hub, sinks, turns and the signal hook; every caller waits for the one start."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(), name="start serving")
        starting = self._starting
        try:
            # Shielded: a request that is cancelled must not stop the start for the others.
            await asyncio.shield(starting)
        except Exception:
            # A database that was away may be back for the next caller.
            if self._starting is starting and starting.done():
                self._starting = None
            raise

    def closes(self, closable: Closable) -> None:
        """Close this too, when the streams have ended."""
        self._closables.append(closable)

    @property
    def running_turns(self) -> int:
        """How many turns run here; none before the start."""
        return self._runner.running if self._runner is not None else 0

    async def aclose(self) -> None:
        """Stop everything that runs; the last step of a drain, and of a server that stops without one."""
        if self._stopped or self._starting is None:
            return
        self._stopped = True
        self.draining = True
        await self._collector.aclose()
        await services.aclose_services()
        await self._aclose_turns()
        await aclose_bundles()
        await get_hub().aclose()
        for closable in self._closables:
            await closable.aclose()
        await sinks.aclose_sinks()
        await history_layer().aclose()
        publisher.set_home_loop(None)
        await database_sync_to_async(self._ownership.release)()

    async def _start(self) -> None:
        redact_query_tokens()
        load_bundles()
        await database_sync_to_async(demand_wall)()
        layer = history_layer()
        if not layer.shared:
            await database_sync_to_async(self._ownership.take)()
        try:
            await self._start_parts(layer)
        except BaseException:
            await services.aclose_services()
            await self._aclose_turns()
            await get_hub().aclose()
            await sinks.aclose_sinks()
            await layer.aclose()
            publisher.set_home_loop(None)
            await database_sync_to_async(self._ownership.release)()
            raise
        self._hook = SignalHook(self._begin_drain)
        self._hook.install()
        self._collector.start()
        logger.info("Serving; channel layer %s", type(layer).__name__)

    async def _start_parts(self, layer: HistoryChannelLayer) -> None:
        publisher.set_home_loop(asyncio.get_running_loop())
        await get_hub().start()
        await sinks.start_sinks()
        await services.start_services(comm_settings().SERVICES)
        if turn_queue() is None:
            self._runner = TurnRunner()
            await self._runner.start(sole_owner=not layer.shared)
        else:
            # Workers run the turns; this process sees to it that none is forgotten, also when no worker lives.
            self._sweeper = TurnSweeper()
            await self._sweeper.start()

    async def _aclose_turns(self) -> None:
        for part in (self._runner, self._sweeper):
            if part is not None:
                await part.aclose()
        self._runner = self._sweeper = None

    def _begin_drain(self, pass_on: Callable[[], None]) -> None:
        if self._drain is None:
            self.draining = True
            self._drain = asyncio.create_task(self._drain_then(pass_on), name="drain")

    async def _drain_then(self, pass_on: Callable[[], None]) -> None:
        try:
            logger.info(
                "Draining: streams are told, turns may finish within %s s",
                comm_settings().DRAIN_GRACE_SECONDS,
            )
            await _step(get_hub().say_goodbye(relay_settings().DRAIN_WINDOW_SECONDS))
            if self._runner is not None:
                await _step(self._runner.drain(comm_settings().DRAIN_GRACE_SECONDS))
            await _step(self.aclose())
            logger.info("Drained")
        finally:
            pass_on()


async def _step(work: Awaitable[Any]) -> None:
    try:
        await work
    except Exception:
        # The remaining steps still save what they can, and the server must stop in the end.
        logger.exception("A step of the drain failed")


_lifecycle = Lifecycle()


async def start() -> None:
    """Make this process ready to serve; idempotent. AlreadyServed when another process holds the database."""
    await _lifecycle.start()


async def aclose() -> None:
    """Stop what `start` started; idempotent."""
    await _lifecycle.aclose()


def closes(closable: Closable) -> None:
    """Name what else of a transport is closed with the process, after the streams."""
    _lifecycle.closes(closable)


def is_draining() -> bool:
    """Tell whether this process is about to stop."""
    return _lifecycle.draining


def stats() -> dict[str, int]:
    """Return how many streams are open and how many turns run in this process."""
    return {"streams": sum(1 for _ in get_hub().peers()), "turns": _lifecycle.running_turns}


async def lifespan(
    receive: Callable[[], Awaitable[dict[str, Any]]], send: Callable[[dict[str, Any]], Awaitable[None]]
) -> None:
    """Answer the server's lifespan events."""
    while True:
        event = await receive()
        if event["type"] == "lifespan.startup":
            try:
                await start()
            except Exception as error:
                # Servers take an exception for an application without lifespan, and would serve.
                if not isinstance(error, AlreadyServed):
                    logger.exception("The server cannot start")
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            await send({"type": "lifespan.startup.complete"})
        elif event["type"] == "lifespan.shutdown":
            await aclose()
            await send({"type": "lifespan.shutdown.complete"})
            return


async def start_with_first_request() -> None:
    """Start on a server without lifespan; a process that may not serve ends instead of answering."""
    try:
        await start()
    except AlreadyServed as error:
        logger.critical("%s", error)
        os.kill(os.getpid(), signal.SIGINT)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        raise
