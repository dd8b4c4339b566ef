"""A turn that says a little of everything, and what of it was recorded."""

from typing import Any

from comm import ChatCommunicator

EVERYTHING = ["chat.start", "chat.step", "chat.delta", "accounting.usage", "status.update", "chat.complete"]


async def say_everything(comm: ChatCommunicator) -> None:
    """Say one event of each kind; some of their data is nobody's business."""
    await comm.start(message="hello")
    await comm.step(step="search", status="completed", title="Searched", data={"rows": 3, "query": "secret"})
    await comm.delta("answer", "private text")
    await comm.event(
        type="accounting.usage",
        data={"breakdown": [{"input_tokens": 3}], "cost_total_usd": 0.5, "model": "m"},
    )
    await comm.service_event(type="status.update", data={"value": "busy"}, target_sid="tab-1")
    await comm.complete()


def types(items: list[dict[str, Any]]) -> list[str]:
    """Return the types of items."""
    return [item["type"] for item in items]


def titles(items: list[dict[str, Any]]) -> list[str]:
    """Return the titles of items."""
    return [item["event"]["title"] for item in items]
