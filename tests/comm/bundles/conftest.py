"""A turn for the demo bundle: a real communicator on a real layer, and files in a real storage."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages

from comm import ChatCommunicator
from comm.bundles import HistoryMessage, TurnAttachment, TurnContext, TurnMessage
from comm.turns.context import TurnScope
from tests.comm.bundles.talking import Talk

SCOPE = TurnScope(
    turn_id="turn-1",
    conversation_id="conv-1",
    session_id="session-1",
    tenant="acme",
    project="shop",
    bundle_id="demo",
    user_id="ada",
    user_type="registered",
    timezone="Asia/Tokyo",
)


@pytest.fixture(autouse=True)
def fresh_layer(settings: Any) -> None:
    """Give each test a layer of its own, with a log that holds a long turn whole."""
    layer = {
        "BACKEND": "relay.layers.memory.MemoryChannelLayer",
        "CONFIG": {"history_count": 50_000, "history_bytes": 64 * 1024 * 1024},
    }
    settings.CHANNEL_LAYERS = {"default": layer}


@pytest.fixture
def attach(settings: Any, tmp_path: Path) -> Callable[..., TurnAttachment]:
    """Store a file as an attachment of the turn."""
    backend = "django.core.files.storage.FileSystemStorage"
    storage = {"BACKEND": backend, "OPTIONS": {"location": str(tmp_path), "base_url": None}}
    settings.STORAGES = {**settings.STORAGES, "attachments": storage}

    def make(filename: str, content: bytes, mime: str = "application/octet-stream") -> TurnAttachment:
        path = storages["attachments"].save(filename, ContentFile(content))
        return TurnAttachment(filename, filename, mime, len(content), path)

    return make


@pytest.fixture
def make_talk(make_comm: Callable[..., ChatCommunicator]) -> Callable[..., Talk]:
    """Build a turn at full speed; `followups` are what the user sends while it runs."""

    def make(
        text: str = "",
        *,
        attachments: Sequence[TurnAttachment] = (),
        history: Sequence[HistoryMessage] = (),
        followups: Sequence[TurnMessage] = (),
        config: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Talk:
        queue = list(followups)

        async def absorb() -> TurnMessage | None:
            return queue.pop(0) if queue else None

        config = {"pace_ms": 0, **(config or {})}
        message = TurnMessage(text, "turn-1", attachments=attachments, config=config, **changes)
        return Talk(TurnContext(SCOPE, message, history, make_comm(), absorb), queue)

    return make
