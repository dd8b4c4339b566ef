"""The lives of the recorder's store as rows: one run for each, and a gap where one ended with its data lost."""

import logging
from datetime import UTC, datetime

from django.db import connection, transaction
from django.db.models import Q

from .models import RecordedGap, RecorderRun
from .store import Life

logger = logging.getLogger(__name__)

LOCK = 0x6C697665
"""Of PostgreSQL's advisory locks, the one for noting lives."""

LOST = "the store lost its data, and with it what was not recorded yet"
WENT_BACK = "the store came back with older data, and lost what was not recorded yet"


def note_life(life: Life, *, seen: tuple[int, int] = (0, 0)) -> RecorderRun:
    """Return the run of the store's present life; several recorders get the same.

    A life that nobody has noted begins a run. Where the one before was a store's too, its data is gone: it ended
    uncleanly, and a gap of every session names the time. `seen` is the newest entry that this recorder knows;
    a store that gave out none so new has lost data as well. Errors: django.db.Error.
    """
    with transaction.atomic():
        _one_at_a_time()
        latest = RecorderRun.objects.order_by("-started_ms", "-id").first()
        of_store = latest is not None and latest.store_born_ms is not None and latest.ended_ms is None
        same = latest is not None and of_store and latest.store_born_ms == life.born_ms
        # A run that began after what was seen is another recorder's word of the same loss.
        went_back = same and latest is not None and life.newest < seen and latest.started_ms <= seen[0]
        if latest is not None and same and not went_back:
            return latest
        run = RecorderRun.objects.create(
            started_ms=_beginning(life, latest, went_back), store_born_ms=life.born_ms
        )
        if latest is not None and of_store:
            _end(latest, run, WENT_BACK if went_back else LOST)
        return run


def _one_at_a_time() -> None:
    """Wait for other recorders that note a life, up to the end of their transaction: what they noted is seen then.

    A lock of the newest row is none: whoever waited for it would go on with a row that is not the newest any more.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])


def _beginning(life: Life, latest: RecorderRun | None, went_back: bool) -> int:
    """Since when the rows can be whole: the store's birth, unless some of its entries went elsewhere."""
    whole = life.untouched and not went_back and (latest is None or latest.started_ms < life.born_ms)
    return life.born_ms if whole else life.now_ms


def _end(lost: RecorderRun, successor: RecorderRun, reason: str) -> None:
    lost.ended_ms = successor.started_ms
    lost.save(update_fields=["ended_ms"])
    first_ms = lost.recorded_until_ms or lost.started_ms
    logger.error("From %s to %s: %s", time_text(first_ms), time_text(successor.started_ms), reason)
    RecordedGap.objects.get_or_create(
        key=f"run:{lost.pk}",
        defaults={
            "session_id": "",
            "first": time_text(first_ms),
            "last": time_text(successor.started_ms),
            "events": 0,
            "reason": reason,
        },
    )


def mark_recorded(run: RecorderRun, until_ms: int) -> None:
    """Note that all which the store took before `until_ms` is recorded. Errors: django.db.Error."""
    earlier = Q(recorded_until_ms__isnull=True) | Q(recorded_until_ms__lt=until_ms)
    RecorderRun.objects.filter(earlier, pk=run.pk, ended_ms__isnull=True).update(recorded_until_ms=until_ms)


def time_text(ms: int) -> str:
    """Return a time as gaps without positions name it; such texts sort as their times."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
