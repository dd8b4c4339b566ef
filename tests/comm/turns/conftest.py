"""A running turn runner on a layer of its own, and what it told the session."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from channels.db import database_sync_to_async
from channels.layers import channel_layers
from django.test import override_settings

from comm import publisher
from comm.groups import session_group
from comm.history import Position
from comm.models import Turn
from comm.turns.acceptance import accept
from comm.turns.incoming import Acknowledgement, Caller, IncomingMessage
from comm.turns.runner import TurnRunner
from comm.turns.sweeper import TurnSweeper
from relay.layers.memory import MemoryChannelLayer
from tests.waiting import aeventually

BUNDLES = {
    name: f"tests.comm.turns.bundles.{name.title()}"
    for name in (
        "echo",
        "wait",
        "stubborn",
        "broken",
        "rows",
        "asker",
        "clock",
        "blocking",
        "teller",
        "ender",
        "refuser",
        "stepper",
        "odd",
    )
}
QUICK = {
    "BUNDLES": BUNDLES,
    "DEFAULT_BUNDLE": "echo",
    "TURN_SWEEP_SECONDS": 0.1,
    "TURN_RENEW_SECONDS": 0.1,
    "TURN_LEASE_SECONDS": 5.0,
    "STOP_GRACE_SECONDS": 0.2,
    "SINKS": (),
    "ARCHIVE": "comm.archive.Archive",
}


class House:
    """One user at one runner."""

    def __init__(self, layer: MemoryChannelLayer) -> None:
        self.layer = layer
        self.session_id = str(uuid.uuid4())
        self.caller = Caller(session_id=self.session_id, owner=self.session_id)
        self.runners: list[TurnRunner] = []
        self.sweepers: list[TurnSweeper] = []

    async def serve(self) -> TurnSweeper:
        """Start what one more web process of a fleet would: it sweeps and runs nothing."""
        sweeper = TurnSweeper()
        await sweeper.start()
        self.sweepers.append(sweeper)
        return sweeper

    async def aclose(self) -> None:
        for part in [*self.runners, *self.sweepers]:
            await part.aclose()

    async def start(self, **options: Any) -> TurnRunner:
        """Start one more runner, as one more process would."""
        runner = TurnRunner()
        await runner.start(**options)
        self.runners.append(runner)
        return runner

    def message(self, text: str = "", **fields: Any) -> IncomingMessage:
        fields.setdefault("caller", self.caller)
        return IncomingMessage(**{"tenant": "t", "project": "p", "text": text, **fields})

    async def say(self, text: str = "", **fields: Any) -> Acknowledgement:
        """Have a message accepted, in a thread as a view does."""
        acknowledgement: Acknowledgement = await database_sync_to_async(accept)(self.message(text, **fields))
        return acknowledgement

    async def events(self) -> list[dict[str, Any]]:
        """Everything that the session was told, in order."""
        group = session_group(self.session_id)
        epoch = (await self.layer.group_tail(group)).epoch
        read = await self.layer.group_read(group, Position(epoch, 0), 100_000)
        return [msgspec.json.decode(entry.message["body"]) for entry in read.entries]

    async def told(self, turn_id: str | None = None) -> list[str]:
        """The types of the events of a turn; a status says its state, and how the turn ended."""
        return [
            _word(event)
            for event in await self.events()
            if turn_id in (None, event["conversation"]["turn_id"])
        ]

    async def until(self, found: Callable[[list[dict[str, Any]]], bool], timeout: float = 15) -> None:
        async def there() -> bool:
            return found(await self.events())

        await aeventually(there, timeout=timeout, what="the events")

    async def ended(self, *turn_ids: str | None, timeout: float = 15) -> None:
        """Wait until these turns have told their end and written it down."""

        def all_ended(events: list[dict[str, Any]]) -> bool:
            over = {e["conversation"]["turn_id"] for e in events if "completion" in e["data"]}
            return over >= set(turn_ids)

        await self.until(all_ended, timeout)

    async def turn(self, turn_id: str | None) -> Turn:
        return await Turn.objects.select_related("conversation").aget(turn_id=turn_id)


def _word(event: dict[str, Any]) -> str:
    if event["type"] != "conv.status":
        return str(event["type"])
    completion = event["data"].get("completion")
    return event["data"]["state"] + (f" {completion}" if completion else "")


@pytest.fixture
async def quiet_house() -> AsyncIterator[House]:
    """A layer without a runner."""
    layer = MemoryChannelLayer()
    before = channel_layers.set("default", layer)
    publisher.set_home_loop(asyncio.get_running_loop())
    house = House(layer)
    with override_settings(COMM=QUICK):
        try:
            yield house
        finally:
            await house.aclose()
            publisher.set_home_loop(None)
            await layer.aclose()
            if before is not None:
                channel_layers.set("default", before)
            else:
                channel_layers.backends.pop("default", None)


@pytest.fixture
async def house(quiet_house: House) -> House:
    """A layer with one runner."""
    await quiet_house.start()
    return quiet_house
