"""Conversations, turns and messages: the rows that outlive every connection and process."""

import uuid

from django.db import models


class Conversation(models.Model):
    """A chat of one owner in one tenant and project.

    `owner` is the user's id, or the session's id for an anonymous session.
    """

    walled_by = "tenant"

    tenant = models.CharField(max_length=100)
    project = models.CharField(max_length=100)
    conversation_id = models.CharField(max_length=100)
    owner = models.CharField(max_length=150)
    session_id = models.CharField(max_length=100)
    bundle_id = models.CharField(max_length=100)
    title = models.CharField(max_length=200, blank=True)
    state = models.CharField(max_length=20, default="idle")
    event_sequence = models.PositiveBigIntegerField(default=0)
    started_at = models.DateTimeField(auto_now_add=True)
    last_activity_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["tenant", "project", "conversation_id"], name="conversation_unique_in_project"
            )
        ]
        indexes = [
            models.Index(
                fields=["tenant", "project", "owner", "-last_activity_at"], name="conversation_by_owner"
            )
        ]
        permissions = [("audit_every_tenant", "Can see the conversations and recordings of every tenant")]

    def __str__(self) -> str:
        return self.title or self.conversation_id


class Turn(models.Model):
    """One run of a bundle on one message. The row is the truth; the queue only rings.

    Life: accepted → running → completed | stopped | error | interrupted; an accepted followup that the
    running turn reads becomes absorbed. `fence` counts claims; whoever holds an older one has lost it.
    """

    class Status(models.TextChoices):
        ACCEPTED = "accepted"
        RUNNING = "running"
        COMPLETED = "completed"
        STOPPED = "stopped"
        ERROR = "error"
        INTERRUPTED = "interrupted"
        ABSORBED = "absorbed"

    walled_by = "conversation"

    class Kind(models.TextChoices):
        REGULAR = "regular"
        FOLLOWUP = "followup"
        STEER = "steer"

    turn_id = models.CharField(max_length=64, unique=True)
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="turns")
    number = models.PositiveBigIntegerField(help_text="the conversation's event_sequence that accepted it")
    kind = models.CharField(max_length=20, choices=Kind.choices, default=Kind.REGULAR)
    status = models.CharField(max_length=20, choices=Status.choices, default=Status.ACCEPTED)
    bundle_id = models.CharField(max_length=100)
    session_id = models.CharField(max_length=100)
    user_id = models.CharField(max_length=150, blank=True)
    user_type = models.CharField(max_length=20, default="anonymous")
    request_id = models.CharField(max_length=64, blank=True)
    origin_stream_id = models.CharField(max_length=200, blank=True)
    request = models.JSONField(
        default=dict, help_text="text, payload, config, timezone: what the bundle is handed"
    )
    absorbed_by = models.CharField(max_length=64, blank=True)

    owner_channel = models.CharField(max_length=100, blank=True)
    fence = models.PositiveIntegerField(default=0)
    lease_until = models.DateTimeField(null=True, blank=True)
    stop_requested_at = models.DateTimeField(null=True, blank=True)

    first_position = models.CharField(
        max_length=40, blank=True, help_text="the position before its first event"
    )
    error = models.JSONField(default=dict, blank=True)
    outcome = models.JSONField(default=dict, blank=True, help_text="folded markers, steps, followups, usage")
    accepted_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["conversation"], condition=models.Q(status="running"), name="one_running_turn"
            )
        ]
        indexes = [
            models.Index(fields=["status", "lease_until"], name="turn_by_lease"),
            models.Index(fields=["conversation", "number"], name="turn_in_order"),
        ]

    def __str__(self) -> str:
        return self.turn_id


class Message(models.Model):
    """What somebody said in a conversation: saved whether or not anyone is connected."""

    class Role(models.TextChoices):
        USER = "user"
        ASSISTANT = "assistant"
        EVENT = "event"

    walled_by = "conversation"

    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="messages")
    turn = models.ForeignKey(Turn, on_delete=models.CASCADE, null=True, blank=True, related_name="messages")
    message_id = models.UUIDField(default=uuid.uuid4, unique=True)
    role = models.CharField(max_length=20, choices=Role.choices)
    author = models.CharField(max_length=150, blank=True)
    content = models.TextField(blank=True)
    payload = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [models.Index(fields=["conversation", "id"], name="message_in_order")]

    def __str__(self) -> str:
        return f"{self.role}: {self.content[:60]}"


class LogLine(models.Model):
    """One line of what a workflow's turn did, as the chatbot feature shows it; made of the turn's steps."""

    walled_by = "conversation"

    log_id = models.CharField(max_length=64, unique=True)
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="log_lines")
    turn = models.ForeignKey(Turn, on_delete=models.CASCADE, related_name="log_lines")
    message = models.TextField()
    level = models.CharField(max_length=20, help_text="info, success, warning or error")
    status = models.CharField(max_length=20)
    step = models.CharField(max_length=200, blank=True)
    progress = models.FloatField(null=True, blank=True, help_text="0 to 1")
    round_number = models.PositiveIntegerField(default=1)
    created_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["conversation", "id"], name="log_line_in_order")]

    def __str__(self) -> str:
        return self.message[:80]


class Attachment(models.Model):
    """A file that came with a message; kept through Django's storage API, outside the web root."""

    walled_by = "message"

    message = models.ForeignKey(Message, on_delete=models.CASCADE, related_name="attachments")
    attachment_id = models.UUIDField(default=uuid.uuid4, unique=True)
    filename = models.CharField(max_length=255)
    mime = models.CharField(max_length=127)
    size = models.PositiveBigIntegerField(help_text="bytes")
    path = models.CharField(max_length=255, help_text="name in the attachments storage")

    def __str__(self) -> str:
        return self.filename


class Submission(models.Model):
    """An acknowledgement kept under its Idempotency-Key, so that a repeated POST starts nothing."""

    owner = models.CharField(max_length=150)
    key = models.CharField(max_length=200)
    acknowledgement = models.JSONField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["owner", "key"], name="submission_once")]

    def __str__(self) -> str:
        return self.key
