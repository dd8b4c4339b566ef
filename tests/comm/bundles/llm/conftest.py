"""The llm bundle before a real model server, and its turns."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from comm import ChatCommunicator
from comm.bundles import HistoryMessage, TurnAttachment, TurnContext, TurnMessage
from comm.bundles.llm.bundle import LlmBundle
from tests.comm.bundles.conftest import SCOPE
from tests.comm.bundles.llm.conversing import LlmTalk
from tests.comm.bundles.llm.modelserver import ModelServer

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
