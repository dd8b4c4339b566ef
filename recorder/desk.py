"""The replay desk: shows requested replays to open streams, from within the serving process."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import msgspec
from channels.db import database_sync_to_async

from comm.envelope import Envelope, decode_envelope
from comm.history import Position
from comm.publisher import show
from comm.services import Service
from comm.tenants import every_tenant

from .models import RecordedEnvelope, ReplayRequest
from .replay import Recording
from .selection import Selection

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""How soon a request is taken; one indexed query of an empty table each time."""
CHUNK_ROWS = 200
FASTEST_PER_SECOND = 2000
"""Replays are kept in no log, so a stream that cannot keep up would miss some of a faster one."""
REPLAYS_AT_ONCE = 8


class ReplayDesk(Service):
    """Takes pending requests, one process each, and shows their envelopes at the requested pace.

    What is shown says so (`extra.replay`), keeps its turn, has no position and is not recorded again.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._replays: set[asyncio.Task[None]] = set()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="replay")

    async def start(self) -> None:
        """Begin to look for requests."""
        self._task = asyncio.create_task(self._keep_looking(), name="replay desk")

    async def aclose(self) -> None:
        """Stop; replays that are under way fail, and say why."""
        tasks = [task for task in (self._task, *self._replays) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._thread.shutdown(wait=False)

    async def _keep_looking(self) -> None:
        while True:
            try:
                while (
                    len(self._replays) < REPLAYS_AT_ONCE
                    and (request := await self._database(_take)) is not None
                ):
                    replay = asyncio.create_task(self._replay(request), name=str(request))
                    self._replays.add(replay)
                    replay.add_done_callback(self._replays.discard)
            except Exception:
                # A database that is away for a moment must not end all replays.
                logger.exception("The replay desk could not look for requests")
            await asyncio.sleep(POLL_SECONDS)

    async def _replay(self, request: ReplayRequest) -> None:
        try:
            await self._show(request)
        except asyncio.CancelledError:
            await asyncio.shield(self._end(request, ReplayRequest.State.FAILED, "the server stopped"))
            raise
        except Exception:
            # One request's trouble is not the next one's; whoever asked is told.
            logger.exception("%s failed", request)
            await self._end(
                request, ReplayRequest.State.FAILED, "it failed; the server's log has the details"
            )
        else:
            await self._end(request, ReplayRequest.State.DONE)

    async def _show(self, request: ReplayRequest) -> None:
        selection = Selection.from_json(request.selection)
        loop = asyncio.get_running_loop()
        began, first_ms = loop.time(), None
        async for row in self._rows(selection):
            envelope = decode_envelope(row.data)
            first_ms = envelope.ts if first_ms is None else first_ms
            due = max(0, envelope.ts - first_ms) / 1000 / request.speed if request.speed else 0.0
            await _sleep_until(loop, began + max(due, request.shown / FASTEST_PER_SECOND))
            await show(
                as_replay(envelope, row.position),
                session_id=request.session_id or None,
                stream_id=request.stream_id or None,
            )
            request.shown += 1
            if request.shown % CHUNK_ROWS == 0:
                await self._database(partial(request.save, update_fields=["shown"]))

    async def _rows(self, selection: Selection) -> AsyncIterator[RecordedEnvelope]:
        """Yield the selected rows as they were delivered, read a chunk at a time."""
        rows = iter(await self._database(lambda: Recording(selection.rows())))
        while chunk := await self._database(lambda: list(islice(rows, CHUNK_ROWS))):
            for row in chunk:
                yield row

    async def _end(self, request: ReplayRequest, state: str, error: str = "") -> None:
        request.state, request.error = state, error
        await self._database(partial(request.save, update_fields=["state", "error", "shown"]))

    async def _database(self, work: Callable[[], Any]) -> Any:
        with every_tenant():
            return await database_sync_to_async(work, thread_sensitive=False, executor=self._thread)()


def as_replay(envelope: Envelope, position: Position | None) -> Envelope:
    """Return the envelope as a replay shows it: the same turn, and `extra.replay` with its old position."""
    extra = {} if isinstance(envelope.extra, msgspec.UnsetType) else envelope.extra
    replay = {"id": None if position is None else str(position), "timestamp": envelope.timestamp}
    return msgspec.structs.replace(envelope, extra={**extra, "replay": replay})


async def _sleep_until(loop: asyncio.AbstractEventLoop, when: float) -> None:
    ahead = when - loop.time()
    # Small steps are taken together: a timer per envelope would cost more than the envelope.
    if ahead > 0.005:
        await asyncio.sleep(ahead)


def _take() -> ReplayRequest | None:
    """Take the oldest pending request; None when there is none."""
    pending = ReplayRequest.objects.filter(state=ReplayRequest.State.PENDING).order_by("pk")
    while (request := pending.first()) is not None:
        taken = pending.filter(pk=request.pk).update(state=ReplayRequest.State.RUNNING)
        if taken:
            request.state = ReplayRequest.State.RUNNING
            return request
    return None
