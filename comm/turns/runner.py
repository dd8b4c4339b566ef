"""The turn runner: claims accepted turns and runs them as tasks of this process."""

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from channels.layers import get_channel_layer

from comm.conf import comm_settings
from comm.groups import session_group
from comm.models import Turn

from . import leases
from .bell import COMMAND, ring, set_bell
from .database import DatabaseThread, Outage
from .execution import Execution
from .sweeper import TurnSweeper

logger = logging.getLogger(__name__)

RENEW_AGAIN_SECONDS = 0.25
"""After a renewal that failed: the lease goes on ending."""
WIND_UP_SECONDS = 5.0
"""What an interrupted turn has to say and write so, beyond what its bundle is given to stop."""


class TurnRunner:
    """Runs turns, up to TURN_CONCURRENCY at once.

    The rows are the truth: a ring only says that it is worth looking, and a sweep finds what nobody rang
    for. Its statements run on threads of its own, and the renewals on one more, so that no bundle and no other
    statement can hold up a lease. Whoever starts it closes it.
    """

    def __init__(self) -> None:
        self._executions: dict[str, Execution] = {}
        self._turn_tasks: set[asyncio.Task[None]] = set()
        self._jobs: list[asyncio.Task[None]] = []
        self._rung: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._claiming = False
        self._places_taken = 0
        self._place_freed = asyncio.Event()
        self._channel = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._database = DatabaseThread("turns")
        self._leases = DatabaseThread("leases")
        self._sweeper: TurnSweeper | None = None

    @property
    def running(self) -> int:
        """How many turns run in this process."""
        return len(self._executions)

    async def start(self, *, sole_owner: bool = False, embedded: bool = True) -> None:
        """Begin to claim.

        Embedded, it hears this process's bell, and its sweeper rings for it; else `run` is called with what the
        queue rang. `sole_owner` says that no other process can be running a turn of this database.
        """
        self._loop = asyncio.get_running_loop()
        self._channel = await _layer().new_channel("turns")
        self._claiming = True
        self._sweeper = TurnSweeper(self._note_all if embedded else None)
        jobs: list[Callable[[], Awaitable[None]]] = [self._hear_commands, self._renew]
        if embedded:
            set_bell(self.ring)
            jobs.append(self._claim_rung)
        await self._sweeper.start(sole_owner=sole_owner)
        for job in jobs:
            self._jobs.append(self._loop.create_task(self._keep_running(job), context=contextvars.Context()))

    def ring(self, turn_id: str) -> None:
        """Say that a turn waits; from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._note, turn_id)

    async def run(self, turn_id: str) -> None:
        """Run what is next in the conversation of a rung turn, and wait for its end; rung again where it cannot start.

        Waits for a place. Whoever cancels this call does not cancel the turn.
        """
        if not await self._take_place():
            # The process is about to stop: somebody else shall hear of it.
            await self._database(partial(ring, turn_id))
            return
        task = await self._claim(turn_id)
        if task is not None:
            await asyncio.wait([task])

    async def drain(self, grace_seconds: float) -> None:
        """Claim nothing more; let what runs end within the grace, and declare the rest interrupted."""
        self._claiming = False
        self._place_freed.set()
        if self._turn_tasks:
            await asyncio.wait(self._turn_tasks, timeout=grace_seconds)
        for execution in list(self._executions.values()):
            execution.interrupt()
        if self._turn_tasks:
            patience = comm_settings().STOP_GRACE_SECONDS + WIND_UP_SECONDS
            await asyncio.wait(self._turn_tasks, timeout=patience)

    async def aclose(self) -> None:
        """Stop at once; turns that still run are left to their leases."""
        self._claiming = False
        self._place_freed.set()
        set_bell(None)
        tasks = [*self._jobs, *self._turn_tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._jobs.clear()
        if self._sweeper is not None:
            await self._sweeper.aclose()
        await self._leases.aclose()
        await self._database.aclose()

    # --- claiming -----------------------------------------------------------------------------------

    def _note(self, turn_id: str) -> None:
        self._rung[turn_id] = None
        self._wake.set()

    def _note_all(self, turn_ids: Iterable[str]) -> None:
        for turn_id in turn_ids:
            self._note(turn_id)

    async def _claim_rung(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._rung and await self._take_place():
                turn_id = next(iter(self._rung))
                del self._rung[turn_id]
                await self._claim(turn_id)

    async def _take_place(self) -> bool:
        """Wait for a place to run a turn in; False when none may start any more."""
        while self._claiming and self._places_taken >= comm_settings().TURN_CONCURRENCY:
            self._place_freed.clear()
            await self._place_freed.wait()
        self._places_taken += self._claiming
        return self._claiming

    def _give_place(self) -> None:
        self._places_taken -= 1
        self._place_freed.set()

    async def _claim(self, turn_id: str) -> "asyncio.Task[None] | None":
        """Claim for a place that was taken, which becomes free again with the turn, or at once without one."""
        task = None
        try:
            execution = await self._execution_for(turn_id)
            if execution is not None:
                task = self._run(execution)
            return task
        finally:
            if task is None:
                self._give_place()

    async def _execution_for(self, turn_id: str) -> Execution | None:
        session_id = await self._database(lambda: _session_of(turn_id))
        if session_id is None:
            return None
        tail = str(await _layer().group_tail(session_group(session_id)))
        asked_at = time.monotonic()
        claims: list[leases.Claim | None] = []
        try:
            await self._database(lambda: claims.append(leases.claim(turn_id, self._channel, tail)))
        except asyncio.CancelledError:
            # The thread goes on with it all the same; what it has claimed nobody would run.
            self._database.later(lambda: _give_back_all(claims))
            raise
        claim = claims[0]
        if claim is None:
            return None
        if not self._claiming:
            await self._database(partial(_give_back, claim.turn))
            return None
        held_until = asked_at + comm_settings().TURN_LEASE_SECONDS
        return Execution(claim, self._database, held_until, waiting=len(self._rung))

    def _run(self, execution: Execution) -> "asyncio.Task[None]":
        # An empty context: one inherited from async_to_sync would bring a dead thread executor.
        task = asyncio.get_running_loop().create_task(
            self._run_to_end(execution), name=execution.turn.turn_id, context=contextvars.Context()
        )
        self._executions[execution.turn.turn_id] = execution
        self._turn_tasks.add(task)
        task.add_done_callback(self._turn_tasks.discard)
        return task

    async def _run_to_end(self, execution: Execution) -> None:
        try:
            await execution.run()
        except Exception:
            # One turn's failure is not the next one's; its lease ends, and then it is declared.
            logger.exception("Turn %s failed", execution.turn.turn_id)
        finally:
            del self._executions[execution.turn.turn_id]
            self._give_place()
        try:
            await self._database(partial(_ring_next, execution.turn.conversation_id))
        except Exception:
            # The sweep finds it.
            logger.exception("The conversation of turn %s could not go on at once", execution.turn.turn_id)

    # --- leases and commands ------------------------------------------------------------------------

    async def _hear_commands(self) -> None:
        while True:
            message = await _layer().receive(self._channel)
            if message.get("type") == COMMAND:
                await self._obey(message["turn_id"])

    async def _obey(self, turn_id: str) -> None:
        execution = self._executions.get(turn_id)
        if execution is None:
            # It has ended meanwhile: what came for it is next in its conversation.
            await self._database(partial(ring, turn_id))
            return
        execution.context.ring_followup()
        self._apply(await self._database(lambda: leases.held(self._channel)))

    def _apply(self, held: list[leases.Held]) -> None:
        for row in held:
            execution = self._executions.get(row.turn_id)
            if execution is not None and row.stop and row.fence == execution.turn.fence:
                execution.stop(steered=row.steered)

    async def _renew(self) -> None:
        outage = Outage()
        pause = comm_settings().TURN_RENEW_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = comm_settings().TURN_RENEW_SECONDS
            if not self._executions:
                continue
            try:
                await self._renew_leases()
            except Exception:
                # A lease ends soon, and a database that was away for a moment may be back before.
                if outage.begins():
                    logger.exception("Leases could not be renewed; it is tried until it works")
                pause = min(pause, RENEW_AGAIN_SECONDS)
            else:
                if outage.is_over():
                    logger.warning("Leases are renewed again")

    async def _renew_leases(self) -> None:
        running = dict(self._executions)
        asked_at = time.monotonic()
        held: list[leases.Held] = await self._leases(lambda: leases.renew(self._channel, list(running)))
        rows = {row.turn_id: row for row in held}
        for turn_id, execution in running.items():
            row = rows.get(turn_id)
            if row is not None and row.fence == execution.turn.fence:
                if row.renewed:
                    execution.hold(asked_at + comm_settings().TURN_LEASE_SECONDS)
            elif turn_id in self._executions and row is None:
                await self._lose_unless_ended(execution)
        self._apply(held)

    async def _lose_unless_ended(self, execution: Execution) -> None:
        """Stop a turn that another process has taken; one that has just ended here is none."""
        pk, fence = execution.turn.pk, execution.turn.fence
        taken = await self._leases(lambda: Turn.objects.filter(pk=pk).exclude(fence=fence).exists())
        if taken:
            execution.lose()

    # --- plumbing -----------------------------------------------------------------------------------

    async def _keep_running(self, job: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await job()
            except Exception:
                # A runner that stopped looking would leave its turns to die.
                logger.exception(
                    "The turn runner's %s failed; it starts again", getattr(job, "__name__", job)
                )
                await asyncio.sleep(1)


def _session_of(turn_id: str) -> str | None:
    return Turn.objects.filter(turn_id=turn_id).values_list("session_id", flat=True).first()


def _give_back(turn: Turn) -> None:
    if leases.give_back(turn):
        ring(turn.turn_id)


def _give_back_all(claims: list[leases.Claim | None]) -> None:
    for claim in claims:
        if claim is not None:
            _give_back(claim.turn)


def _ring_next(conversation_pk: int) -> None:
    following = leases.next_in_conversation(conversation_pk)
    if following is not None:
        ring(following)


def _layer() -> Any:
    return get_channel_layer()
