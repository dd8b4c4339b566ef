"""What every transport owes: whom it reaches, in which order, what it resumes, and how it ends."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients import text_of
from tests.contract.transports import TRANSPORTS, Receiver
from tests.servers import SERVERS, ServerProcess
from tests.waiting import aeventually, eventually

ENV = {
    "BUNDLES": "script=tests.contract.bundles.Script",
    "DEFAULT_BUNDLE": "script",
    "MESSAGE_RATE": "",
    "KEEPALIVE_SECONDS": "5",
}
Open = Callable[..., Any]


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path_factory.mktemp("transports"), server=request.param, env=ENV).start()
    yield server
    server.stop()
    assert "Traceback" not in server.output()


@pytest.fixture(params=list(TRANSPORTS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_stream(server: ServerProcess, kind: str) -> Open:
    """Open a stream of the kind under test."""

    def open_stream(session_id: str = "", **options: str) -> Receiver:
        return TRANSPORTS[kind](server.url, session_id=session_id, **options)

    return open_stream


@asynccontextmanager
async def one_of_each(url: str) -> AsyncIterator[dict[str, Receiver]]:
    """Open a stream of every kind in one session."""
    async with AsyncExitStack() as stack:
        opened: dict[str, Receiver] = {}
        session_id = ""
        for name, receiver in TRANSPORTS.items():
            opened[name] = await stack.enter_async_context(receiver(url, session_id=session_id))
            session_id = opened[name].session_id
        yield opened


def streams(server: ServerProcess) -> int:
    return int(httpx.get(f"{server.url}/health").json()["streams"])


def ids(receiver: Receiver) -> list[tuple[int, ...]]:
    """The positions of what was received, without `ready`."""
    return [tuple(map(int, e.id.split("-"))) for e in receiver.received if e.id and e.event != "ready"]


# --- whom it reaches ----------------------------------------------------------------------------------------


async def test_every_kind_of_stream_of_a_session_sees_the_same(server: ServerProcess) -> None:
    async with one_of_each(server.url) as opened:
        for sender in opened.values():
            ack = await sender.play({"text": "w", "times": 5}, {"event": "status.update"})
            assert ack["ok"], ack
            seen = [await receiver.until("idle") for receiver in opened.values()]
            first = [
                (e.event, e.id, e.data["type"], e.data["data"], e.data.get("delta")) for e in seen[0] if e.id
            ]
            for other in seen[1:]:
                assert [
                    (e.event, e.id, e.data["type"], e.data["data"], e.data.get("delta"))
                    for e in other
                    if e.id
                ] == first


async def test_a_targeted_envelope_reaches_only_its_peer(open_stream: Open) -> None:
    async with open_stream() as one, open_stream(one.session_id) as other:
        for name in {one.stream_id, one.ready["stream_id"]}:
            await other.play({"event": "to.one", "to": name}, {"event": "to.all"})
            assert [e.data["type"] for e in await one.until("idle") if e.data["type"].startswith("to.")] == [
                "to.one", "to.all"
            ]  # fmt: skip
            assert [
                e.data["type"] for e in await other.until("idle") if e.data["type"].startswith("to.")
            ] == ["to.all"]


async def test_another_session_sees_nothing(open_stream: Open) -> None:
    async with open_stream() as mine, open_stream() as theirs:
        await mine.play({"event": "private.thing"}, {"event": "other.thing", "to": theirs.ready["stream_id"]})
        await mine.until("idle")
        await theirs.play({"event": "their.own"})
        seen = await theirs.until("idle")
    assert {e.data["conversation"]["session_id"] for e in seen} == {theirs.session_id}
    assert "private.thing" not in [e.data["type"] for e in theirs.received if "type" in e.data]


async def test_project_events_reach_the_streams_of_the_project_that_asked(open_stream: Open) -> None:
    scope = {"tenant": "acme", "project": "web"}
    async with (
        open_stream(project_events="1", **scope) as asked,
        open_stream(**scope) as silent,
        open_stream(project_events="true", tenant="acme", project="app") as elsewhere,
    ):
        for sender in (elsewhere, asked):
            await sender.play({"project": "deploy.done"}, {"event": "after.it"})
            await sender.until("after.it")
        (event,) = [e for e in asked.received if e.data.get("type") == "deploy.done"]
        assert (event.event, event.id) == ("chat_service", None)
        assert event.data["service"]["user"] == event.data["conversation"]["session_id"] == ""
        assert len([e for e in elsewhere.received if e.data.get("type") == "deploy.done"]) == 1
        await silent.play({"event": "after.it"})
        await silent.until("idle")
        assert "deploy.done" not in [e.data.get("type") for e in silent.received]


async def test_a_message_means_the_same_however_it_came(server: ServerProcess) -> None:
    answers, rows = [], []
    for receiver in TRANSPORTS.values():
        async with receiver(server.url, tenant="acme", project="web") as stream:
            ack = await stream.send("How are you?", config={"a": 1}, payload=[{"text": "x"}])
            await stream.until("idle")
            conversation = ack["conversation_id"]
            (row,) = server.query(
                "SELECT c.tenant, c.project, t.kind, t.status, t.user_type, t.request FROM comm_turn t "
                f"JOIN comm_conversation c ON c.id = t.conversation_id WHERE c.conversation_id = '{conversation}'"
            )
            *columns, request = row
            rows.append((*columns, json.loads(request) if isinstance(request, str) else request))
            answers.append({name: type(value).__name__ for name, value in ack.items() if name != "type"})
    assert rows == [rows[0]] * len(rows)
    # A WebSocket's acknowledgement names the message that it answers.
    assert [{**answer, "id": "int"} for answer in answers] == [{**answers[0], "id": "int"}] * len(answers)


# --- order and resuming -------------------------------------------------------------------------------------


async def test_thousands_of_deltas_arrive_once_in_order(open_stream: Open) -> None:
    async with open_stream() as stream:
        await stream.play({"text": "word", "times": 3000})
        events = await stream.until("idle", timeout=60)
        positions = ids(stream)
    assert text_of(events) == "".join(f"word{n} " for n in range(3000))
    assert positions == sorted(set(positions))


@pytest.mark.parametrize("back", list(TRANSPORTS))
async def test_a_client_that_comes_back_gets_what_it_missed_whatever_it_comes_back_on(
    server: ServerProcess, open_stream: Open, back: str
) -> None:
    async with TRANSPORTS["sse"](server.url) as other:
        async with open_stream(other.session_id) as first:
            await first.play({"text": "before"})
            await first.until("idle")
            await other.until("idle")
        await other.play({"text": "missed", "times": 20})
        missed = await other.until("idle")
        again = TRANSPORTS[back](server.url, session_id=other.session_id, last_event_id=first.last_event_id)
        async with again:
            assert again.ready["resume"]["outcome"] == "replayed"
            replayed = await again.until("idle")
            await other.play({"text": "live"})
            live = await again.until("idle")
    assert [(e.id, e.event) for e in replayed] == [(e.id, e.event) for e in missed]
    assert text_of(live) == "live0 "


@pytest.mark.parametrize("last", ["nonsense", "-5-3", "1-1", "99999999999999-7", "1-", "\u00fc-1"])
async def test_a_position_that_means_nothing_is_said_to_and_the_stream_goes_on(
    open_stream: Open, last: str
) -> None:
    async with open_stream(last_event_id=last.encode("ascii", "ignore").decode()) as stream:
        assert stream.ready["resume"]["outcome"] == "reset"
        await stream.play({"text": "on"})
        assert text_of(await stream.until("idle")) == "on0 "


async def test_a_position_of_another_session_opens_nothing_of_it(open_stream: Open) -> None:
    async with open_stream() as theirs:
        await theirs.play({"text": "private"})
        await theirs.until("idle")
        async with open_stream(last_event_id=theirs.last_event_id) as mine:
            assert mine.ready["resume"]["outcome"] == "reset"
            await mine.play({"text": "own"})
            assert text_of(await mine.until("idle")) == "own0 "


# --- going --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_stream_that_goes_leaves_nothing(
    server: ServerProcess, open_stream: Open, kind: str, how: str
) -> None:
    eventually(lambda: streams(server) == 0, what="no stream")
    receiver = open_stream()
    await receiver.open()
    await receiver.until("ready")
    assert streams(server) == 1
    await getattr(receiver, how)()
    if how == "abort":
        await receiver.close()
    await aeventually(lambda: streams(server) == 0, timeout=20, what="the stream's end")


async def test_a_drain_is_announced_ends_the_stream_and_loses_nothing(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    server = ServerProcess(tmp_path, env=ENV).start()
    try:
        async with TRANSPORTS[kind](server.url) as stream:
            await stream.play({"text": "before"})
            await stream.until("idle")
            server.terminate()
            goodbye = (await stream.until("server_shutdown"))[-1]
            assert (goodbye.data["reason"], goodbye.id) == ("draining", None)
            assert goodbye.data["retry_after_ms"] >= 1000
            await asyncio.wait_for(stream.ended.wait(), 10)
            if kind == "websocket":
                assert stream.socket.close_code == 4503  # type: ignore[attr-defined]
        assert server.wait() in (0, -15)
        server.start()
        back = TRANSPORTS[kind](server.url, session_id=stream.session_id, last_event_id=stream.last_event_id)
        async with back as again:
            assert again.ready["resume"]["outcome"] == "replayed"
            await again.play({"text": "after"})
            assert text_of(await again.until("idle")) == "after0 "
    finally:
        server.stop()
