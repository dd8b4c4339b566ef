"""What was delivered, kept: recorded envelopes, the runs that recorded them, and the gaps that are known."""

from typing import Any

import msgspec
from django.db import models

from comm.history import Position

from .querysets import RecordedEnvelopeQuerySet


class RecordedEnvelope(models.Model):
    """One relay message as the channel layer took it, with the columns that people look for.

    `data` is the envelope's JSON to the byte. `(session_id, epoch, seq)` is its position; project events are
    transient and have none.
    """

    walled_by = "tenant"

    session_id = models.CharField(max_length=100)
    epoch = models.BigIntegerField(null=True)
    seq = models.BigIntegerField(null=True)
    event = models.CharField(max_length=40, help_text="the name the client listens for")
    timestamp = models.DateTimeField(db_index=True)
    target_sid = models.CharField(max_length=200, blank=True, help_text="empty for a broadcast")
    data = models.TextField(help_text="the envelope as JSON")

    tenant = models.CharField(max_length=100)
    project = models.CharField(max_length=100)
    user = models.CharField(max_length=150, blank=True)
    conversation_id = models.CharField(max_length=100, blank=True)
    turn_id = models.CharField(max_length=64, blank=True)
    type = models.CharField(max_length=100)
    route = models.CharField(max_length=40)
    agent = models.CharField(max_length=100, blank=True)
    marker = models.CharField(max_length=100, blank=True)
    entry = models.CharField(  # noqa: DJ001 - NULL is no value of a unique index; an empty text would be one
        max_length=48,
        null=True,
        editable=False,
        help_text="entry of the recorder stream behind an envelope without a position",
    )

    objects = RecordedEnvelopeQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["session_id", "epoch", "seq"], name="recorded_once_per_position"),
            # Partial: project events are few, and rows with a position pay nothing for it.
            models.UniqueConstraint(
                fields=["entry"], condition=models.Q(entry__isnull=False), name="recorded_once_per_entry"
            ),
        ]
        indexes = [
            models.Index(fields=["turn_id", "epoch", "seq"], name="recorded_by_turn"),
            models.Index(fields=["conversation_id", "epoch", "seq"], name="recorded_by_conversation"),
            models.Index(fields=["tenant", "-timestamp"], name="recorded_by_tenant"),
            models.Index(fields=["type", "-timestamp"], name="recorded_by_type"),
            models.Index(fields=["user", "-timestamp"], name="recorded_by_user"),
            models.Index(fields=["route", "-timestamp"], name="recorded_by_route"),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.position or ''}".strip()

    @property
    def position(self) -> Position | None:
        """Where the envelope stands in its session's log."""
        return None if self.epoch is None or self.seq is None else Position(self.epoch, self.seq)

    @property
    def envelope(self) -> dict[str, Any]:
        """The envelope as clients read it."""
        value: dict[str, Any] = msgspec.json.decode(self.data)
        return value

    @property
    def excerpt(self) -> str:
        """What the envelope says, in at most 120 characters."""
        envelope = self.envelope
        data = envelope.get("data", {})
        said = [envelope.get("text"), envelope["event"].get("title"), data.get("message"), data.get("error")]
        said += [data.get("state"), envelope["event"].get("markdown"), envelope["event"].get("step")]
        text = next((text for text in said if isinstance(text, str) and text), "")
        return text if len(text) <= 120 else text[:119] + "…"

    def relay_message(self) -> dict[str, Any]:
        """The relay message around the envelope, with its position."""
        return self._relay_message(self.envelope)

    def relay_line(self) -> str:
        """The relay message as one line of JSON, with the envelope's own JSON to the byte."""
        return msgspec.json.encode(self._relay_message(msgspec.Raw(self.data.encode()))).decode()

    def _relay_message(self, data: Any) -> dict[str, Any]:
        return {
            "id": None if self.position is None else str(self.position),
            "target_sid": self.target_sid or None,
            "session_id": self.session_id,
            "event": self.event,
            "data": data,
            "timestamp": self.timestamp.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }


class RecorderRun(models.Model):
    """One life of what holds envelopes until they are rows: of a recording server, or of the recorder's store.

    An epoch that began in a run which ended cleanly is complete here: everything was flushed before `ended_cleanly`
    was set. A store (with `store_born_ms`) outlives the recorders that read it; its run ends when it has lost
    its data, and never cleanly. Times are epoch milliseconds, as epochs are.
    """

    started_ms = models.BigIntegerField(db_index=True)
    ended_ms = models.BigIntegerField(null=True, blank=True)
    ended_cleanly = models.BooleanField(default=False)
    store_born_ms = models.BigIntegerField(
        null=True, blank=True, help_text="when the data of the store began; none for a server's own run"
    )
    recorded_until_ms = models.BigIntegerField(
        null=True, blank=True, help_text="all that the store took before this time is recorded"
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["store_born_ms", "started_ms"], name="recorder_run_of_a_store_once"
            )
        ]

    def __str__(self) -> str:
        return f"run of {self.started_ms}"


class RecordedGap(models.Model):
    """Envelopes that were delivered but could not be recorded: of a session, of a project, or of everybody.

    `session_id` is empty where every session may miss some: then `first` and `last` are times, and how many
    events there were (0) is unknown. It is a group's name where that is all that is known. `key` is what keeps
    a gap from being noted twice.
    """

    walled_by = ""

    session_id = models.CharField(max_length=100, blank=True, db_index=True)
    first = models.CharField(max_length=40, help_text="first position that is missing")
    last = models.CharField(max_length=40, help_text="last position that is missing")
    events = models.PositiveIntegerField()
    reason = models.CharField(max_length=200)
    noted_at = models.DateTimeField(auto_now_add=True)
    key = models.CharField(  # noqa: DJ001 - NULL is no value of a unique index; an empty text would be one
        max_length=200, null=True, editable=False
    )

    class Meta:
        constraints = [models.UniqueConstraint(fields=["key"], name="recorded_gap_once_per_key")]

    def __str__(self) -> str:
        # No session id: whoever holds that of an anonymous session holds the session.
        return f"{self.events or 'unknown'} events from {self.first or 'no position'}"


class ReplayRequest(models.Model):
    """A replay to open streams, asked for by a command or in the admin and shown by a serving process.

    The streams are open in the server's process, so the request goes through this row: pending → running →
    done | failed. A request that no server takes is withdrawn by whoever asked.
    """

    walled_by = ""

    class State(models.TextChoices):
        PENDING = "pending"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"
        WITHDRAWN = "withdrawn"

    stream_id = models.CharField(max_length=200, blank=True, help_text="to this stream, or")
    session_id = models.CharField(max_length=100, blank=True, help_text="to every stream of this session")
    selection = models.JSONField(help_text="what to replay, as recorder.selection writes it")
    speed = models.FloatField(default=1.0)
    state = models.CharField(max_length=20, choices=State.choices, default=State.PENDING)
    total = models.PositiveIntegerField(default=0)
    shown = models.PositiveIntegerField(default=0)
    error = models.CharField(max_length=200, blank=True)
    requested_by = models.CharField(max_length=150, blank=True)
    requested_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [models.Index(fields=["state", "id"], name="replay_request_by_state")]

    def __str__(self) -> str:
        return f"replay {self.pk} to {self.stream_id or self.session_id}"
