"""Turns as jobs of procrastinate, on PostgreSQL: a job rings a worker, and the turn's row decides.

A job lasts as long as the turn that it began, so a worker with all places taken fetches none, and others get
them. procrastinate has no time limit for a job, and runs none again by itself: a job of a worker that died is
deleted, since its turn is looked after by lease and sweep.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import psycopg
from django.db import transaction
from procrastinate import App, JobContext
from procrastinate.contrib.django import app
from procrastinate.contrib.django.models import ProcrastinateJob
from procrastinate.contrib.django.utils import connector_params
from procrastinate.exceptions import AlreadyEnqueued
from procrastinate.jobs import DeleteJobCondition, Status
from procrastinate.psycopg_connector import PsycopgConnector
from procrastinate.worker import Worker

from comm.turns.database import Outage
from comm.turns.queue import RunTurn, TurnQueue

logger = logging.getLogger(__name__)

QUEUE = "turns"
POLL_SECONDS = 1.0
"""The connection that listens is not watched by procrastinate: what it misses is found so."""
RETRY_SECONDS = 0.5
HEARTBEAT_SECONDS = 5.0
STALLED_SECONDS = 30.0
"""A worker whose heartbeat is older is taken for dead, and its jobs are deleted."""
POOL_CONNECTIONS = 2
"""Beside the one that listens; each statement takes one for about a millisecond."""
POOL_SECONDS = 3.0
"""How long a statement waits for a connection before PostgreSQL is taken to be away."""


@app.task(name="turns.run", queue=QUEUE, pass_context=True)
async def run_turn(context: JobContext, turn_id: str) -> None:
    """Run what is next in the conversation of a turn; nothing where that is running or has ended."""
    await context.additional_context["run"](turn_id)


class JobQueue(TurnQueue):
    """Rings workers by jobs: as a part of the transaction that accepts a turn, or anew for one that nobody heard."""

    def __init__(self) -> None:
        self._stopping = False
        self._worker: Worker | None = None

    def ring(self, turn_ids: Sequence[str]) -> None:
        """Defer a job for each turn that has none waiting."""
        waiting = ProcrastinateJob.objects.filter(status=Status.TODO.value, queueing_lock__in=turn_ids)
        # Each process rings each second for what waits: refused, that would be an error in PostgreSQL's log.
        rung = set(waiting.values_list("queueing_lock", flat=True))
        for turn_id in (turn_id for turn_id in turn_ids if turn_id not in rung):
            # In a savepoint: PostgreSQL gives up the whole transaction of a job that waits already.
            with contextlib.suppress(AlreadyEnqueued), transaction.atomic():
                run_turn.configure(queueing_lock=turn_id).defer(turn_id=turn_id)

    async def work(self, run: RunTurn, concurrency: int) -> None:
        """Fetch jobs until `stop()`; begins anew when PostgreSQL was away."""
        outage = Outage()
        while not self._stopping:
            try:
                await self._reach()
                if outage.is_over():
                    logger.warning("The queue of turns is there again")
                await self._work(run, concurrency)
            except Exception:
                # A worker that fetches no more is none; its turns go on meanwhile.
                if outage.begins():
                    logger.exception("The queue of turns is away; it is tried until it is back")
            if not self._stopping:
                await asyncio.sleep(RETRY_SECONDS)

    def stop(self) -> None:
        """Fetch no more; `work` returns when the jobs that were fetched have ended."""
        self._stopping = True
        if self._worker is not None:
            self._worker.shutdown_graceful_timeout = None
            self._worker.stop()

    @staticmethod
    async def _reach() -> None:
        """Connect once: a pool would first try in ever longer pauses."""
        async with await psycopg.AsyncConnection.connect(**connector_params()):
            pass

    async def _work(self, run: RunTurn, concurrency: int) -> None:
        connector = PsycopgConnector(
            kwargs=connector_params(), min_size=1, max_size=POOL_CONNECTIONS, timeout=POOL_SECONDS
        )
        async with app.with_connector(connector).open_async() as jobs:
            worker = Worker(
                jobs,
                queues=[QUEUE],
                concurrency=concurrency,
                fetch_job_polling_interval=POLL_SECONDS,
                # Only an outage ends it before `stop()`, and then it must fetch again soon. The turns go on.
                shutdown_graceful_timeout=0.0,
                delete_jobs=DeleteJobCondition.ALWAYS,
                additional_context={"run": run},
                install_signal_handlers=False,
                update_heartbeat_interval=HEARTBEAT_SECONDS,
                stalled_worker_timeout=STALLED_SECONDS,
            )
            cleaning = asyncio.create_task(_keep_clean(jobs), name="stalled jobs")
            try:
                if not self._stopping:
                    self._worker = worker
                    await worker.run()
            finally:
                self._worker = None
                cleaning.cancel()
                await asyncio.gather(cleaning, return_exceptions=True)


async def _keep_clean(jobs: App) -> None:
    """Delete what dead workers had fetched, so that the table stays as small as the work that waits."""
    manager = jobs.job_manager
    while True:
        try:
            await manager.prune_stalled_workers(STALLED_SECONDS)
            stalled = await manager.get_stalled_jobs(queue=QUEUE, seconds_since_heartbeat=STALLED_SECONDS)
            for job in stalled:
                await manager.finish_job(job, Status.ABORTED, delete_job=True)
        except Exception:
            # Another worker may have deleted it in the same moment, and an outage ends the worker itself.
            logger.info("Stalled jobs could not be deleted", exc_info=True)
        await asyncio.sleep(STALLED_SECONDS / 3)


__all__: list[Any] = ["JobQueue", "run_turn"]
