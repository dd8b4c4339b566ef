"""The sink that records: a bounded buffer on the loop, batches of rows on a database thread of its own."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from django.db import Error, connections

from comm.sinks import Published, Sink
from comm.tenants import every_tenant

from .conf import recorder_settings
from .gaps import Gaps
from .models import RecorderRun
from .rows import write_rows

logger = logging.getLogger(__name__)

_running: list["RecorderSink"] = []


async def flush_running() -> None:
    """Write what the sink of this process has accepted so far."""
    for sink in list(_running):
        await sink.flush()


class RecorderSink(Sink):
    """Keeps every published envelope as a row.

    `accept` only appends. One task writes what has come in, at least every `FLUSH_SECONDS`; while the
    database does not answer it tries again with a growing pause. Past the buffer's bounds the newest
    envelopes are not recorded, and a RecordedGap names them; the same goes for a row that the database will
    never take. `aclose` writes everything and marks the run as clean.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._buffer: deque[Published] = deque()
        self._bytes = 0
        self._gaps = Gaps()
        self._dropping = False
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._closing = False
        self._flushes: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        self._run: RecorderRun | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recorder")

    async def start(self) -> None:
        """Note the run and begin to write; django.db.Error when there is no database to write to."""
        started_ms = time.time_ns() // 1_000_000
        self._run = await self._in_thread(lambda: RecorderRun.objects.create(started_ms=started_ms))
        self._task = asyncio.create_task(self._keep_writing(), name="recorder")
        _running.append(self)

    def accept(self, published: Published) -> None:
        """Take one envelope; never waits."""
        conf = recorder_settings()
        size = len(published.body)
        if len(self._buffer) >= conf.BUFFER_EVENTS or self._bytes + size > conf.BUFFER_BYTES:
            self._drop(published)
            return
        if self._gaps:
            self._gaps.end(published.session_id)
        self._buffer.append(published)
        self._bytes += size
        self._wake.set()
        if len(self._buffer) == conf.BATCH_ROWS:
            self._hurry.set()

    async def flush(self) -> None:
        """Write what was accepted before this call. Errors: django.db.Error, when the database is away."""
        if self._task is None or self._task.done():
            return
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushes.append(written)
        self._wake.set()
        self._hurry.set()
        await written

    async def aclose(self) -> None:
        """Write everything, mark the run as clean, and stop; gives up after `CLOSE_SECONDS`."""
        if self._task is None:
            return
        self._closing = True
        self._wake.set()
        self._hurry.set()
        try:
            async with asyncio.timeout(recorder_settings().CLOSE_SECONDS):
                await self._task
                await self._in_thread(self._end_run)
        except (TimeoutError, Error):
            logger.exception("The recording ended with %d envelopes not written", len(self._buffer))
        finally:
            self._task = None
            _running.remove(self)
            self._thread.submit(connections.close_all)
            self._thread.shutdown(wait=False)

    # --- writing ------------------------------------------------------------------------------------

    async def _keep_writing(self) -> None:
        retry_seconds = recorder_settings().RETRY_SECONDS
        try:
            while self._buffer or self._gaps or not self._closing:
                await self._wake.wait()
                await self._wait_unless_hurried(recorder_settings().FLUSH_SECONDS)
                try:
                    await self._write_round()
                    retry_seconds = recorder_settings().RETRY_SECONDS
                except Exception:
                    # The rows stay in the buffer; a database that is away must not end the recording.
                    logger.exception("Recording failed; trying again in %s s", retry_seconds)
                    await self._wait_unless_hurried(retry_seconds)
                    retry_seconds = min(retry_seconds * 2, recorder_settings().RETRY_SECONDS_MAX)
        finally:
            for written in self._flushes:
                written.cancel()

    async def _wait_unless_hurried(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), seconds)

    async def _write_round(self) -> None:
        """Write what is there now, and tell those who wait for it; what comes meanwhile has its own round."""
        self._wake.clear()
        self._hurry.clear()
        asked = len(self._flushes)
        rows = len(self._buffer)
        try:
            if rows or self._gaps:
                rows -= await self._write_batch(rows)
            while rows > 0:
                rows -= await self._write_batch(rows)
        except Exception as error:
            self._wake.set()
            self._answer_flushes(asked, error)
            raise
        self._answer_flushes(asked, None)
        self._prepare_next_round()

    def _prepare_next_round(self) -> None:
        if self._buffer or self._gaps:
            self._wake.set()
        elif self._dropping:
            self._dropping = False
            logger.warning("Recording everything again; %d envelopes so far are not recorded", self.dropped)
        if self._flushes or self._closing or len(self._buffer) >= recorder_settings().BATCH_ROWS:
            self._wake.set()
            self._hurry.set()

    def _answer_flushes(self, asked: int, error: Exception | None) -> None:
        answered, self._flushes = self._flushes[:asked], self._flushes[asked:]
        for written in answered:
            if written.done():
                continue
            if error is None:
                written.set_result(None)
            else:
                written.set_exception(error)

    async def _write_batch(self, rows: int) -> int:
        """Write the oldest rows in one transaction; they leave the buffer once they are committed."""
        batch = list(islice(self._buffer, min(rows, recorder_settings().BATCH_ROWS)))
        gaps = self._gaps.take()
        try:
            refused = await self._in_thread(lambda: write_rows(batch, gaps))
        except BaseException:
            self._gaps.give_back(gaps)
            raise
        for published in batch:
            self._buffer.popleft()
            self._bytes -= len(published.body)
        if refused:
            self.dropped += len(refused)
            logger.error("The database refused %d rows, first a %s", len(refused), refused[0].envelope.type)
        return len(batch)

    def _end_run(self) -> None:
        assert self._run is not None, "start() came before"
        self._run.ended_ms = time.time_ns() // 1_000_000
        self._run.ended_cleanly = True
        self._run.save(update_fields=["ended_ms", "ended_cleanly"])

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, _on_own_connection, work)

    def _drop(self, published: Published) -> None:
        if not self._dropping:
            self._dropping = True
            logger.error("The recorder's buffer is full: envelopes are delivered but not recorded")
        self.dropped += 1
        self._gaps.note(published)
        self._wake.set()


def _on_own_connection(work: Callable[[], Any]) -> Any:
    """Run on this thread's connection, which stays open from batch to batch; an error ends it."""
    try:
        with every_tenant():
            return work()
    except Error:
        connections.close_all()
        raise
