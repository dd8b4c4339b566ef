"""Who runs which turn: claims, leases, fences and ends, all in the turn's row. Synchronous ORM."""

from collections.abc import Collection
from datetime import timedelta
from typing import Any, NamedTuple

from django.db import IntegrityError, transaction
from django.db.models import Case, F, IntegerField, QuerySet, Value, When
from django.db.models.expressions import Combinable
from django.db.models.functions import Now
from django.utils import timezone

from comm.conf import comm_settings
from comm.models import Conversation, Message, Turn
from comm.storing import storable_json, storable_text

from .context import HistoryMessage, TurnMessage
from .files import as_turn_attachment


class Claim(NamedTuple):
    """A turn that its claimer may run, with what a bundle is handed."""

    turn: Turn
    message: TurnMessage
    history: list[HistoryMessage]


class Held(NamedTuple):
    """A turn that is still held: its fence, whether its user wants it to end, and whether its lease was renewed."""

    turn_id: str
    fence: int
    stop: bool
    steered: bool
    renewed: bool = False


def claim(turn_id: str, channel: str, tail: str) -> Claim | None:
    """Claim the next turn of the conversation of a rung one; None when there is nothing to run now.

    `tail` is the newest position of the turn's session, from which a late client reads the turn.
    """
    rung = Turn.objects.filter(turn_id=turn_id).only("conversation_id").first()
    if rung is None:
        return None
    try:
        with transaction.atomic():
            turn = _claim_next(rung.conversation_id, channel, tail)
    except IntegrityError:
        # Another process claimed a turn of this conversation in the same moment.
        return None
    return None if turn is None else Claim(turn, read_message(turn), _history(turn))


def _claim_next(conversation_pk: int, channel: str, tail: str) -> Turn | None:
    turns = Turn.objects.filter(conversation_id=conversation_pk)
    if turns.filter(status=Turn.Status.RUNNING).exists():
        return None
    turn = _in_order(turns.filter(status=Turn.Status.ACCEPTED)).first()
    if turn is None:
        return None
    claimed = Turn.objects.filter(pk=turn.pk, status=Turn.Status.ACCEPTED).update(
        status=Turn.Status.RUNNING,
        owner_channel=channel,
        fence=F("fence") + 1,
        lease_until=_lease_end(),
        started_at=timezone.now(),
        first_position=tail,
    )
    return Turn.objects.select_related("conversation").get(pk=turn.pk) if claimed else None


def _in_order(turns: QuerySet[Turn]) -> QuerySet[Turn]:
    """Order as they are run: a steer before what was queued earlier."""
    steer_first = Case(
        When(kind=Turn.Kind.STEER, then=Value(0)), default=Value(1), output_field=IntegerField()
    )
    return turns.order_by(steer_first, "number")


def _lease_end() -> Combinable:
    """Return the end of a lease that begins now, by the database's clock: those of the processes may differ."""
    return Now() + timedelta(seconds=comm_settings().TURN_LEASE_SECONDS)


def give_back(turn: Turn) -> bool:
    """Undo a claim that nothing was said under, so that another process runs the turn."""
    return bool(
        Turn.objects.filter(pk=turn.pk, fence=turn.fence, status=Turn.Status.RUNNING).update(
            status=Turn.Status.ACCEPTED,
            owner_channel="",
            lease_until=None,
            started_at=None,
            first_position="",
        )
    )


def renew(channel: str, turn_ids: Collection[str]) -> list[Held]:
    """Renew the leases of a process's turns in one UPDATE; return those that it still holds.

    Only of those that it runs: one whose end it could not write down must be found by a sweep. A row that a steer is
    writing in this moment is left for the next time, so that no web process can hold up the other turns.
    """
    with transaction.atomic():
        mine = Turn.objects.select_for_update(skip_locked=True).filter(
            owner_channel=channel, status=Turn.Status.RUNNING, turn_id__in=turn_ids
        )
        renewed = set(mine.values_list("turn_id", flat=True))
        Turn.objects.filter(turn_id__in=renewed).update(lease_until=_lease_end())
    return [turn._replace(renewed=turn.turn_id in renewed) for turn in held(channel)]


def held(channel: str) -> list[Held]:
    """Return the turns that a process holds."""
    rows = Turn.objects.filter(owner_channel=channel, status=Turn.Status.RUNNING)
    return [
        Held(turn_id, fence, stop is not None, bool((request or {}).get("steered")))
        for turn_id, fence, stop, request in rows.values_list(
            "turn_id", "fence", "stop_requested_at", "request"
        )
    ]


def finish(turn: Turn, status: str, *, answer: str, outcome: dict[str, Any], error: dict[str, Any]) -> bool:
    """Write down how a turn ended, and the assistant's message; False when the claim was lost meanwhile."""
    now = timezone.now()
    with transaction.atomic():
        # A message that is being accepted holds it too: whoever comes second sees what the first one did.
        Conversation.objects.select_for_update().filter(pk=turn.conversation_id).values_list("pk").first()
        ended = Turn.objects.filter(pk=turn.pk, fence=turn.fence, status=Turn.Status.RUNNING).update(
            status=status,
            finished_at=now,
            lease_until=None,
            outcome=storable_json(outcome),
            error=storable_json(error),
        )
        if not ended:
            return False
        if answer or status == Turn.Status.COMPLETED:
            Message.objects.create(
                conversation_id=turn.conversation_id,
                turn=turn,
                role=Message.Role.ASSISTANT,
                author=turn.bundle_id,
                content=storable_text(answer),
            )
        failed = status in (Turn.Status.ERROR, Turn.Status.INTERRUPTED)
        waiting = Turn.objects.filter(
            conversation_id=turn.conversation_id, status=Turn.Status.ACCEPTED
        ).exists()
        state = "in_progress" if waiting else "error" if failed else "idle"
        Conversation.objects.filter(pk=turn.conversation_id).update(state=state, last_activity_at=now)
    return True


def absorb_followup(turn: Turn) -> TurnMessage | None:
    """Hand the oldest waiting followup to the running turn; None when there is none."""
    waiting = Turn.objects.filter(
        conversation_id=turn.conversation_id, status=Turn.Status.ACCEPTED, kind=Turn.Kind.FOLLOWUP
    ).order_by("number")
    while (followup := waiting.first()) is not None:
        taken = Turn.objects.filter(pk=followup.pk, status=Turn.Status.ACCEPTED).update(
            status=Turn.Status.ABSORBED, absorbed_by=turn.turn_id, finished_at=timezone.now()
        )
        if taken:
            return read_message(followup)
    return None


def waiting_turn_ids(limit: int, *, waited_seconds: float = 0.0) -> list[str]:
    """Return the accepted turns whose conversation has none running, oldest first; those that waited so long."""
    busy = Turn.objects.filter(status=Turn.Status.RUNNING).values("conversation_id")
    waiting = Turn.objects.filter(status=Turn.Status.ACCEPTED).exclude(conversation_id__in=busy)
    if waited_seconds:
        waiting = waiting.filter(accepted_at__lt=Now() - timedelta(seconds=waited_seconds))
    return list(waiting.order_by("pk").values_list("turn_id", flat=True)[:limit])


def next_in_conversation(conversation_pk: int) -> str | None:
    """Return the turn that this conversation runs next, if one waits."""
    waiting = Turn.objects.filter(conversation_id=conversation_pk, status=Turn.Status.ACCEPTED)
    return _in_order(waiting).values_list("turn_id", flat=True).first()


def take_over_dead(channel: str, *, sole_owner: bool) -> list[Turn]:
    """Claim the turns whose owner has died, to declare them interrupted; `sole_owner`: all but one's own.

    They are held with a lease until that is done: when this process dies too, the next one declares them.
    """
    running = Turn.objects.filter(status=Turn.Status.RUNNING)
    dead = running.exclude(owner_channel=channel) if sole_owner else running.filter(lease_until__lt=Now())
    taken = []
    for turn in dead.select_related("conversation").order_by("pk"):
        mine = Turn.objects.filter(pk=turn.pk, fence=turn.fence, status=Turn.Status.RUNNING).update(
            owner_channel=channel, fence=F("fence") + 1, lease_until=_lease_end()
        )
        if mine:
            turn.fence += 1
            taken.append(turn)
    return taken


def read_message(turn: Turn) -> TurnMessage:
    """Return the message that a turn was accepted for."""
    request = turn.request
    files = [
        as_turn_attachment(file)
        for message in turn.messages.filter(role=Message.Role.USER)
        for file in message.attachments.order_by("id")
    ]
    return TurnMessage(
        text=request.get("text", ""),
        turn_id=turn.turn_id,
        kind=turn.kind,
        author=request.get("author", ""),
        config=request.get("config") or {},
        payload=request.get("payload"),
        external_events=request.get("external_events") or [],
        attachments=tuple(files),
    )


def _history(turn: Turn) -> list[HistoryMessage]:
    """Return what was said before the turn's message; the client's own account only in a new conversation."""
    own = turn.messages.filter(role=Message.Role.USER).order_by("id").first()
    earlier = Message.objects.filter(conversation_id=turn.conversation_id)
    if own is not None:
        earlier = earlier.filter(pk__lt=own.pk)
    newest = earlier.order_by("-pk")[: comm_settings().HISTORY_MESSAGES]
    kept = [HistoryMessage(message.role, message.content, message.created_at) for message in reversed(newest)]
    if kept:
        return kept
    told = turn.request.get("chat_history") or []
    return [HistoryMessage(str(item.get("role", "user")), str(item.get("content", ""))) for item in told]
