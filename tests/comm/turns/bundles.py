"""Small bundles that do one thing each, for the tests of turns."""

import asyncio
import threading
import time
from decimal import Decimal

from asgiref.sync import sync_to_async

from comm.bundles import Bundle, TurnContext
from comm.models import Message


class Echo(Bundle):
    """Says what it heard."""

    async def run(self, turn: TurnContext) -> None:
        for word in turn.message.text.split():
            await turn.communicator.delta("answer", word + " ")


class Wait(Bundle):
    """Speaks until it is stopped, and then ends by itself."""

    async def run(self, turn: TurnContext) -> None:
        await turn.communicator.delta("answer", "begun ")
        await turn.wait_stopped()
        await turn.communicator.delta("answer", "wrapped up")


class Stubborn(Bundle):
    """Does not look whether it was stopped."""

    async def run(self, turn: TurnContext) -> None:
        await turn.communicator.delta("answer", "begun")
        await asyncio.Event().wait()


class Broken(Bundle):
    """Fails, with words that no user should read."""

    async def run(self, turn: TurnContext) -> None:
        await turn.communicator.delta("answer", "half an ")
        raise ValueError("password=hunter2")


class Rows(Bundle):
    """Reads and writes rows in both of Django's ways, after its POST has answered."""

    async def run(self, turn: TurnContext) -> None:
        for n in range(3):
            await turn.sleep(0.02)
            own = Message.objects.filter(turn__turn_id=turn.turn_id)
            found = await own.aget()
            found.payload = {**found.payload, f"async{n}": n}
            await found.asave()
            await sync_to_async(self._write)(turn.turn_id, n)
        read = await Message.objects.aget(turn__turn_id=turn.turn_id)
        await turn.communicator.delta("answer", f"{read.content}:{len(read.payload)}")

    def _write(self, turn_id: str, n: int) -> None:
        row = Message.objects.get(turn__turn_id=turn_id)
        row.payload = {**row.payload, f"sync{n}": n}
        row.save()


class Asker(Bundle):
    """Reads followups for as long as they come."""

    async def run(self, turn: TurnContext) -> None:
        await turn.communicator.delta("answer", turn.message.text)
        while (followup := await turn.next_followup(timeout=5)) is not None:
            await turn.communicator.delta("answer", f" +{followup.text}")
            if followup.text == "last":
                return


class Clock(Bundle):
    """Tells the user's time zone, what was said before, and what came along."""

    async def run(self, turn: TurnContext) -> None:
        files = [f"{a.filename}={(await a.read()).decode()}" for a in turn.attachments]
        before = [f"{m.role}:{m.content}" for m in turn.history]
        await turn.communicator.delta("answer", f"{turn.now():%z}|{'/'.join(before)}|{'/'.join(files)}")


GATE = threading.Event()


class Blocking(Bundle):
    """Blocks its database thread until the test lets it go."""

    async def run(self, turn: TurnContext) -> None:
        await turn.communicator.delta("answer", "blocking")
        await sync_to_async(GATE.wait)(20)


class Teller(Bundle):
    """Speaks all the time, and looks at nothing."""

    async def run(self, turn: TurnContext) -> None:
        ends = time.monotonic() + 20
        while time.monotonic() < ends:
            await turn.communicator.delta("answer", "tick ")
            await asyncio.sleep(0.01)


class Ender(Bundle):
    """Starts and ends its turn by itself, twice."""

    async def run(self, turn: TurnContext) -> None:
        await turn.communicator.start()
        await turn.communicator.complete(data={"final_answer": "mine"})
        await turn.communicator.complete()
        await turn.communicator.error("too late")


class Refuser(Bundle):
    """Ends its turn with an error of its own."""

    async def run(self, turn: TurnContext) -> None:
        await turn.communicator.error("pace_ms: must be a number", data={"error_type": "config_invalid"})


class Stepper(Bundle):
    """Shows two steps, then answers."""

    async def run(self, turn: TurnContext) -> None:
        await turn.communicator.step("Searching", "started", step="search")
        await turn.sleep(0.05)
        await turn.communicator.step("Searching", "completed", step="search")
        await turn.communicator.delta("answer", "found")


class Odd(Bundle):
    """Says what JSON can carry, and a database cannot hold."""

    async def run(self, turn: TurnContext) -> None:
        usage = {"note": "n\0", "price": Decimal("0.1")}
        await turn.communicator.step("Title\0", "completed", step="s\0", data={"k\0": ["v\0"]})
        await turn.communicator.event(type="accounting.usage", step="usage", status="completed", data=usage)
        await turn.communicator.delta("thinking", "t\0")
        await turn.communicator.delta("answer", "a\0b")
