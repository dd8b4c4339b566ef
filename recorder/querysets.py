"""Questions that the admin, the replay and the archive ask of the recorded envelopes."""

from django.db import models
from django.db.models import Q

from comm.history import Position


class RecordedEnvelopeQuerySet(models.QuerySet):  # type: ignore[type-arg]
    """Recorded envelopes, narrowed down."""

    def in_order(self) -> "RecordedEnvelopeQuerySet":
        """Order by position: the order in which clients saw them."""
        return self.order_by("epoch", "seq", "id")

    def after(self, position: Position) -> "RecordedEnvelopeQuerySet":
        """Keep what stands after a position."""
        return self.filter(Q(epoch=position.epoch, seq__gt=position.seq) | Q(epoch__gt=position.epoch))

    def upto(self, position: Position) -> "RecordedEnvelopeQuerySet":
        """Keep what stands at a position or before it."""
        return self.filter(Q(epoch=position.epoch, seq__lte=position.seq) | Q(epoch__lt=position.epoch))
