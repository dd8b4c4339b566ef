"""Questions about conversations: their state, their list, their content. For their owner only."""

from datetime import datetime
from typing import Any

from django.db.models import Prefetch

from comm.models import Attachment, Conversation, Message, Turn

LISTED = 200
"""Conversations that a list shows, the latest first."""

COMPLETIONS = {
    Turn.Status.COMPLETED: "success",
    Turn.Status.STOPPED: "success",
    Turn.Status.ERROR: "error",
    Turn.Status.INTERRUPTED: "interrupted",
}
LIVE = (Turn.Status.RUNNING, Turn.Status.ACCEPTED)


def conversation_status(
    owner: str, tenant: str, project: str, conversation_id: str = "", bundle_id: str = ""
) -> dict[str, Any] | None:
    """Return `{conversation_id, state, updated_at, current_turn_id}`; the owner's latest without an id."""
    found = _own(owner, tenant, project, bundle_id)
    if conversation_id:
        found = found.filter(conversation_id=conversation_id)
    conversation = found.first()
    if conversation is None:
        return None
    return {
        "conversation_id": conversation.conversation_id,
        "state": conversation.state,
        "updated_at": _iso(conversation.last_activity_at),
        "current_turn_id": _current_turn_id(conversation),
    }


def list_conversations(owner: str, tenant: str, project: str, bundle_id: str = "") -> list[dict[str, Any]]:
    """Return the owner's conversations, the latest first: id, title, and when it began and moved last."""
    return [
        {
            "conversation_id": conversation.conversation_id,
            "title": conversation.title,
            "started_at": _iso(conversation.started_at),
            "last_activity_at": _iso(conversation.last_activity_at),
        }
        for conversation in _own(owner, tenant, project, bundle_id)[:LISTED]
    ]


def fetch_conversation(owner: str, tenant: str, project: str, conversation_id: str) -> dict[str, Any] | None:
    """Return a conversation with its messages and turns in order; None when the owner has no such one."""
    conversation = _own(owner, tenant, project, "").filter(conversation_id=conversation_id).first()
    if conversation is None:
        return None
    messages = conversation.messages.select_related("turn").order_by("id")
    with_files = messages.prefetch_related(Prefetch("attachments", Attachment.objects.order_by("id")))
    return {
        "conversation_id": conversation.conversation_id,
        "title": conversation.title,
        "bundle_id": conversation.bundle_id,
        "state": conversation.state,
        "started_at": _iso(conversation.started_at),
        "last_activity_at": _iso(conversation.last_activity_at),
        "current_turn_id": _current_turn_id(conversation),
        "messages": [_message(message) for message in with_files],
        "turns": [_turn(turn) for turn in conversation.turns.order_by("number")],
    }


def _own(owner: str, tenant: str, project: str, bundle_id: str) -> Any:
    found = Conversation.objects.filter(owner=owner, tenant=tenant, project=project)
    if bundle_id:
        found = found.filter(bundle_id=bundle_id)
    return found.order_by("-last_activity_at", "-id")


def _current_turn_id(conversation: Conversation) -> str | None:
    live = conversation.turns.filter(status__in=LIVE)
    current = live.filter(status=Turn.Status.RUNNING).first() or live.order_by("number").first()
    return current.turn_id if current else None


def _message(message: Message) -> dict[str, Any]:
    return {
        "id": str(message.message_id),
        "role": message.role,
        "content": message.content,
        "created_at": _iso(message.created_at),
        "turn_id": message.turn.turn_id if message.turn else None,
        "author": message.author,
        "attachments": [
            {"id": str(file.attachment_id), "filename": file.filename, "mime": file.mime, "size": file.size}
            for file in message.attachments.all()
        ],
    }


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "turn_id": turn.turn_id,
        "kind": turn.kind,
        "status": turn.status,
        "completion": COMPLETIONS.get(Turn.Status(turn.status)),
        "absorbed_by": turn.absorbed_by or None,
        "accepted_at": _iso(turn.accepted_at),
        "started_at": _iso(turn.started_at),
        "finished_at": _iso(turn.finished_at),
        "first_position": turn.first_position or None,
        "error": turn.error or None,
        "outcome": turn.outcome,
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
