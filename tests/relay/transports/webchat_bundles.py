"""Bundles that answer the web chat's tests; named to the servers by their environment."""

from comm.bundles import Bundle, TurnContext


class Speaking(Bundle):
    """Says each word of the message, and thinks aloud beside it."""

    async def run(self, turn: TurnContext) -> None:
        await turn.communicator.delta("thinking", "Hm.")
        for word in turn.message.text.split():
            await turn.communicator.delta("answer", word + " ")


class Waiting(Bundle):
    """Says one word, waits for a followup, and says that one."""

    async def run(self, turn: TurnContext) -> None:
        await turn.communicator.delta("answer", "waiting ")
        followup = await turn.next_followup(timeout=20)
        await turn.communicator.delta("answer", followup.text if followup else "nothing came")


class Silent(Bundle):
    """Answers after more than the test's patience."""

    async def run(self, turn: TurnContext) -> None:
        await turn.sleep(2.5)
        await turn.communicator.delta("answer", "late")


class Failing(Bundle):
    """Fails."""

    async def run(self, turn: TurnContext) -> None:
        await turn.communicator.delta("answer", "half ")
        raise ValueError("a secret of the server")
