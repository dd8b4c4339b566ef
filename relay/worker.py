"""The life of a worker: start, drain, stop. It runs turns and serves nobody; `manage.py runturns` calls it."""

import asyncio
import contextvars
import logging
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import Error, ProgrammingError

from comm import publisher, services, sinks
from comm.bundles.registry import aclose_bundles, load_bundles
from comm.conf import comm_settings
from comm.exceptions import WallDown
from comm.groups import session_group
from comm.models import Turn
from comm.processes import Heartbeat, SignalHook
from comm.turns.database import DatabaseThread
from comm.turns.queue import TurnQueue, turn_queue
from comm.turns.runner import TurnRunner
from comm.wall import demand_wall

from .collecting import Collector
from .history import history_layer

logger = logging.getLogger(__name__)

ROLE = "worker"
START_AGAIN_SECONDS = 1.0
PROBE = "worker-start"
"""The session that a starting worker asks the layer for; nobody's."""
LAST_JOBS_SECONDS = 10.0
"""What the jobs of turns that have ended may take to be deleted."""


class WorkerCannotStart(RuntimeError):
    """A worker lacks what it works with; the text says what."""


def beats_folder() -> Path:
    """Where the processes of this host leave their signs of life."""
    return Path(settings.DATA_DIR) / "alive"


class Worker:
    """One worker; `run()` once, in the process's main thread."""

    def __init__(self) -> None:
        queue = turn_queue()
        if queue is None:
            raise WorkerCannotStart(
                "Turns run in the processes that serve. Workers need REDIS_URL and a DATABASE_URL of PostgreSQL, "
                "and TURNS must not be embedded."
            )
        self._queue: TurnQueue = queue
        self._runner = TurnRunner()
        self._taking: asyncio.Task[None] | None = None
        self._signalled = asyncio.Event()
        self._draining = False
        self._heartbeat = Heartbeat(beats_folder(), ROLE, self._told)
        self._collector = Collector(self._moves)

    async def run(self) -> None:
        """Run turns until a signal, then drain; everything is flushed and closed when it returns.

        A second signal ends the process at once. Errors: WorkerCannotStart.
        """
        self._hook_signals()
        await self._wait_for_services()
        try:
            if not self._signalled.is_set():
                await self._start()
                await self._signalled.wait()
                await self._drain()
        finally:
            await self._aclose()

    # --- starting -----------------------------------------------------------------------------------

    def _hook_signals(self) -> None:
        # The second signal falls back on these: it shall end the process, not raise somewhere in a task.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        SignalHook(self._begin_drain).install()

    def _begin_drain(self, pass_on: Callable[[], None]) -> None:
        self._signalled.set()

    async def _wait_for_services(self) -> None:
        """Wait until the tables and the channel layer answer. Errors: WorkerCannotStart."""
        patience = comm_settings().WORKER_START_SECONDS
        deadline = asyncio.get_running_loop().time() + patience
        while True:
            missing = await _missing()
            if missing is None or self._signalled.is_set():
                return
            if asyncio.get_running_loop().time() > deadline:
                raise WorkerCannotStart(f"{missing} (waited {patience:.0f} s)")
            logger.warning("Waiting to start: %s", missing)
            await asyncio.sleep(START_AGAIN_SECONDS)

    async def _start(self) -> None:
        load_bundles()
        publisher.set_home_loop(asyncio.get_running_loop())
        await sinks.start_sinks()
        await services.start_services(comm_settings().WORKER_SERVICES)
        await self._runner.start(embedded=False)
        concurrency = comm_settings().TURN_CONCURRENCY
        self._taking = asyncio.get_running_loop().create_task(
            self._queue.work(self._runner.run, concurrency), name="queue", context=contextvars.Context()
        )
        self._heartbeat.start()
        self._collector.start()
        logger.info("Working; up to %s turns at once", concurrency)

    # --- stopping -----------------------------------------------------------------------------------

    async def _drain(self) -> None:
        self._draining = True
        grace = comm_settings().DRAIN_GRACE_SECONDS
        logger.info("Draining: %s turns may finish within %s s", self._runner.running, grace)
        self._queue.stop()
        await _step(self._runner.drain(grace))
        if self._taking is not None:
            await asyncio.wait([self._taking], timeout=LAST_JOBS_SECONDS)
        logger.info("Drained")

    async def _aclose(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.gather(self._taking, return_exceptions=True)
        for work in (
            self._collector.aclose,
            services.aclose_services,
            self._runner.aclose,
            aclose_bundles,
            sinks.aclose_sinks,
            history_layer().aclose,
            self._heartbeat.aclose,
        ):
            await _step(work())
        publisher.set_home_loop(None)

    def _moves(self) -> int:
        """Something that stands still only while no turn runs: then a pause for a full collection hurts nobody."""
        return time.monotonic_ns() if self._runner.running else 0

    def _told(self) -> dict[str, Any]:
        return {"role": ROLE, "turns": self._runner.running, "draining": self._draining}


async def _missing() -> str | None:
    """Return what a worker lacks to start, None when all is there.

    Errors: WorkerCannotStart for what waiting does not mend.
    """
    database = DatabaseThread("start")
    try:
        await database(Turn.objects.exists)
        await database(demand_wall)
    except ProgrammingError as error:
        raise WorkerCannotStart(
            f"The tables are not there; run `manage.py migrate` first: {error}"
        ) from error
    except WallDown as error:
        raise WorkerCannotStart(str(error)) from error
    except Error as error:
        return f"PostgreSQL does not answer: {error}"
    finally:
        await database.aclose()
    try:
        await history_layer().group_tail(session_group(PROBE))
    except OSError as error:
        return f"Redis does not answer: {error}"
    return None


async def _step(work: Awaitable[Any]) -> None:
    try:
        await work
    except Exception:
        # The remaining steps still save what they can, and the process must stop in the end.
        logger.exception("A step of the worker's end failed")
