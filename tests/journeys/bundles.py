"""Bundles for whole journeys."""

from comm.bundles import Bundle, TurnContext
from comm.events import get_event_manager


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
