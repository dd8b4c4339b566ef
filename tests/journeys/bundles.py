"""Bundles for whole journeys."""

import json

from asgiref.sync import sync_to_async
from channels.db import database_sync_to_async
from django.db import connection

from comm.bundles import Bundle, OperationCall, TurnContext, operation
from comm.events import get_event_manager
from comm.models import Conversation, Message


class Silent(Bundle):
    """Reads no file, says one word."""

    async def run(self, turn: TurnContext) -> None:
        await turn.communicator.delta("answer", "done")


class Stepping(Bundle):
    """Shows steps and usage, then answers; waits for a followup or the stop when it is told to."""

    async def run(self, turn: TurnContext) -> None:
        comm = turn.communicator
        await comm.step("Searching", "started", step="search", data={"progress": 0.0})
        if "wait" in turn.message.text:
            followup = await turn.next_followup(timeout=20)
            await comm.delta("answer", f"You also said {followup.text}. " if followup else "")
        if "fail" in turn.message.text:
            raise ValueError("a secret")
        files = ", ".join(file.filename for file in turn.attachments)
        await comm.step("Searching", "completed", step="search", markdown="3 hits", data={"progress": 1.0})
        await comm.event(
            type="accounting.usage",
            data={"breakdown": [{"input_tokens": 5, "output_tokens": 7}], "cost_total_usd": 0.25},
        )
        await comm.delta("answer", f"Done in {turn.message.config.get('userLanguage', 'English')}. {files}")


class Emitting(Bundle):
    """Tells its workflow's readers things of its own."""

    async def run(self, turn: TurnContext) -> None:
        manager = get_event_manager()
        await manager.emit_event(
            turn.conversation_id, "progress", {"done": 0.5}, "workflow", message="Half", step="work"
        )
        own = {"type": "message", "createdAt": 1.0, "item": {"id": "own-1", "message": "My own"}}
        await manager.emit_event(turn.conversation_id, "chatdata", own, "chat")


class Looking(Bundle):
    """Answers with the tenants whose conversations it sees, in each way in which it can look."""

    async def run(self, turn: TurnContext) -> None:
        ways = {
            "async": sorted({row.tenant async for row in Conversation.objects.all()}),
            "raw": await sync_to_async(_tenants_in_raw_sql)(),
            "thread": await database_sync_to_async(_tenants_in_raw_sql, thread_sensitive=False)(),
            "texts": await sync_to_async(lambda: [m.content for m in Message.objects.order_by("id")])(),
        }
        if "wait" in turn.message.text:
            await turn.next_followup(timeout=60)
        await turn.communicator.delta("answer", json.dumps(ways))

    @operation
    async def look(self, call: OperationCall) -> list[str]:
        return sorted({row.tenant async for row in Conversation.objects.all()})

    @operation
    def look_in_thread(self, call: OperationCall) -> list[str]:
        return _tenants_in_raw_sql()


def _tenants_in_raw_sql() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT tenant FROM comm_conversation ORDER BY tenant")
        return [row[0] for row in cursor.fetchall()]
