"""A communicator of one turn, and somebody who hears it."""

from collections.abc import Callable
from typing import Any

import pytest

from comm import ChatCommunicator
from tests.comm.listening import Listener

SERVICE = {
    "request_id": "req-1",
    "tenant": "acme",
    "project": "shop",
    "user": "ada",
    "user_type": "registered",
}
CONVERSATION = {"session_id": "session-1", "conversation_id": "conv-1", "turn_id": "turn-1"}


@pytest.fixture(autouse=True)
def fresh_layer(settings: Any) -> None:
    """Give each test a channel layer of its own."""
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "relay.layers.memory.MemoryChannelLayer"}}


@pytest.fixture
def make_comm() -> Callable[..., ChatCommunicator]:
    """Build a communicator of the one turn these tests know."""

    def make(**changes: Any) -> ChatCommunicator:
        return ChatCommunicator(**{"service": SERVICE, "conversation": CONVERSATION, **changes})

    return make


@pytest.fixture
def comm(make_comm: Callable[..., ChatCommunicator]) -> ChatCommunicator:
    """A communicator without a target or filters."""
    return make_comm()


@pytest.fixture
async def listener(fresh_layer: None) -> Listener:
    """Somebody who is in the session before anything is said."""
    return await Listener.on_session("session-1")
