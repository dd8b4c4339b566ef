"""The recorder process: takes envelopes from the recorder stream, writes rows, and acknowledges what is committed."""

import logging
import math
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from os import getpid

from django.db import Error, connection
from redis import RedisError, ResponseError

from comm.exceptions import WallDown
from comm.groups import session_of
from comm.recorder_stream import OTHER_GROUPS, read_gap
from comm.recorder_stream import Gap as NotedGap
from comm.sinks import Published
from comm.tenants import every_tenant
from comm.wall import demand_wall

from .conf import recorder_settings
from .entries import StreamedEnvelope, missing_from, read_streamed
from .gaps import Gap
from .lives import mark_recorded, note_life, time_text
from .models import RecordedEnvelope, RecorderRun
from .rows import write_rows
from .store import RawEntry, RecorderStore, entry_numbers

logger = logging.getLogger(__name__)

BLOCK_SECONDS = 0.5
"""How long a read waits for an entry, and so how long a signal may wait to be seen."""
CHUNK_ENTRIES = 100
BATCH_BYTES = 16 * 1024 * 1024
"""Past this a batch is full: bodies of a message's size would add up to hundreds of MiB."""
CLAIM_EACH_SECONDS = 1.0
GAPS_EACH_SECONDS = 2.0
"""While the stream stays full, a session's gap becomes a row this often."""
MARK_EACH_SECONDS = 5.0
FIRST_RETRY_SECONDS = 0.25
RETRY_SECONDS_MAX = 2.0
"""A few processes that knock this often are no load, and nobody waits longer than this for one to be back."""
FULL = "the recorder stream was full"
CAME_BACK_WITHOUT = "the store crashed, and came back without them"


class Stopped(Exception):
    """The process is to end, and the database does not take the batch in hand; nothing of it is acknowledged."""


class RecorderProcess:
    """Records until `stop` is set; several may run at once, in processes of their own.

    Order: what is acknowledged is committed. An entry is acknowledged once, and written at least once; the rows'
    unique keys make that exactly once. While the database or the store is away it tries again with a growing
    pause. At the end it finishes the batch in hand, within CLOSE_SECONDS, and leaves.
    """

    def __init__(self, stop: threading.Event, *, url: str, prefix: str) -> None:
        self.consumer = f"{socket.gethostname()}-{getpid()}-{secrets.token_hex(4)}"
        self.recorded = self.missed = 0
        self._stop = stop
        self._store = RecorderStore(url, prefix, self.consumer, block_seconds=BLOCK_SECONDS)
        self._run: RecorderRun | None = None
        self._seen = (0, 0)
        self._own_first = True
        self._claim_at = self._gaps_at = self._mark_at = 0.0

    @every_tenant()
    def run(self) -> None:
        """Record until told to stop. Errors: WallDown, where TENANT_WALL is on and the database has no wall."""
        pause = FIRST_RETRY_SECONDS
        try:
            while not self._stop.is_set():
                try:
                    demand_wall()
                    self._attach()
                    pause = FIRST_RETRY_SECONDS
                    while not self._stop.is_set():
                        self._round()
                except (RedisError, OSError, Error) as error:
                    _tell(error, pause)
                except Stopped:
                    break
                except WallDown:
                    # Not to be mended by waiting.
                    raise
                except Exception:
                    # What was not acknowledged is read again; a process that ended would record nothing at all.
                    logger.exception("Recording failed; trying again in %s s", pause)
                connection.close()
                self._stop.wait(pause)
                pause = min(pause * 2, RETRY_SECONDS_MAX)
        finally:
            self._leave()

    # --- coming and going ---------------------------------------------------------------------------

    def _attach(self) -> None:
        """Note the store's life, then join: whoever sees the group knows that the life has its run."""
        life = self._store.life()
        self._run = note_life(life, seen=self._seen)
        self._seen = life.newest
        self._store.join()
        self._own_first = True
        logger.info("Recording as %s, from a store born %s", self.consumer, time_text(life.born_ms))

    def _leave(self) -> None:
        try:
            self._mark()
            self._store.leave()
        except (RedisError, OSError, Error) as error:
            logger.warning("The recorder left without a word (%s)", error)
        finally:
            self._store.close()
            connection.close()
        logger.info("The recorder has ended: %d envelopes recorded, %d not", self.recorded, self.missed)

    def _mark(self) -> None:
        """Note down until when all is recorded, for the day on which the store loses its data."""
        if self._run is None:
            return
        born_ms, until_ms = self._store.recorded_until()
        if born_ms != self._run.store_born_ms:
            raise RedisError("the store has begun a new life")
        if until_ms is not None:
            mark_recorded(self._run, until_ms)

    # --- recording ----------------------------------------------------------------------------------

    def _round(self) -> None:
        raw = self._take()
        if raw:
            self._record([read_streamed(entry) for entry in raw])
        now = time.monotonic()
        if now >= self._gaps_at:
            self._gaps_at = now + GAPS_EACH_SECONDS
            self._record_gaps()
        if now >= self._mark_at:
            self._mark_at = now + MARK_EACH_SECONDS
            self._mark()

    def _take(self) -> list[RawEntry]:
        """Return the next batch: what this consumer holds already, what nobody works on any more, what is new."""
        conf = recorder_settings()
        if self._own_first:
            own = self._store.own(CHUNK_ENTRIES)
            if own:
                return own
            self._own_first = False
        if time.monotonic() >= self._claim_at:
            claimed = self._store.claim(CHUNK_ENTRIES, conf.CLAIM_SECONDS)
            if claimed:
                logger.warning("Took over %d entries that another recorder left", len(claimed))
                return claimed
            self._claim_at = time.monotonic() + CLAIM_EACH_SECONDS
        return self._take_new(conf.BATCH_ROWS, conf.FLUSH_SECONDS)

    def _take_new(self, rows: int, seconds: float) -> list[RawEntry]:
        batch: list[RawEntry] = []
        waited = False
        held = 0
        while len(batch) < rows and held < BATCH_BYTES:
            asked = min(CHUNK_ENTRIES, rows - len(batch))
            chunk = self._store.read(asked, wait=not batch)
            batch += chunk
            held += sum(len(fields.get(b"m", b"")) for _, fields in chunk)
            if len(chunk) == asked:
                continue
            if waited or not batch:
                break
            # One commit for what a moment brings, instead of one for each envelope.
            waited = True
            self._stop.wait(seconds)
        return batch

    def _record(self, batch: list[StreamedEnvelope]) -> None:
        """Write a batch, and acknowledge it once it is committed."""
        gaps = [entry.gap for entry in batch if entry.gap is not None]
        written = [entry for entry in batch if entry.published is not None]
        refused = self._write(written, gaps, keep=[entry.entry_id for entry in batch])
        if refused:
            logger.error("The database refused %d rows, first a %s", len(refused), refused[0].envelope.type)
        self.recorded += len(written) - len(refused)
        self.missed += len(refused) + len(gaps)
        self._store.acknowledge({entry.entry_id: entry.size for entry in batch})
        self._seen = max(self._seen, *(entry_numbers(entry.entry_id) for entry in batch))

    def _write(
        self, entries: list[StreamedEnvelope], gaps: list[Gap], *, keep: Sequence[str] = ()
    ) -> list[Published]:
        """Write until the database has taken it; return what it refused. Meanwhile `keep` stays in hand."""
        envelopes = [entry.published for entry in entries if entry.published is not None]
        entry_ids = [entry.entry_id for entry in entries]
        pause, give_up_at = FIRST_RETRY_SECONDS, math.inf
        while True:
            try:
                return write_rows(envelopes, gaps, entry_ids)
            except Error as error:
                connection.close()
                logger.warning(
                    "The database took no rows (%s); trying again in %s s", _first_line(error), pause
                )
            if self._stop.is_set():
                give_up_at = min(give_up_at, time.monotonic() + recorder_settings().CLOSE_SECONDS)
                if time.monotonic() >= give_up_at:
                    logger.warning("%d rows are not written; the next recorder will", len(envelopes))
                    raise Stopped
                time.sleep(pause)
            else:
                self._stop.wait(pause)
            pause = min(pause * 2, RETRY_SECONDS_MAX)
            self._store.keep(keep)

    def _record_gaps(self) -> None:
        """Write down what found no room in the stream; exactly once, whoever dies in between."""
        taking = self._store.take_gaps()
        if taking is None:
            return
        found = [self._gap(taking.taking_id, group, noted) for group, noted in taking.gaps.items()]
        gaps = [gap for gap in found if gap is not None]
        self._write([], gaps)
        self._store.end_taking(taking)
        for reason in sorted({gap.reason for gap in gaps}):
            lost = [gap.events for gap in gaps if gap.reason == reason]
            self.missed += sum(lost)
            logger.error("%d envelopes of %d groups are not recorded: %s", sum(lost), len(lost), reason)

    def _gap(self, taking_id: str, group: bytes, noted: bytes) -> Gap | None:
        """Return what a note means; None where all that it names is recorded."""
        name = group.decode(errors="replace")
        key = f"{taking_id}:{name}"
        try:
            gap = read_gap(group, noted)
        except ValueError:
            logger.error("The note of a gap of %s cannot be read: %r", name, noted)
            return Gap(missing_from(name), None, None, 0, FULL, key)
        reason = CAME_BACK_WITHOUT if gap.went_back else FULL
        if name != OTHER_GROUPS:
            missing = _missing(gap) if gap.went_back else gap.lost
            if gap.lost and not missing:
                return None
            return Gap(missing_from(name), gap.first, gap.last, missing, reason, key)
        # Nobody knows whose these were; all that was taken before the mark is recorded, or named by earlier gaps.
        assert self._run is not None, "a recorder attaches first"
        self._run.refresh_from_db()
        since_ms = self._run.recorded_until_ms or self._run.started_ms
        return Gap("", time_text(since_ms), time_text(time.time_ns() // 1_000_000), gap.lost, reason, key)


def _missing(gap: NotedGap) -> int:
    """Return how many of a gap are no rows: what the store has lost may have been recorded before."""
    first, last, session_id = gap.first, gap.last, session_of(gap.group)
    if first is None or last is None or first.epoch != last.epoch or not session_id:
        return gap.lost
    rows = RecordedEnvelope.objects.filter(session_id=session_id, epoch=first.epoch)
    recorded = rows.filter(seq__gte=first.seq, seq__lte=last.seq).count()
    return min(gap.lost, last.seq - first.seq + 1 - recorded)


def _tell(error: Exception, pause: float) -> None:
    if isinstance(error, ResponseError) and str(error).startswith("NOGROUP"):
        logger.warning("The recorder stream is not the one that was read: looking at it anew")
    else:
        logger.warning("Recording is held up (%s); trying again in %s s", _first_line(error), pause)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
