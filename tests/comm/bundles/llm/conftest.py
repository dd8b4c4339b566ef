"""The llm bundle before a real model server, and its turns."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from comm import ChatCommunicator
from comm.bundles import HistoryMessage, TurnAttachment, TurnContext, TurnMessage
from comm.bundles.llm.bundle import LlmBundle
from comm.models import Attachment, Conversation, Message, Turn
from tests.comm.bundles.conftest import SCOPE
from tests.comm.bundles.llm.conversing import LlmTalk
from tests.comm.bundles.llm.modelserver import ModelServer

Attach = Callable[..., TurnAttachment]
MakeLlmTalk = Callable[..., LlmTalk]


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    """A model server; what went wrong inside it fails the test."""
    server = ModelServer()
    await server.start()
    yield server
    await server.stop()
    assert server.failures == []


@pytest.fixture
def configure(settings: Any, server: ModelServer) -> Callable[..., None]:
    """Set LLM: the server of the test, no retries and no suggestions where the test does not ask for them."""

    def change(**changes: Any) -> None:
        base = {"BASE_URL": server.base_url, "API_KEY": "sk-secret-key-1234", "MODEL": "test-model"}
        settings.LLM = {**base, "RETRIES": 0, "SUGGESTIONS": False, "TIMEOUT_SECONDS": 20.0, **changes}

    change()
    return change


@pytest.fixture
async def bundle(configure: Callable[..., None]) -> AsyncIterator[LlmBundle]:
    """The bundle, closed when the test ends."""
    bundle = LlmBundle()
    yield bundle
    await bundle.aclose()


@pytest.fixture
def talk(bundle: LlmBundle, make_comm: Callable[..., ChatCommunicator]) -> MakeLlmTalk:
    """Build a turn; `followups` are what the user sends while it runs."""

    def make(
        text: str = "Hello?",
        *,
        attachments: Sequence[TurnAttachment] = (),
        history: Sequence[HistoryMessage] = (),
        followups: Sequence[TurnMessage] = (),
        **changes: Any,
    ) -> LlmTalk:
        queue = list(followups)

        async def absorb() -> TurnMessage | None:
            return queue.pop(0) if queue else None

        message = TurnMessage(text, "turn-1", attachments=attachments, **changes)
        return LlmTalk(bundle, TurnContext(SCOPE, message, history, make_comm(), absorb))

    return make


@pytest.fixture
def earlier_file(attach: Attach) -> Callable[..., Awaitable[None]]:
    """Keep a file as one that came with the message of an earlier turn."""

    async def keep(filename: str, content: bytes, mime: str) -> None:
        file = attach(filename, content, mime)
        names = {"tenant": "acme", "project": "shop", "conversation_id": "conv-1"}
        rest = {"owner": "ada", "session_id": "session-1", "bundle_id": "llm"}
        conversation, _ = await Conversation.objects.aget_or_create(**names, defaults=rest)
        place = {"number": 1, "bundle_id": "llm", "session_id": "session-1"}
        turn, _ = await Turn.objects.aget_or_create(
            turn_id="turn-0", conversation=conversation, defaults=place
        )
        message, _ = await Message.objects.aget_or_create(conversation=conversation, turn=turn, role="user")
        await Attachment.objects.acreate(
            message=message, filename=filename, mime=mime, size=len(content), path=file.path
        )

    return keep
