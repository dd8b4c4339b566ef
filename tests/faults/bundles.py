"""Bundles whose text tells at once what is missing, doubled or out of order."""

import asyncio
import os

from comm.bundles import Bundle, TurnContext
from comm.exceptions import PublishFailed

STEPS, STEP_PAUSE = 40, 0.3


def word(number: int, size: int = 0) -> str:
    """Return the text of one delta of Counting."""
    return f"w{number} ".ljust(size, ".")


def counted(count: int, size: int = 0) -> str:
    """Return the whole text of a turn of Counting."""
    return "".join(word(number, size) for number in range(count))


def marker_of(size: int) -> str:
    """Return the marker under which Counting says words of a size."""
    return "thinking" if size else "answer"


class Counting(Bundle):
    """Says which process it runs in, then `count` numbered words of `size` characters, `pace_ms` apart.

    Long words are thoughts: an answer comes once more, as a whole, in `chat_complete`.
    """

    async def run(self, turn: TurnContext) -> None:
        config = turn.message.config
        await turn.communicator.step("Counting", "started", step="count", data={"pid": os.getpid()})
        size = int(config.get("size", 0))
        for number in range(int(config.get("count", 10))):
            await turn.communicator.delta(marker_of(size), word(number, size))
            if pace_ms := config.get("pace_ms", 0):
                await asyncio.sleep(pace_ms / 1000)


class Stepping(Bundle):
    """Shows `STEPS` numbered steps, `STEP_PAUSE` seconds apart, each until it is taken, and answers."""

    async def run(self, turn: TurnContext) -> None:
        for number in range(STEPS):
            while not await self._shown(turn, number):
                await asyncio.sleep(STEP_PAUSE)
            await asyncio.sleep(STEP_PAUSE)
        await turn.communicator.delta("answer", "All steps are done.")

    async def _shown(self, turn: TurnContext, number: int) -> bool:
        try:
            await turn.communicator.step(f"Step {number}", "completed", step=f"step{number}")
        except PublishFailed:
            return False
        return True
