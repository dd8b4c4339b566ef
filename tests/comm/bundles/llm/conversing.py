"""One turn of the llm bundle, and every envelope that it sent."""

import asyncio
import json
from typing import Any

from channels.layers import get_channel_layer

from comm.bundles import TurnContext
from comm.bundles.llm.bundle import LlmBundle
from comm.groups import session_group
from comm.history import Position
from tests.comm.bundles.talking import Talk
from tests.waiting import aeventually


class LlmTalk(Talk):
    """A turn to run to its end, or to start and watch."""

    def __init__(self, bundle: LlmBundle, turn: TurnContext) -> None:
        super().__init__(turn, [])
        self.bundle = bundle

    async def run(self) -> "LlmTalk":
        """Run the turn to its end."""
        async with asyncio.timeout(30):
            await self.bundle.run(self.turn)
        return await self.read()

    async def read(self) -> "LlmTalk":
        """Read what was sent so far."""
        log = await get_channel_layer().group_read(
            session_group(self.turn.session_id), Position(0, 0), 1_000_000
        )
        self.envelopes = [json.loads(entry.message["body"]) for entry in log.entries]
        return self

    async def until(self, type: str, count: int = 1) -> None:
        """Wait until the turn has sent so many events of a type."""

        async def sent() -> bool:
            return len((await self.read()).of(type)) >= count

        await aeventually(sent)

    @property
    def error(self) -> dict[str, Any]:
        """The data of the one chat_error."""
        [envelope] = self.of("chat.error")
        return dict(envelope["data"])

    @property
    def usage(self) -> dict[str, Any]:
        """The one accounting.usage."""
        [envelope] = self.of("accounting.usage")
        return dict(envelope)

    def states(self, step: str) -> list[str]:
        """The statuses of a step, in order."""
        return [item["event"]["status"] for item in self.of("chat.step") if item["event"]["step"] == step]

    def step_data(self, step: str) -> dict[str, Any]:
        """The last data of a step."""
        return dict([item["data"] for item in self.of("chat.step") if item["event"]["step"] == step][-1])
