"""A whole turn, from the POST to the recorder's rows, through real servers."""

import asyncio
import json
import re
import uuid
from pathlib import Path

import httpx
import pytest

from tests.clients import ChatClient, ends_turn, text_of
from tests.servers import ServerProcess
from tests.waiting import aeventually

CSV = b"city,people\nOslo,700000\nBergen,290000\nTrondheim,210000\n"


async def test_a_turn_tells_its_events_in_order(any_server: ServerProcess) -> None:
    async with ChatClient(any_server.url) as client, client.stream() as stream:
        ack = await client.send("How many words are in this sentence?", config={"pace_ms": 0})
        events = await stream.until_idle()
    assert ack["status"] == "processing_started"
    assert re.fullmatch(r"turn_\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d-\d{3}", ack["turn_id"])
    assert ack["conversation_created"] is True
    names = [event.event for event in events]
    states = [event.data["data"]["state"] for event in events if event.event == "conv_status"]
    assert states == ["created", "in_progress", "idle"]
    assert names.index("chat_start") == 2
    assert [name for name in names if name in ("chat_complete", "chat_error")] == ["chat_complete"]
    assert names[-2] == "chat_complete"
    assert events[-1].data["data"]["completion"] == "success"
    assert events[-1].data["data"]["origin_stream_id"] == client.stream_id
    complete = next(event for event in events if event.event == "chat_complete")
    assert complete.data["data"]["final_answer"] == text_of(events)
    assert text_of(events)
    assert {event.data["conversation"]["turn_id"] for event in events} <= {ack["turn_id"], ""}
    seqs = [int(event.id.split("-")[1]) for event in events if event.id]
    assert seqs == list(range(1, len(events) + 1))


async def test_a_file_is_announced_and_read(server: ServerProcess) -> None:
    async with ChatClient(server.url) as client, client.stream() as stream:
        response = await client.http.post(
            f"{server.url}/sse/chat",
            params={"stream_id": client.stream_id},
            headers={"User-Session-ID": client.session_id or ""},
            data={
                "message": json.dumps(
                    {"message": {"text": "What is the mean of people?", "config": {"pace_ms": 0}}}
                ),
                "attachment_meta": json.dumps([{"filename": "cities.csv", "mime": "text/csv"}]),
            },
            files=[("files", ("cities.csv", CSV, "text/csv"))],
        )
        assert response.status_code == 200, response.text
        events = await stream.until_idle()
    announced = next(event.data for event in events if event.data["type"] == "chat.attachments")
    assert announced["data"]["count"] == 1
    assert announced["data"]["items"][0]["filename"] == "cities.csv"
    assert "400,000" in text_of(events) or "400000" in text_of(events)
    assert any(
        event.data.get("delta", {}).get("marker") == "canvas"
        for event in events
        if event.event == "chat_delta"
    )


async def test_every_tab_sees_the_turn_and_another_user_nothing(server: ServerProcess) -> None:
    async with (
        ChatClient(server.url) as one,
        ChatClient(server.url) as stranger,
        one.stream() as tab,
        one.stream(stream_id="tab-two") as other_tab,
        stranger.stream() as foreign,
    ):
        await one.send("hello", config={"pace_ms": 0})
        assert text_of(await tab.until_idle()) == text_of(await other_tab.until_idle()) != ""
        ack = await stranger.send("mine", config={"pace_ms": 0})
        events = await foreign.until_idle()
        assert {event.data["conversation"]["conversation_id"] for event in events} == {ack["conversation_id"]}


async def test_a_disconnect_never_stops_a_turn(server: ServerProcess) -> None:
    async with ChatClient(server.url) as client:
        async with client.stream() as stream:
            ack = await client.send("go on without me", config={"pace_ms": 5, "deltas": 100})
            await stream.until(lambda event: event.event == "chat_delta")
        url = f"{server.url}/sse/conv_status.get"
        headers = {"User-Session-ID": client.session_id or ""}

        async def idle() -> bool:
            status = await client.http.post(
                url, json={"conversation_id": ack["conversation_id"]}, headers=headers
            )
            return bool(status.json()["state"] == "idle")

        await aeventually(idle, timeout=20)
        fetched = await client.http.post(
            f"{server.url}/api/cb/conversations/default/default/{ack['conversation_id']}/fetch",
            headers=headers,
        )
        messages = fetched.json()["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"]
        async with client.stream(last_event_id=stream.last_event_id) as again:
            missed = await again.until_idle()
        assert text_of(stream.received) + text_of(missed) == messages[1]["content"]


async def test_stop_from_another_tab_ends_the_turn_with_what_there_was(server: ServerProcess) -> None:
    async with ChatClient(server.url) as client, client.stream() as stream:
        ack = await client.send("a long story", config={"pace_ms": 20, "deltas": 2000})
        await stream.until(
            lambda event: event.event == "chat_delta" and event.data["delta"]["marker"] == "answer"
        )
        response = await client.post(
            {
                "message": {
                    "kind": "steer",
                    "message_kind": "steer",
                    "text": "",
                    "conversation_id": ack["conversation_id"],
                }
            },
            stream_id="another-tab-of-the-user",
        )
        assert response.json()["status"] == "steer_accepted"
        assert response.json()["active_turn_id"] == ack["turn_id"]
        events = await stream.until_idle()
    complete = next(event for event in events if event.event == "chat_complete")
    assert complete.data["data"]["stopped"] is True
    assert complete.data["data"]["final_answer"] == text_of(stream.received, turn_id=ack["turn_id"])
    assert len(text_of(stream.received)) < 20_000


async def test_a_followup_to_a_busy_conversation_is_accepted_and_answered(server: ServerProcess) -> None:
    async with ChatClient(server.url) as client, client.stream() as stream:
        first = await client.send("first", config={"pace_ms": 10, "deltas": 60})
        await stream.until(lambda event: event.event == "chat_delta")
        second = await client.send(
            "and the second?", conversation_id=first["conversation_id"], config={"pace_ms": 0}
        )
        assert second["status"] == "followup_accepted"
        assert second["active_turn_id"] == first["turn_id"]
        assert second["queued_turn_id"] == second["turn_id"]
        events = await stream.until_idle()
        absorbed = any(event.data["type"].startswith("queue.") for event in events)
        if not absorbed:
            own = await stream.until_idle()
            assert own[-1].data["conversation"]["turn_id"] == second["turn_id"]


async def test_the_recorder_keeps_every_event_and_replay_prints_them(server: ServerProcess) -> None:
    async with ChatClient(server.url) as client, client.stream() as stream:
        ack = await client.send("record this", config={"pace_ms": 0})
        events = await stream.until_idle()

        def rows() -> list[dict[str, object]]:
            printed = server.manage("replay", "--turn", ack["turn_id"], "--speed", "0", "--to", "jsonl")
            return [json.loads(line) for line in printed.split("\n") if line]

        await aeventually(lambda: asyncio.to_thread(lambda: len(rows()) >= len(events)), what="the rows")
        recorded = await asyncio.to_thread(rows)
    assert [row["data"] for row in recorded] == [event.data for event in events]
    assert [row["event"] for row in recorded] == [event.event for event in events]


async def test_sixty_four_turns_at_once_each_write_rows_after_their_post_has_answered(
    server: ServerProcess,
) -> None:
    async def one_user(number: int) -> str:
        async with ChatClient(server.url) as client, client.stream() as stream:
            ack = await client.send(f"user {number}", config={"pace_ms": 5, "deltas": 40})
            events = await stream.until_idle(timeout=90)
            assert events[-1].data["data"]["completion"] == "success"
            fetched = await client.http.post(
                f"{server.url}/api/cb/conversations/default/default/{ack['conversation_id']}/fetch",
                headers={"User-Session-ID": client.session_id or ""},
            )
            messages = fetched.json()["messages"]
            assert messages[0]["content"] == f"user {number}"
            assert messages[1]["content"] == text_of(events)
            return str(ack["turn_id"])

    turns = await asyncio.gather(*(one_user(number) for number in range(64)))
    assert len(set(turns)) == 64


async def test_a_second_server_on_the_same_database_is_refused(server: ServerProcess, tmp_path: Path) -> None:
    folder = tmp_path / "second"
    folder.mkdir()
    second = ServerProcess(folder, database_url=server.database_url).start(wait=False)
    assert await asyncio.to_thread(second.wait, 30) != 0
    assert "Another server process uses this database" in second.output()
    assert httpx.get(f"{server.url}/health").json()["status"] == "healthy"


async def test_query_tokens_stay_out_of_the_access_log(any_server: ServerProcess) -> None:
    unique = str(uuid.uuid4())
    async with ChatClient(any_server.url) as client:
        response = await client.http.get(
            f"{any_server.url}/sse/stream", params={"stream_id": unique, "bearer_token": "s3cr3t-token"}
        )
    assert response.status_code == 401
    await aeventually(lambda: unique in any_server.output(), what="the access log line")
    assert "s3cr3t-token" not in any_server.output()


@pytest.mark.parametrize(
    ("query", "status"), [({}, 422), ({"stream_id": ""}, 422), ({"stream_id": "x" * 201}, 422),
                          ({"stream_id": "a", "tenant": "t" * 101}, 400),
                          ({"stream_id": "a", "user_session_id": "nobody"}, 401)]
)  # fmt: skip
async def test_a_stream_that_cannot_be_opened_says_why(
    server: ServerProcess, query: dict[str, str], status: int
) -> None:
    response = httpx.get(f"{server.url}/sse/stream", params=query, headers={"Origin": "https://evil.example"})
    assert response.status_code == status
    assert response.json()["detail"]["error"]
    assert "access-control-allow-origin" not in response.headers


async def test_the_stream_has_the_headers_of_the_contract(any_server: ServerProcess) -> None:
    async with ChatClient(any_server.url) as client, client.stream() as stream:
        headers = stream.response.headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert headers["content-encoding"] == "identity"
    assert headers["x-session-id"] == client.session_id
    assert headers["x-user-type"] == "anonymous"


async def test_cross_origin_clients_read_the_stream_and_its_refusals(start_server) -> None:  # type: ignore[no-untyped-def]
    server = start_server(env={"CORS_ALLOWED_ORIGINS": "https://app.example"})
    origin = {"Origin": "https://app.example"}
    refused = httpx.get(f"{server.url}/sse/stream", headers=origin)
    preflight = httpx.options(
        f"{server.url}/sse/stream",
        headers={
            **origin,
            "Access-Control-Request-Method": "GET",
            "Access-Control-Request-Headers": "authorization",
        },
    )
    for response in (refused, preflight):
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        assert response.headers["access-control-allow-credentials"] == "true"
    assert refused.status_code == 422
    assert preflight.status_code == 200
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert "X-Session-ID" in refused.headers["access-control-expose-headers"]


async def test_an_idle_stream_is_kept_alive(start_server) -> None:  # type: ignore[no-untyped-def]
    server = start_server(env={"KEEPALIVE_SECONDS": "0.4"})
    async with ChatClient(server.url) as client, client.stream() as stream:
        reader = asyncio.create_task(stream.next(timeout=20))
        await aeventually(lambda: len(stream.comments) >= 2)
        reader.cancel()
        assert stream.comments[0] == ": keepalive"


async def test_peers_that_go_away_are_forgotten(server: ServerProcess) -> None:
    async with ChatClient(server.url) as client:
        for _ in range(5):
            async with client.stream():
                pass

        async def none_left() -> bool:
            return bool((await client.http.get(f"{server.url}/health")).json()["streams"] == 0)

        await aeventually(none_left)
        async with client.stream() as stream:
            await client.send("still serving", config={"pace_ms": 0})
            assert ends_turn((await stream.until_idle())[-1])
