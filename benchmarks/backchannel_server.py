"""Backchannel as it is served, with a producer inside."""

from typing import Any

from benchmarks.emitting import Control
from comm.envelope import ConversationContext, Delta, Envelope, Event, ServiceContext, stamp
from comm.publisher import publish
from project.asgi import application as backchannel

SERVICE = ServiceContext("benchmark", "default", "default", "", "anonymous")
EVENT = Event("assistant", "stream", "running")


async def publish_delta(session: str, number: int, text: str) -> Any:
    """Publish what `delta()` publishes."""
    timestamp, ts = stamp()
    await publish(
        Envelope(
            type="chat.delta", timestamp=timestamp, ts=ts, service=SERVICE,
            conversation=ConversationContext(session, "conversation", "turn"), event=EVENT,
            delta=Delta(text, number), text="", idx=number,
        )
    )  # fmt: skip


application = Control(backchannel, publish_delta)
