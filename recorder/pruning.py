"""Pruning: deleting old recordings in batches that hold up nobody."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from .models import RecordedEnvelope
from .querysets import RecordedEnvelopeQuerySet

BATCH_ROWS = 1000
"""Some 20 ms of SQLite's one write lock; a POST waits for no more than that."""
PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Pruning:
    """What is to go: older than `before` (aware), of one tenant and type where they are named."""

    before: datetime
    tenant: str = ""
    type: str = ""

    def rows(self) -> RecordedEnvelopeQuerySet:
        """Return the rows that are to go."""
        rows = RecordedEnvelope.objects.filter(timestamp__lt=self.before)
        if self.tenant:
            rows = rows.filter(tenant=self.tenant)
        if self.type:
            rows = rows.filter(type=self.type)
        return rows


def prune(pruning: Pruning, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[int]:
    """Delete batch by batch, each in a transaction of its own; yield the rows that each took."""
    while True:
        batch = list(pruning.rows().order_by("pk").values_list("pk", flat=True)[:BATCH_ROWS])
        if not batch:
            return
        deleted, _ = RecordedEnvelope.objects.filter(pk__in=batch).delete()
        yield deleted
        # Others that wait to write come first.
        sleep(PAUSE_SECONDS)
