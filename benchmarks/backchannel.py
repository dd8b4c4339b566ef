"""Backchannel's producer: publishes what `delta()` publishes."""

import os
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
django.setup()

from comm.envelope import ConversationContext, Delta, Envelope, Event, ServiceContext, stamp  # noqa: E402
from comm.publisher import publish as publish_envelope  # noqa: E402

SERVICE = ServiceContext("benchmark", "default", "default", "", "anonymous")
EVENT = Event("assistant", "stream", "running")


async def publish(session: str, number: int, text: str) -> Any:
    """Publish one delta."""
    timestamp, ts = stamp()
    return await publish_envelope(
        Envelope(
            type="chat.delta", timestamp=timestamp, ts=ts, service=SERVICE,
            conversation=ConversationContext(session, "conversation", "turn"), event=EVENT,
            delta=Delta(text, number), text="", idx=number,
        )
    )  # fmt: skip
