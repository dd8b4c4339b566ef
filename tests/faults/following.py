"""A client that always comes back, and whether all who should have heard the same did."""

import asyncio
import json
import uuid
from collections.abc import Sequence
from typing import Any, Self

import httpx
import socketio.exceptions
import websockets

from tests.clients import SseEvent, ends_turn
from tests.contract.transports import TRANSPORTS, Receiver
from tests.faults.bundles import counted
from tests.fleet import Fleet
from tests.waiting import aeventually

NOT_NOW = (
    OSError,
    TimeoutError,
    httpx.HTTPError,
    websockets.WebSocketException,
    socketio.exceptions.SocketIOError,
)
PATIENCE = 90.0


class Follower:
    """A client that goes on after its last position when its connection ends: at the next replica, on the next kind.

    With `every` it also leaves by itself after so many events. `events` is all that it was given but the first
    frames, which are in `readies`.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        kinds: Sequence[str] = ("sse",),
        every: int = 0,
        session_id: str = "",
        last_event_id: str = "",
    ) -> None:
        self.urls = list(urls)
        self.kinds = kinds
        self.every = every
        self.session_id = session_id
        self.last_event_id = last_event_id
        self.stream_id = str(uuid.uuid4())
        self.events: list[SseEvent] = []
        self.goodbyes: list[SseEvent] = []
        self.readies: list[dict[str, Any]] = []
        self._following: asyncio.Task[None] | None = None
        self._streams: list[str] = []
        self._trouble: BaseException | None = None

    async def __aenter__(self) -> Self:
        self._following = asyncio.create_task(self._follow())
        await self.until(lambda: bool(self.readies), "the first stream")
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._following is not None
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)

    async def until(self, condition: Any, what: str, timeout: float = PATIENCE) -> None:
        """Wait until a condition on what was received holds; fails at once when following failed."""

        def holds() -> bool:
            if self._following is not None and self._following.done():
                self._following.result()
            return bool(condition())

        try:
            await aeventually(holds, timeout=timeout, what=what)
        except AssertionError as error:
            error.add_note(repr(self))
            raise

    def __repr__(self) -> str:
        outcomes = [
            f"{stream}: {outcome}" for stream, outcome in zip(self._streams, self.outcomes, strict=False)
        ]
        return (
            f"{len(self.events)} events up to {self.last_event_id}; {len(self._streams)} streams, the last "
            f"{self._streams[-1:]}, {self._trouble!r}; {outcomes[-4:]}"
        )

    async def says(self, turn_id: str, count: int = 1) -> None:
        """Wait until so many deltas of a turn have come."""
        await self.until(lambda: len(self.deltas(turn_id)) >= count, f"{count} deltas of {turn_id}")

    async def ended(self, *turn_ids: str, timeout: float = PATIENCE) -> None:
        """Wait until these turns have ended."""
        await self.until(
            lambda: all(self.completion(turn_id) for turn_id in turn_ids), f"the end of {turn_ids}", timeout
        )

    async def send(self, text: str = "go", *, replica: int = 0, **message: Any) -> dict[str, Any]:
        """Send a message to one of the replicas, whatever the stream is open at; return its acknowledgement."""
        async with httpx.AsyncClient(timeout=60) as http:
            response = await http.post(
                f"{self.urls[replica]}/sse/chat",
                params={"stream_id": self.stream_id},
                headers={"User-Session-ID": self.session_id},
                json={"message": {"text": text, **message}},
            )
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def count(self, count: int, *, pace_ms: float = 0, size: int = 0, **options: Any) -> str:
        """Let a turn count; return its id."""
        config = {"count": count, "pace_ms": pace_ms, "size": size}
        return str((await self.send(config=config, **options))["turn_id"])

    # --- what it was given ------------------------------------------------------------------------------

    def of(self, turn_id: str) -> list[SseEvent]:
        """The events of one turn."""
        return [event for event in self.events if _turn_of(event) == turn_id]

    def deltas(self, turn_id: str) -> list[SseEvent]:
        """The deltas of one turn."""
        return [event for event in self.of(turn_id) if event.event == "chat_delta"]

    def text(self, turn_id: str) -> str:
        """The text of one turn."""
        return "".join(event.data["delta"]["text"] for event in self.deltas(turn_id))

    def pid(self, turn_id: str) -> int | None:
        """The process that runs a turn, when it has said so."""
        told = [e.data["data"]["pid"] for e in self.of(turn_id) if "pid" in e.data.get("data", {})]
        return int(told[0]) if told else None

    def completion(self, turn_id: str) -> str | None:
        """How a turn ended."""
        ends = [e.data["data"]["completion"] for e in self.events if ends_turn(e) and _ended(e) == turn_id]
        assert len(ends) <= 1, f"{turn_id} ended {len(ends)} times"
        return str(ends[0]) if ends else None

    @property
    def positions(self) -> list[tuple[int, ...]]:
        """The positions of what it was given, in the order in which it came."""
        return [tuple(map(int, event.id.split("-"))) for event in self.events if event.id]

    @property
    def outcomes(self) -> list[str]:
        """What each of its streams began with."""
        return [ready["resume"]["outcome"] for ready in self.readies]

    # --- following --------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        number = 0
        while True:
            receiver = TRANSPORTS[self.kinds[number % len(self.kinds)]](
                self.urls[number % len(self.urls)],
                session_id=self.session_id,
                last_event_id=self.last_event_id,
            )
            receiver.stream_id = self.stream_id
            number += 1
            try:
                async with asyncio.timeout(30):
                    await receiver.open()
            except NOT_NOW as error:
                self._trouble = error
                await asyncio.sleep(0.1)
                continue
            self._streams.append(f"{type(receiver).__name__} at {receiver.url}")
            try:
                await self._listen(receiver)
            finally:
                await receiver.close()

    async def _listen(self, receiver: Receiver) -> None:
        taken = 0
        while event := await _next(receiver):
            if event.event == "ready":
                self.session_id = event.data["session_id"]
                self.readies.append(event.data)
            elif event.event == "server_shutdown":
                self.goodbyes.append(event)
                return
            else:
                self.events.append(event)
                taken += 1
            self.last_event_id = event.id or self.last_event_id
            if self.every and taken >= self.every:
                return


async def _next(receiver: Receiver) -> SseEvent | None:
    """Return the next event of a stream; None when it has ended."""
    coming = asyncio.ensure_future(receiver.next(PATIENCE * 2))
    ending = asyncio.ensure_future(receiver.ended.wait())
    try:
        await asyncio.wait([coming, ending], return_when=asyncio.FIRST_COMPLETED)
        if not coming.done() and receiver.unread:
            await coming
        return coming.result() if coming.done() else None
    finally:
        for waiting in (coming, ending):
            waiting.cancel()
        await asyncio.gather(coming, ending, return_exceptions=True)


def _turn_of(event: SseEvent) -> str:
    return str(event.data.get("conversation", {}).get("turn_id", ""))


def _ended(event: SseEvent) -> str:
    return _turn_of(event) or str(event.data["data"].get("current_turn_id") or "")


# --- did all hear the same? ---------------------------------------------------------------------------------


async def agree(
    fleet: Fleet, clients: Sequence[Follower], turns: dict[str, int | None], size: int = 0
) -> None:
    """Check that clients and recorder have the same text and no position twice.

    `turns` says how many words each turn said; None where it was cut off, so that nobody knows.
    """
    await asyncio.to_thread(fleet.until_recorded)
    rows = await asyncio.to_thread(rows_of, fleet, clients[0].session_id)
    recorded = [row.position for row in rows]
    assert recorded == sorted(set(recorded))
    for turn_id, count in turns.items():
        deltas = [row for row in rows if _is_delta(row, turn_id)]
        text = "".join(delta.data["delta"]["text"] for delta in deltas)
        said = count if count is not None else len(deltas)
        assert text == counted(said, size), f"the recorder's text of {turn_id}"
        for client in clients:
            assert client.text(turn_id) == text, f"a client's text of {turn_id}"
    for client in clients:
        assert client.positions == sorted(set(client.positions)), "a position came twice, or out of order"
        assert set(client.positions) <= set(recorded), "a client was given what was not recorded"


def _is_delta(event: SseEvent, turn_id: str) -> bool:
    return event.event == "chat_delta" and _turn_of(event) == turn_id


class Row(SseEvent):
    """A recorded envelope."""

    position: tuple[int, int]


def rows_of(fleet: Fleet, session_id: str) -> list[Row]:
    """Return what was recorded of a session, in order."""
    found = fleet.query(
        "SELECT epoch, seq, event, data FROM recorder_recordedenvelope "
        f"WHERE session_id = '{session_id}' AND epoch IS NOT NULL ORDER BY epoch, seq"
    )
    rows = []
    for epoch, seq, event, data in found:
        row = Row(event, json.loads(data))
        row.position = (epoch, seq)
        rows.append(row)
    return rows


async def status(fleet: Fleet, client: Follower, turn_id: str) -> tuple[str, str]:
    """Return the status of a turn's row, and the state of its conversation, on which all replicas agree."""
    found = await asyncio.to_thread(
        fleet.query,
        "SELECT t.status, c.state, c.conversation_id FROM comm_turn t "
        f"JOIN comm_conversation c ON c.id = t.conversation_id WHERE t.turn_id = '{turn_id}'",
    )
    ((turn, state, conversation_id),) = found
    async with httpx.AsyncClient(timeout=30) as http:
        for server in fleet.web:
            if server.alive:
                response = await http.post(
                    f"{server.url}/sse/conv_status.get",
                    headers={"User-Session-ID": client.session_id},
                    json={"conversation_id": conversation_id},
                )
                assert response.json()["state"] == state, response.text
    return turn, state
