"""The sink that records: a bounded buffer on the loop, batches of rows on a database thread of its own."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import msgspec
from channels.db import database_sync_to_async
from django.db import DatabaseError

from comm.sinks import Published, Sink

from .conf import recorder_settings
from .models import RecordedEnvelope, RecordedGap, RecorderRun

logger = logging.getLogger(__name__)

_running: list["RecorderSink"] = []


async def flush_running() -> None:
    """Write what the sink of this process has accepted so far."""
    for sink in list(_running):
        await sink.flush()


class RecorderSink(Sink):
    """Keeps every published envelope as a row.

    `accept` only appends. A task writes what has come in, at least every `FLUSH_SECONDS`; while the database
    does not answer it tries again with a growing pause. Past the buffer's bounds the newest envelopes are not
    recorded, and a RecordedGap names them. `aclose` writes everything and marks the run as clean.
    """

    def __init__(self) -> None:
        self._buffer: deque[Published] = deque()
        self._bytes = 0
        self._gaps: dict[str, _Gap] = {}
        self._work = asyncio.Event()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._run: RecorderRun | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recorder")
        self.dropped = 0

    async def start(self) -> None:
        """Note the run and begin to write."""
        started_ms = time.time_ns() // 1_000_000
        self._run = await self._in_thread(lambda: RecorderRun.objects.create(started_ms=started_ms))
        self._task = asyncio.create_task(self._keep_writing(), name="recorder")
        _running.append(self)

    def accept(self, published: Published) -> None:
        """Take one envelope; never waits."""
        conf = recorder_settings()
        if len(self._buffer) >= conf.BUFFER_EVENTS or self._bytes + len(published.body) > conf.BUFFER_BYTES:
            self._note_gap(published)
            return
        self._buffer.append(published)
        self._bytes += len(published.body)
        if len(self._buffer) == 1 or len(self._buffer) == conf.BATCH_ROWS:
            self._work.set()

    async def flush(self) -> None:
        """Write what was accepted before this call; DatabaseError when the database does not take it."""
        async with self._writing:
            target = len(self._buffer)
            while target > 0 and self._buffer:
                target -= await self._write_batch()

    async def aclose(self) -> None:
        """Write everything, mark the run as clean, and stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self in _running:
            _running.remove(self)
        try:
            await asyncio.wait_for(self._finish(), recorder_settings().CLOSE_SECONDS)
        except (TimeoutError, DatabaseError):
            logger.exception("%d envelopes could not be recorded before the end", len(self._buffer))
        finally:
            self._thread.shutdown(wait=False)

    async def _finish(self) -> None:
        await self.flush()
        if self._run is not None:
            run, ended_ms = self._run, time.time_ns() // 1_000_000
            await self._in_thread(
                lambda: RecorderRun.objects.filter(pk=run.pk).update(ended_ms=ended_ms, clean=True)
            )

    # --- writing ------------------------------------------------------------------------------------

    async def _keep_writing(self) -> None:
        pause = conf_pause = recorder_settings().RETRY_SECONDS
        while True:
            await self._work.wait()
            self._work.clear()
            if len(self._buffer) < recorder_settings().BATCH_ROWS:
                await asyncio.sleep(recorder_settings().FLUSH_SECONDS)
            try:
                await self.flush()
                pause = conf_pause
            except Exception:
                # The rows stay in the buffer; a database that is away must not end the recording.
                logger.exception("Recording failed; trying again in %s s", pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, recorder_settings().RETRY_SECONDS_MAX)
            if self._buffer:
                self._work.set()

    async def _write_batch(self) -> int:
        """Write the oldest rows in one transaction; they leave the buffer once they are committed."""
        batch = [self._buffer[i] for i in range(min(len(self._buffer), recorder_settings().BATCH_ROWS))]
        gaps = list(self._gaps.values())
        await self._in_thread(lambda: _insert(batch, gaps))
        for published in batch:
            self._buffer.popleft()
            self._bytes -= len(published.body)
        for gap in gaps:
            if self._gaps.get(gap.session_id) is gap:
                del self._gaps[gap.session_id]
        return len(batch)

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await database_sync_to_async(work, thread_sensitive=False, executor=self._thread)()

    def _note_gap(self, published: Published) -> None:
        self.dropped += 1
        gap = self._gaps.get(published.session_id)
        if gap is None:
            if not self._gaps:
                logger.error("The recorder's buffer is full: envelopes are delivered but not recorded")
            self._gaps[published.session_id] = _Gap(published)
        else:
            gap.extend(published)


class _Gap:
    """The envelopes of one session that found the buffer full."""

    def __init__(self, published: Published) -> None:
        self.session_id = published.session_id
        self.first = self.last = published.position
        self.events = 1

    def extend(self, published: Published) -> None:
        self.last = published.position
        self.events += 1


def _insert(batch: list[Published], gaps: list[_Gap]) -> None:
    RecordedEnvelope.objects.bulk_create([_row(published) for published in batch], ignore_conflicts=True)
    RecordedGap.objects.bulk_create(
        [
            RecordedGap(
                session_id=gap.session_id,
                first=str(gap.first or ""),
                last=str(gap.last or ""),
                events=gap.events,
                reason="the recorder's buffer was full",
            )
            for gap in gaps
        ]
    )


def _row(published: Published) -> RecordedEnvelope:
    envelope, position = published.envelope, published.position
    delta = envelope.delta
    return RecordedEnvelope(
        session_id=published.session_id,
        epoch=None if position is None else position.epoch,
        seq=None if position is None else position.seq,
        event=published.route,
        timestamp=datetime.fromtimestamp(envelope.ts / 1000, UTC),
        target_sid=published.target_sid or "",
        data=published.body.decode(),
        tenant=envelope.service.tenant[:100],
        project=envelope.service.project[:100],
        user=envelope.service.user[:150],
        conversation_id=envelope.conversation.conversation_id[:100],
        turn_id=envelope.conversation.turn_id[:64],
        type=envelope.type[:100],
        route=published.route,
        agent=envelope.event.agent[:100],
        marker="" if isinstance(delta, msgspec.UnsetType) else delta.marker[:100],
    )
