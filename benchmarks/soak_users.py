"""The users of the soak: each talks, reads in its own way, comes back wherever it may, and keeps what it heard."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from tests.clients import ChatClient, SseEvent, Stream, ends_turn

TURN_SECONDS = 180.0
"""Past this a turn counts as lost."""
AWAY = (httpx.HTTPError, TimeoutError, OSError, StopAsyncIteration)
"""What a client meets when its server stops or dies; it comes back."""


@dataclass
class Heard:
    """One turn as its user heard it."""

    turn_id: str
    completion: str = ""
    text: str = ""
    positions: list[str] = field(default_factory=list)

    def take(self, event: SseEvent) -> None:
        """Keep what belongs to this turn."""
        if event.id is None or event.data.get("conversation", {}).get("turn_id") != self.turn_id:
            return
        self.positions.append(event.id)
        if event.event == "chat_delta" and event.data["delta"]["marker"] == "answer":
            self.text += event.data["delta"]["text"]
        if ends_turn(event):
            self.completion = event.data["data"]["completion"]


@dataclass
class Tally:
    """What all users together did and met."""

    counts: Counter[str] = field(default_factory=Counter)
    turns: list[Heard] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def wrong(self, text: str) -> None:
        """Note what must not happen."""
        self.errors.append(text)


class User:
    """One session. `kind` is how it reads: `steady`; `moving`, which drops its connection after every so many events
    and comes back elsewhere; or `slow`, which pauses again and again, on a socket with small buffers.
    """

    def __init__(
        self, urls: Sequence[str], kind: str, seed: int, tally: Tally, leaving: asyncio.Event
    ) -> None:
        self.urls = urls
        self.kind = kind
        self.tally = tally
        self._random = random.Random(seed)
        self._leaving = leaving
        self._last: str | None = None
        self._conversation = ""
        self._heard: Heard | None = None

    async def run(self) -> None:
        """Talk, turn after turn, until the soak ends."""
        buffers = 16 * 1024 if self.kind == "slow" else None
        async with ChatClient(self.urls[0], receive_buffer_bytes=buffers) as client:
            while not self._leaving.is_set():
                try:
                    async with asyncio.timeout(TURN_SECONDS):
                        await self._turn(client)
                except TimeoutError:
                    named = self._heard.turn_id if self._heard else "not even accepted"
                    self.tally.wrong(f"a turn has not ended in {TURN_SECONDS:.0f} s ({named})")
                    self._last, self._conversation = None, ""

    async def _turn(self, client: ChatClient) -> None:
        self._heard = None
        early: list[SseEvent] = []
        opened = asyncio.Event()
        reading = asyncio.create_task(self._read(client, early, opened))
        try:
            await opened.wait()
            turn_id = await self._say(client)
            heard = Heard(turn_id)
            for event in early:
                heard.take(event)
            self._heard = heard
            if not heard.completion:
                await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        self.tally.turns.append(heard)
        self.tally.counts[heard.completion] += 1
        await asyncio.sleep(self._random.uniform(0.1, 1.0))

    async def _say(self, client: ChatClient) -> str:
        """Send a message until a server takes it; its key makes that once. Return the turn's id."""
        key = f"{self._random.getrandbits(64):016x}"
        message = {
            "text": "Tell me a story",
            "config": {
                "pace_ms": self._random.choice([2, 5, 10]),
                "deltas": self._random.randint(100, 400),
            },
            **({"conversation_id": self._conversation} if self._conversation else {}),
        }
        while True:
            client.url = self._random.choice(self.urls)
            with contextlib.suppress(*AWAY):
                response = await client.post({"message": message}, headers={"Idempotency-Key": key})
                if response.status_code == 200:
                    acknowledged = response.json()
                    self._conversation = acknowledged["conversation_id"]
                    return str(acknowledged["turn_id"])
                if response.status_code != 503:
                    self.tally.wrong(f"POST: {response.status_code} {response.text[:200]}")
            self.tally.counts["sent again"] += 1
            await asyncio.sleep(self._random.uniform(0.2, 0.8))

    # --- reading ----------------------------------------------------------------------------------------

    async def _read(self, client: ChatClient, early: list[SseEvent], opened: asyncio.Event) -> None:
        """Read to the end of the turn, over as many connections as that takes."""
        while True:
            client.url = self._random.choice(self.urls)
            try:
                async with client.stream(last_event_id=self._last) as stream:
                    self._look_at(stream.received[0])
                    opened.set()
                    if await self._listen(stream, early):
                        return
            except AWAY:
                self.tally.counts["cut off"] += 1
            except AssertionError as refusal:
                # ChatClient says so of a status that is not 200.
                if "(503," not in str(refusal):
                    self.tally.wrong(f"stream: {refusal!s:.200}")
            self.tally.counts["came back"] += 1
            await asyncio.sleep(self._random.uniform(0.05, 0.5))

    def _look_at(self, ready: SseEvent) -> None:
        if self._last is not None and ready.data["resume"]["outcome"] == "reset":
            self.tally.wrong(f"resumed with a reset: {ready.data['resume']}")
        self._last = ready.id or self._last

    async def _listen(self, stream: Stream, early: list[SseEvent]) -> bool:
        """Read from one connection; True at the end of the turn, False when it is time to go elsewhere."""
        most = self._random.randint(10, 80) if self.kind == "moving" else None
        count = 0
        while most is None or count < most:
            event = await stream.next()
            if event.event == "server_shutdown":
                return False
            self._last = event.id or self._last
            count += 1
            if self._heard is None:
                early.append(event)
            else:
                self._heard.take(event)
                if self._heard.completion:
                    return True
            if self.kind == "slow" and count % 50 == 0:
                await asyncio.sleep(self._random.uniform(0.2, 1.5))
        return False
