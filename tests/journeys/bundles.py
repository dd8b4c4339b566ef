"""Bundles for whole journeys."""

from comm.bundles import Bundle, TurnContext


class Silent(Bundle):
    """Reads no file, says one word."""

    async def run(self, turn: TurnContext) -> None:
        await turn.communicator.delta("answer", "done")
