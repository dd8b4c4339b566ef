"""Items of a workflow as its clients read them: `{type, createdAt, item}`, made of rows. Synchronous ORM."""

from datetime import datetime
from typing import Any, Literal, TypedDict

from comm.models import Conversation, LogLine, Message, Turn

KEPT_ITEMS = 2000
"""Of messages, and of logs, the newest; a page shows fewer."""


class Item(TypedDict):
    """One thing that a client shows; `createdAt` is in epoch seconds, `item.id` is unique within its type."""

    type: Literal["message", "log", "stat"]
    createdAt: float
    item: dict[str, Any]


def message_item(workflow_id: str, message: Message) -> Item:
    """Return what somebody said."""
    item = {
        "id": f"msg_{message.message_id}",
        "workflowId": workflow_id,
        "role": message.role,
        "message": message.content,
        "author": message.author,
        "turnId": message.turn.turn_id if message.turn else None,
        "publishedAt": _seconds(message.created_at),
        "documents": [
            {
                "id": str(file.attachment_id),
                "fileName": file.filename,
                "mimeType": file.mime,
                "fileSize": file.size,
            }
            for file in message.attachments.order_by("id")
        ],
    }
    return Item(type="message", createdAt=_seconds(message.created_at), item=item)


def log_item(workflow_id: str, line: LogLine) -> Item:
    """Return a line of what was done."""
    item = {
        "id": line.log_id,
        "workflowId": workflow_id,
        "message": line.message,
        "type": line.level,
        "timestamp": _seconds(line.created_at),
        "status": line.status,
        "progress": line.progress,
        "roundNumber": line.round_number,
    }
    return Item(type="log", createdAt=_seconds(line.created_at), item=item)


def stat_item(workflow_id: str, turn: Turn) -> Item | None:
    """Return what a turn used; None where its bundle did not say."""
    usage = turn.outcome.get("usage") or {}
    if not usage or turn.finished_at is None:
        return None
    item = {"id": f"stat_{turn.turn_id}", "workflowId": workflow_id, "turnId": turn.turn_id, **usage}
    return Item(type="stat", createdAt=_seconds(turn.finished_at), item=item)


def items_of(conversation: Conversation) -> list[Item]:
    """Return everything of a workflow that is in the database, by time."""
    workflow_id = conversation.conversation_id
    messages = list(conversation.messages.select_related("turn").order_by("-id")[:KEPT_ITEMS])
    lines = LogLine.objects.filter(conversation=conversation).order_by("-id")[:KEPT_ITEMS]
    turns = conversation.turns.exclude(finished_at=None).order_by("-number")[:KEPT_ITEMS]
    items = [message_item(workflow_id, message) for message in reversed(messages)]
    items += [log_item(workflow_id, line) for line in reversed(lines)]
    answered = {message.turn_id for message in messages if message.role == Message.Role.ASSISTANT}
    for turn in reversed(turns):
        # A turn that ended while the rows were read: what it used comes as an event, after its last lines.
        ended_meanwhile = turn.status == Turn.Status.COMPLETED and turn.pk not in answered
        if not ended_meanwhile and (stat := stat_item(workflow_id, turn)):
            items.append(stat)
    return sorted(items, key=lambda item: item["createdAt"])


def _seconds(moment: datetime) -> float:
    return moment.timestamp()
