"""The turn runner: claims accepted turns and runs them as tasks of this process."""

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.db import reset_queries

from comm.conf import comm_settings
from comm.groups import session_group
from comm.models import Turn

from . import leases
from .bell import COMMAND, set_bell
from .execution import Execution, archived_answer, communicator_of, declare_interrupted
from .observing import observer_of, observing

logger = logging.getLogger(__name__)


class TurnRunner:
    """Runs turns, up to TURN_CONCURRENCY at once.

    The rows are the truth: a ring only says that it is worth looking, and a sweep finds what nobody rang
    for. Its statements run on a thread of its own, so that no bundle can hold up a lease. Whoever starts it
    closes it.
    """

    def __init__(self) -> None:
        self._executions: dict[str, Execution] = {}
        self._turn_tasks: set[asyncio.Task[None]] = set()
        self._jobs: list[asyncio.Task[None]] = []
        self._rung: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._claiming = False
        self._channel = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="turns")

    @property
    def running(self) -> int:
        """How many turns run in this process."""
        return len(self._executions)

    async def start(self, *, sole_owner: bool = False) -> None:
        """Begin to claim; `sole_owner` says that no other process can be running a turn of this database."""
        self._loop = asyncio.get_running_loop()
        self._channel = await _layer().new_channel("turns")
        self._claiming = True
        set_bell(self.ring)
        await self._declare_dead(sole_owner=sole_owner)
        for job in (self._claim_rung, self._hear_commands, self._renew, self._sweep):
            self._jobs.append(self._loop.create_task(self._keep_running(job), context=contextvars.Context()))

    def ring(self, turn_id: str) -> None:
        """Say that a turn waits; from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._note, turn_id)

    async def drain(self, grace_seconds: float) -> None:
        """Claim nothing more; let what runs end within the grace, and declare the rest interrupted."""
        self._claiming = False
        if self._turn_tasks:
            await asyncio.wait(self._turn_tasks, timeout=grace_seconds)
        for execution in list(self._executions.values()):
            execution.interrupt()
        if self._turn_tasks:
            await asyncio.wait(self._turn_tasks, timeout=comm_settings().STOP_GRACE_SECONDS + 3)

    async def aclose(self) -> None:
        """Stop at once; turns that still run are left to their leases."""
        self._claiming = False
        set_bell(None)
        tasks = [*self._jobs, *self._turn_tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._jobs.clear()
        self._thread.shutdown(wait=False)

    # --- claiming -----------------------------------------------------------------------------------

    def _note(self, turn_id: str) -> None:
        self._rung[turn_id] = None
        self._wake.set()

    async def _claim_rung(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._rung and self._may_claim():
                turn_id = next(iter(self._rung))
                del self._rung[turn_id]
                await self._claim(turn_id)

    def _may_claim(self) -> bool:
        return self._claiming and len(self._executions) < comm_settings().TURN_CONCURRENCY

    async def _claim(self, turn_id: str) -> None:
        session_id = await self._database(lambda: _session_of(turn_id))
        if session_id is None:
            return
        tail = str(await _layer().group_tail(session_group(session_id)))
        asked_at = time.monotonic()
        claim: leases.Claim | None = await self._database(lambda: leases.claim(turn_id, self._channel, tail))
        if claim is not None:
            held_until = asked_at + comm_settings().TURN_LEASE_SECONDS
            self._run(Execution(claim, self._database, held_until, waiting=len(self._rung)))

    def _run(self, execution: Execution) -> None:
        # An empty context: one inherited from async_to_sync would bring a dead thread executor.
        task = asyncio.get_running_loop().create_task(
            self._run_to_end(execution), name=execution.turn.turn_id, context=contextvars.Context()
        )
        self._executions[execution.turn.turn_id] = execution
        self._turn_tasks.add(task)
        task.add_done_callback(self._turn_tasks.discard)

    async def _run_to_end(self, execution: Execution) -> None:
        try:
            await execution.run()
        except Exception:
            # One turn's failure is not the next one's; its lease ends, and then it is declared.
            logger.exception("Turn %s failed", execution.turn.turn_id)
        finally:
            del self._executions[execution.turn.turn_id]
            # A place is free, and the conversation may have a turn waiting.
            self._wake.set()
        conversation_pk = execution.turn.conversation_id
        following = await self._database(lambda: leases.next_in_conversation(conversation_pk))
        if following is not None:
            self._note(following)

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
            self._note(turn_id)
            return
        execution.context.ring_followup()
        self._apply(await self._database(lambda: leases.held(self._channel)))

    def _apply(self, held: list[leases.Held]) -> None:
        for row in held:
            execution = self._executions.get(row.turn_id)
            if execution is not None and row.stop and row.fence == execution.turn.fence:
                execution.stop(steered=row.steered)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(comm_settings().TURN_RENEW_SECONDS)
            if not self._executions:
                continue
            running = dict(self._executions)
            asked_at = time.monotonic()
            held: list[leases.Held] = await self._database(lambda: leases.renew(self._channel))
            fences = {row.turn_id: row.fence for row in held}
            for turn_id, execution in running.items():
                if fences.get(turn_id) == execution.turn.fence:
                    execution.hold(asked_at + comm_settings().TURN_LEASE_SECONDS)
                elif turn_id in self._executions and turn_id not in fences:
                    await self._lose_unless_ended(execution)
            self._apply(held)

    async def _lose_unless_ended(self, execution: Execution) -> None:
        """Stop a turn that another process has taken; one that has just ended here is none."""
        pk, fence = execution.turn.pk, execution.turn.fence
        taken = await self._database(lambda: Turn.objects.filter(pk=pk).exclude(fence=fence).exists())
        if taken:
            execution.lose()

    # --- sweeping -----------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        while True:
            await self._declare_dead(sole_owner=False)
            if self._claiming:
                free = comm_settings().TURN_CONCURRENCY - len(self._executions)
                for turn_id in await self._database(partial(leases.waiting_turn_ids, max(0, free))):
                    self._note(turn_id)
            await asyncio.sleep(comm_settings().TURN_SWEEP_SECONDS)

    async def _declare_dead(self, *, sole_owner: bool) -> None:
        """Declare the turns of dead processes interrupted; they are never run again by themselves."""
        dead: list[Turn] = await self._database(
            lambda: leases.take_over_dead(self._channel, sole_owner=sole_owner)
        )
        for turn in dead:
            logger.warning("Turn %s: its process has died; it is declared interrupted", turn.turn_id)
            observer = observer_of(turn, self._database)
            async with observing(observer):
                await declare_interrupted(
                    turn,
                    communicator_of(turn, observer=observer),
                    self._database,
                    partial(archived_answer, turn),
                    observer,
                )

    # --- plumbing -----------------------------------------------------------------------------------

    async def _database(self, work: Callable[[], Any]) -> Any:
        def run() -> Any:
            try:
                return work()
            finally:
                # With DEBUG on Django keeps every statement, with whole answers in it, until the next request;
                # this thread serves none.
                reset_queries()

        return await database_sync_to_async(run, thread_sensitive=False, executor=self._thread)()

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


def _layer() -> Any:
    return get_channel_layer()


_runner: TurnRunner | None = None


def get_runner() -> TurnRunner:
    """Return the process's runner; RuntimeError before there is one."""
    if _runner is None:
        raise RuntimeError("this process runs no turns: the lifecycle has not started it")
    return _runner


def set_runner(runner: TurnRunner | None) -> None:
    """Name the process's runner."""
    global _runner
    _runner = runner
