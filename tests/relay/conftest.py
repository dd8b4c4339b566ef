"""A hub on a channel layer of its own, and peers whose socket the test opens and closes."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from channels.layers import channel_layers
from django.test import override_settings

from comm.groups import session_group
from comm.history import Position
from comm.publisher import MESSAGE_TYPE
from relay.hub import Hub
from relay.layers.base import HistoryChannelLayer
from relay.peers import Peer
from relay.transports.frames import encode_body, sse_frame
from tests.clients import SseEvent, parse_event
from tests.contract.backends import BACKENDS
from tests.waiting import aeventually


class TestWire:
    """A socket in memory: takes everything while `open`, makes writers wait while it is not."""

    __test__ = False
    encode = staticmethod(sse_frame)
    keepalive = b": keepalive\n\n"

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.writes: list[bytes] = []
        self.finished = 0
        self.error: Exception | None = None

    async def write(self, frames: Sequence[bytes]) -> None:
        if not self.open.is_set():
            await self.open.wait()
        if self.error is not None:
            raise self.error
        self.writes.append(b"".join(frames))

    async def finish(self) -> None:
        self.finished += 1

    def ready(self, peer: Peer, resume: dict[str, Any], position: Position) -> list[bytes]:
        return [sse_frame("ready", encode_body({"resume": resume}), position)]

    def goodbye(self, peer: Peer, retry_after_ms: int) -> bytes:
        return sse_frame("server_shutdown", encode_body({"retry_after_ms": retry_after_ms}), None)

    @property
    def events(self) -> list[SseEvent]:
        blocks = b"".join(self.writes).decode().split("\n\n")
        return [event for block in blocks if (event := parse_event(block.split("\n")))]

    def seqs(self) -> list[int]:
        """The sequence numbers of the session's events that were written."""
        return [int(e.id.split("-")[1]) for e in self.events if e.id is not None and e.event != "ready"]

    @property
    def resumes(self) -> list[dict[str, Any]]:
        return [event.data["resume"] for event in self.events if event.event == "ready"]


class House:
    """A hub, its layer, and what a test does with them."""

    def __init__(self, layer: HistoryChannelLayer, hub: Hub) -> None:
        self.layer = layer
        self.hub = hub
        self.session_id = str(uuid.uuid4())

    def peer(self, wire: TestWire, session_id: str | None = None, **kwargs: Any) -> Peer:
        kwargs.setdefault("stream_id", str(uuid.uuid4()))
        return Peer(
            wire,
            session_id=session_id or self.session_id,
            user_type="anonymous",
            tenant="t",
            project="p",
            **kwargs,
        )

    async def connect(self, last_event_id: str | None = None, **kwargs: Any) -> tuple[Peer, TestWire]:
        wire = TestWire()
        peer = self.peer(wire, **kwargs)
        peer.begin(await self.hub.join(peer, last_event_id))
        await aeventually(lambda: wire.events, what="the ready frame")
        return peer, wire

    async def publish(
        self, text: str = "", *, target_sid: str | None = None, session_id: str | None = None, index: int = 1
    ) -> Position:
        body = {
            "type": "chat.delta",
            "conversation": {"turn_id": "t1"},
            "event": {"agent": "a"},
            "delta": {"text": text, "index": index, "marker": "answer", "completed": False},
        }
        message = {
            "type": MESSAGE_TYPE, "route": "chat_delta", "target_sid": target_sid, "body": msgspec.json.encode(body)
        }  # fmt: skip
        position = await self.layer.group_send(session_group(session_id or self.session_id), message)
        assert position is not None
        return position


@pytest.fixture(params=sorted(BACKENDS))
def layer_kind(request: pytest.FixtureRequest) -> str:
    """The kind of channel layer that a house stands on: each test of one runs on every kind."""
    kind: str = request.param
    return kind


@pytest.fixture
async def house(request: pytest.FixtureRequest, layer_kind: str) -> AsyncIterator[House]:
    """A running hub; `@pytest.mark.parametrize("house", [{...}], indirect=True)` sets RELAY and layer options."""
    options = dict(getattr(request, "param", {}))
    layer = BACKENDS[layer_kind](**options.pop("layer", {}))
    before = channel_layers.set("default", layer)
    hub = Hub()
    with override_settings(RELAY=options, COMM={"ARCHIVE": "comm.archive.Archive"}):
        await hub.start()
        try:
            yield House(layer, hub)
        finally:
            await hub.aclose()
            await layer.flush()
            await layer.aclose()
            if before is None:
                channel_layers.backends.pop("default", None)
            else:
                channel_layers.set("default", before)
