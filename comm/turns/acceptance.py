"""Accepting a message: conversation, turn, message and acknowledgement in one transaction."""

import uuid
from dataclasses import dataclass
from typing import Any

from django.db import IntegrityError, transaction
from django.utils import timezone

from comm.bundles.registry import known_bundle_id
from comm.exceptions import ConversationForbidden
from comm.models import Conversation, Message, Submission, Turn
from comm.tenants import tenant_scope

from .bell import ring, wake_owner
from .files import keep_files, remove_files
from .ids import mint_turn_id
from .incoming import Acknowledgement, IncomingMessage

TITLE_CHARACTERS = 80
MINT_TRIES = 100
"""Milliseconds that other processes may have taken before an id is free."""


def accept(incoming: IncomingMessage) -> Acknowledgement:
    """Accept a message and return its acknowledgement; the turn's ring is part of the same transaction.

    Synchronous; not on the event loop. It works for the message's tenant. With an idempotency key that was used
    before, return the acknowledgement of then and start nothing. Errors: BundleUnknown, ConversationForbidden;
    then nothing is stored, no row and no file.
    """
    bundle_id = known_bundle_id(incoming.bundle_id)
    with tenant_scope(incoming.tenant):
        return _accept(incoming, bundle_id)


def _accept(incoming: IncomingMessage, bundle_id: str) -> Acknowledgement:
    saved: list[str] = []
    try:
        with transaction.atomic():
            return _Acceptance(incoming, bundle_id, saved).decide()
    except IntegrityError:
        remove_files(saved)
        # Two requests with one key, or two that make one conversation: the other one has committed by now.
        return _again(incoming, bundle_id)
    except BaseException:
        remove_files(saved)
        raise


def _again(incoming: IncomingMessage, bundle_id: str) -> Acknowledgement:
    saved: list[str] = []
    try:
        with transaction.atomic():
            return _Acceptance(incoming, bundle_id, saved).decide()
    except BaseException:
        remove_files(saved)
        raise


@dataclass
class _Acceptance:
    """One message on its way into the rows."""

    incoming: IncomingMessage
    bundle_id: str
    saved: list[str]

    def decide(self) -> Acknowledgement:
        """Find out what the message means for its conversation, and do that."""
        stored = self._stored()
        if stored is not None:
            return stored
        acknowledgement = self._steer() if self.incoming.kind == "steer" else self._say()
        if self.incoming.idempotency_key:
            Submission.objects.create(
                owner=self.incoming.caller.owner,
                key=self.incoming.idempotency_key,
                acknowledgement=acknowledgement,
            )
        return acknowledgement

    def _stored(self) -> Acknowledgement | None:
        key = self.incoming.idempotency_key
        if not key:
            return None
        found = Submission.objects.filter(owner=self.incoming.caller.owner, key=key).first()
        return None if found is None else found.acknowledgement

    # --- the conversation ---------------------------------------------------------------------------

    def _find(self) -> Conversation | None:
        """Return the caller's conversation, locked. Errors: ConversationForbidden."""
        incoming = self.incoming
        if not incoming.conversation_id:
            return None
        found = (
            Conversation.objects.select_for_update()
            .filter(
                tenant=incoming.tenant, project=incoming.project, conversation_id=incoming.conversation_id
            )
            .first()
        )
        if found is not None and found.owner != incoming.caller.owner:
            raise ConversationForbidden("conversation_id: this conversation belongs to somebody else")
        return found

    def _create(self) -> Conversation:
        incoming = self.incoming
        return Conversation.objects.create(
            tenant=incoming.tenant,
            project=incoming.project,
            conversation_id=incoming.conversation_id or str(uuid.uuid4()),
            owner=incoming.caller.owner,
            session_id=incoming.caller.session_id,
            bundle_id=self.bundle_id,
            title=_title(incoming),
        )

    @staticmethod
    def _active(conversation: Conversation) -> Turn | None:
        """Return the turn that a message to this conversation meets: the running one, else the next."""
        live = conversation.turns.filter(status__in=[Turn.Status.RUNNING, Turn.Status.ACCEPTED])
        return live.filter(status=Turn.Status.RUNNING).first() or live.order_by("number").first()

    def _count(self, conversation: Conversation, **changes: Any) -> None:
        conversation.event_sequence += 1
        conversation.last_activity_at = timezone.now()
        for name, value in changes.items():
            setattr(conversation, name, value)
        conversation.save(update_fields=["event_sequence", "last_activity_at", *changes])

    # --- a message, a followup, an event --------------------------------------------------------------

    def _say(self) -> Acknowledgement:
        found = self._find()
        conversation = found or self._create()
        active = self._active(conversation) if found else None
        if not self.incoming.reactive:
            return self._note_event(conversation, active, created=found is None)
        kind = Turn.Kind.FOLLOWUP if active else Turn.Kind.REGULAR
        self._count(conversation, state="in_progress")
        turn = self._add_turn(conversation, kind, created=found is None)
        if active is None:
            ring(turn.turn_id)
            return self._acknowledge("processing_started", conversation, turn=turn, created=found is None)
        self._wake_or_ring(active, turn)
        return self._acknowledge("followup_accepted", conversation, turn=turn, active=active)

    def _note_event(
        self, conversation: Conversation, active: Turn | None, *, created: bool
    ) -> Acknowledgement:
        """Keep what starts no turn; a later turn finds it in the history."""
        self._count(conversation)
        self._add_message(conversation, None, Message.Role.EVENT)
        status = "external_event_accepted" if active else "external_event_recorded"
        return self._acknowledge(status, conversation, active=active, created=created)

    # --- steering and stopping ----------------------------------------------------------------------

    def _steer(self) -> Acknowledgement:
        conversation = self._find()
        active = None if conversation is None else self._active(conversation)
        if conversation is None or active is None:
            return self._acknowledge("active_turn_control_no_active_turn", conversation)
        if self.incoming.target_turn_id not in ("", active.turn_id):
            return self._acknowledge("active_turn_control_target_mismatch", conversation, active=active)
        self._count(conversation)
        says_something = bool(self.incoming.text.strip() or self.incoming.files)
        if active.stop_requested_at is None:
            active.stop_requested_at = timezone.now()
            active.request = {**active.request, "steered": says_something}
            active.save(update_fields=["stop_requested_at", "request"])
        turn = self._add_turn(conversation, Turn.Kind.STEER, created=False) if says_something else None
        self._wake_or_ring(active, turn or active)
        return self._acknowledge("steer_accepted", conversation, turn=turn, active=active)

    @staticmethod
    def _wake_or_ring(active: Turn, turn: Turn) -> None:
        """Wake who runs the active turn; where nobody does yet, a runner looks for what comes next."""
        if active.status == Turn.Status.RUNNING:
            transaction.on_commit(lambda: wake_owner(active.owner_channel, active.turn_id))
        else:
            ring(turn.turn_id)

    # --- rows ---------------------------------------------------------------------------------------

    def _add_turn(self, conversation: Conversation, kind: str, *, created: bool) -> Turn:
        incoming, caller = self.incoming, self.incoming.caller
        turn = _with_free_id(
            Turn(
                conversation=conversation,
                number=conversation.event_sequence,
                kind=kind,
                bundle_id=self.bundle_id if incoming.bundle_id else conversation.bundle_id or self.bundle_id,
                session_id=caller.session_id,
                user_id=caller.user_id,
                user_type=caller.user_type,
                request_id=incoming.request_id,
                origin_stream_id=incoming.origin_stream_id,
                request={
                    "text": incoming.text,
                    "kind": kind,
                    "author": incoming.author,
                    "config": incoming.config,
                    "payload": incoming.payload,
                    "external_events": incoming.external_events,
                    "chat_history": incoming.chat_history if created else [],
                    "timezone": caller.timezone,
                    "utc_offset_min": caller.utc_offset_min,
                    "conversation_created": created,
                    "channel": incoming.channel,
                },
            )
        )
        self._add_message(conversation, turn, Message.Role.USER)
        return turn

    def _add_message(self, conversation: Conversation, turn: Turn | None, role: str) -> None:
        incoming = self.incoming
        message = Message.objects.create(
            conversation=conversation,
            turn=turn,
            role=role,
            author=incoming.author,
            content=incoming.text,
            payload={"external_events": incoming.external_events} if role == Message.Role.EVENT else {},
        )
        keep_files(message, incoming.files, self.saved)

    # --- the answer ---------------------------------------------------------------------------------

    def _acknowledge(
        self,
        status: str,
        conversation: Conversation | None,
        *,
        turn: Turn | None = None,
        active: Turn | None = None,
        created: bool = False,
    ) -> Acknowledgement:
        incoming = self.incoming
        if incoming.generation == 2 and status in ("followup_accepted", "steer_accepted"):
            status = "external_event_accepted"
        spoken_of = turn or active
        acknowledgement: Acknowledgement = {
            "status": status,
            "task_id": str(uuid.uuid4()),
            "session_id": incoming.caller.session_id,
            "conversation_id": conversation.conversation_id if conversation else incoming.conversation_id,
            "turn_id": spoken_of.turn_id if spoken_of else None,
            "active_turn_id": active.turn_id if active else None,
            "target_turn_id": incoming.target_turn_id or (active.turn_id if active else None),
            "queued_turn_id": turn.turn_id if turn and active else None,
            "event_id": str(uuid.uuid4()),
            "external_event_sequence": conversation.event_sequence if conversation else 0,
            "live_owner_detected": active is not None and active.status == Turn.Status.RUNNING,
            "conversation_created": created,
            "user_type": incoming.caller.user_type,
            "message": SENTENCES[status],
        }
        if incoming.generation == 1:
            acknowledgement["message_kind"] = turn.kind if turn else (incoming.kind or "regular")
        else:
            acknowledgement["is_continuation"] = active is not None
        return acknowledgement


SENTENCES = {
    "processing_started": "The message is being answered.",
    "followup_accepted": "A turn is running; the message follows it.",
    "steer_accepted": "The running turn is being stopped.",
    "external_event_accepted": "A turn is running; the event was handed to its conversation.",
    "external_event_recorded": "The event was recorded; it starts no turn.",
    "active_turn_control_no_active_turn": "There is no running turn to steer.",
    "active_turn_control_target_mismatch": "Another turn is running than the one that was named.",
}


def _with_free_id(turn: Turn) -> Turn:
    """Save a new turn under the next id that no process has taken, nor is taking in this moment."""
    for _ in range(MINT_TRIES):
        turn.turn_id = mint_turn_id()
        try:
            with transaction.atomic():
                turn.save(force_insert=True)
        except IntegrityError:
            continue
        return turn
    raise RuntimeError(f"no turn id was free in {MINT_TRIES} tries")


def _title(incoming: IncomingMessage) -> str:
    words = " ".join(incoming.text.split()) or ", ".join(file.filename for file in incoming.files)
    return words if len(words) <= TITLE_CHARACTERS else words[: TITLE_CHARACTERS - 1].rstrip() + "…"
