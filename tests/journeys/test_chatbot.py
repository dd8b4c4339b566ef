"""The chatbot feature over a real server: start, join, stop, and what its clients are shown."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.servers import SERVERS, ServerProcess
from tests.waiting import aeventually

ENV = {
    "DEFAULT_BUNDLE": "stepping",
    "BUNDLES": "stepping=tests.journeys.bundles.Stepping",
    "MESSAGE_RATE": "",
}
START, STOP = "/api/chatbot/start/stream", "/api/chatbot/stop"


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path_factory.mktemp("chatbot"), server=request.param, env=ENV).start()
    yield server
    server.stop()
    output = server.output()
    assert output.count("Traceback") == output.count("ValueError: a secret")


class Workflow:
    """An open stream: `items` and `named` events as they come."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.id = response.headers["X-Workflow-ID"]
        self._lines = response.aiter_lines()

    async def next(self) -> tuple[str, dict[str, Any]]:
        """Return the next event: its name ("" for data alone) and what it says."""
        name = ""
        async with asyncio.timeout(20):
            while True:
                line = await anext(self._lines)
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    return name, json.loads(line.removeprefix("data: "))

    async def until(self, what: str) -> list[dict[str, Any]]:
        """Return the items up to the first whose type, message or name is this."""
        seen = []
        while True:
            name, event = await self.next()
            seen.append(event)
            if what in (name, event.get("type"), str((event.get("item") or {}).get("message"))):
                return seen

    async def whole(self) -> tuple[list[dict[str, Any]], str, dict[str, Any]]:
        """Read to the end: the items, the name of the end, and what it says."""
        items = []
        while True:
            name, event = await self.next()
            if name:
                assert [line async for line in self._lines] == [""]
                return items, name, event
            items.append(event)


class Client:
    """One visitor."""

    def __init__(self, server: ServerProcess) -> None:
        self.http = httpx.AsyncClient(base_url=server.url, timeout=30)

    async def __aenter__(self) -> "Client":
        await self.http.get("/profile")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.http.aclose()

    @contextlib.asynccontextmanager
    async def start(self, body: dict[str, Any], **query: str) -> AsyncIterator[Workflow]:
        async with self.http.stream("POST", START, json=body, params=query) as response:
            assert response.status_code == 200, (response.status_code, await response.aread())
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert response.headers["content-encoding"] == "identity"
            yield Workflow(response)

    async def run(
        self, body: dict[str, Any], **query: str
    ) -> tuple[str, list[dict[str, Any]], str, dict[str, Any]]:
        async with self.start(body, **query) as workflow:
            return workflow.id, *(await workflow.whole())


def told(items: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(item["type"], item["item"].get("message") or "") for item in items]


# --- running ------------------------------------------------------------------------------------------------


async def test_a_workflow_runs_a_bundle_and_streams_messages_logs_and_stats(server: ServerProcess) -> None:
    async with Client(server) as client:
        body = {"userInput": {"prompt": "Find it", "userLanguage": "de"}}
        workflow_id, items, end, data = await client.run(body)
    assert told(items) == [
        ("message", "Find it"),
        ("log", "Searching"),
        ("log", "Searching: 3 hits"),
        ("stat", ""),
        ("message", "Done in de. "),
    ]
    assert (end, data["workflowId"]) == ("complete", workflow_id)
    question, started, completed, stat, answer = (item["item"] for item in items)
    assert (question["role"], answer["role"]) == ("user", "assistant")
    assert (started["type"], started["status"], started["progress"]) == ("info", "started", 0.0)
    assert (completed["type"], completed["progress"], completed["roundNumber"]) == ("success", 1.0, 1)
    assert started["id"].startswith("log_")
    assert stat["cost_total_usd"] == 0.25
    assert all(item["item"]["workflowId"] == workflow_id for item in items)
    assert [item["createdAt"] for item in items] == sorted(item["createdAt"] for item in items)


async def test_a_flat_prompt_and_a_workflow_in_the_query_are_taken_too(server: ServerProcess) -> None:
    name = f"workflow-{uuid.uuid4()}"
    async with Client(server) as client:
        workflow_id, _, end, _ = await client.run({"prompt": "One"}, workflowId=name)
        assert (workflow_id, end) == (name, "complete")
        _, items, end, _ = await client.run({"prompt": "Two", "workflowId": name})
    said = [text for kind, text in told(items) if kind == "message"]
    assert said == ["One", "Done in English. ", "Two", "Done in English. "]
    assert [item["item"]["roundNumber"] for item in items if item["type"] == "log"] == [1, 1, 2, 2]
    ids = [(item["type"], item["item"]["id"]) for item in items]
    assert len(ids) == len(set(ids))


async def test_a_finished_workflow_is_shown_from_the_database_and_ends(server: ServerProcess) -> None:
    async with Client(server) as client:
        workflow_id, items, _, _ = await client.run({"prompt": "One"})
        again = await client.run({"workflowId": workflow_id})
    assert (again[1], again[2]) == (items, "complete")


async def test_whoever_joins_late_sees_all_and_each_thing_once(server: ServerProcess) -> None:
    async with Client(server) as client, client.start({"prompt": "wait"}) as first:
        await first.until("Searching")
        async with client.start({"workflowId": first.id}) as second:
            assert (await second.until("Searching"))[0]["item"]["message"] == "wait"
            async with client.start({"prompt": "blue", "workflowId": first.id}) as third:
                ends = [await each.whole() for each in (first, second, third)]
    for items, end, _ in ends:
        assert end == "complete"
        assert told(items)[-4:] == [
            ("message", "blue"),
            ("log", "Searching: 3 hits"),
            ("stat", ""),
            ("message", "You also said blue. Done in English. "),
        ]


async def test_a_client_that_goes_stops_nothing(server: ServerProcess) -> None:
    async with Client(server) as client:
        async with client.start({"prompt": "wait"}) as workflow:
            await workflow.until("Searching")
        async with client.start({"prompt": "red", "workflowId": workflow.id}) as again:
            items, end, _ = await again.whole()
    assert end == "complete"
    assert ("message", "You also said red. Done in English. ") in told(items)


async def test_a_stop_ends_the_stream_as_stopped(server: ServerProcess) -> None:
    async with Client(server) as client:
        async with client.start({"prompt": "wait"}) as workflow:
            await workflow.until("Searching")
            stopped = await client.http.post(f"{STOP}/{workflow.id}")
            assert stopped.json()["status"] == "stopping"
            _, end, data = await workflow.whole()
        assert (end, data["workflowId"]) == ("stopped", workflow.id)
        assert (await client.http.post(f"{STOP}/{workflow.id}")).json()["status"] == "idle"
        assert (await client.run({"workflowId": workflow.id}))[2] == "stopped"


async def test_a_failing_bundle_ends_the_stream_as_an_error(server: ServerProcess) -> None:
    async with Client(server) as client:
        workflow_id, _, end, data = await client.run({"prompt": "fail"})
        assert (end, data["error_type"]) == ("error", "bundle_error")
        assert "secret" not in data["error"]
        again = await client.run({"workflowId": workflow_id})
        assert (again[2], again[3]["error_type"]) == ("error", "bundle_error")


async def test_files_that_were_sent_before_go_with_a_prompt(server: ServerProcess) -> None:
    async with Client(server) as client:
        form = {
            "message": (None, '{"message": {"text": "Keep this"}}'),
            "files": ("a.txt", b"text", "text/plain"),
        }
        stream_id = str(uuid.uuid4())
        response = await client.http.post("/sse/chat", params={"stream_id": stream_id}, files=form)
        conversation_id = response.json()["conversation_id"]
        fetched = await client.http.post(f"/api/cb/conversations/default/default/{conversation_id}/fetch")
        (file,) = fetched.json()["messages"][0]["attachments"]
        _, items, _, _ = await client.run({"userInput": {"prompt": "Use it", "listFileId": [file["id"]]}})
        assert items[0]["item"]["documents"][0]["fileName"] == "a.txt"
        assert ("message", "Done in English. a.txt") in told(items)
    async with Client(server) as stranger:
        body = {"userInput": {"prompt": "Mine", "listFileId": [file["id"]]}}
        response = await stranger.http.post(START, json=body)
        assert response.status_code == 400
        assert "listFileId[0]: names no file of yours" in response.json()["detail"]["error"]


async def test_what_else_is_emitted_to_the_workflow_comes_along(tmp_path: Path) -> None:
    bundles = "emitting=tests.journeys.bundles.Emitting"
    server = ServerProcess(tmp_path, env={**ENV, "BUNDLES": bundles, "DEFAULT_BUNDLE": "emitting"}).start()
    try:
        async with Client(server) as client:
            _, items, end, _ = await client.run({"prompt": "go"})
    finally:
        server.stop()
    assert end == "complete"
    (progress,) = [item for item in items if item["type"] == "progress"]
    assert (progress["item"], progress["message"], progress["step"]) == ({"done": 0.5}, "Half", "work")
    (own,) = [item for item in items if item["item"].get("id") == "own-1"]
    assert own["type"] == "message"


# --- refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[]", 400, "expected an object"),
        (b"{}", 400, "prompt: is missing"),
        (b'{"userInput": {}}', 400, "userInput.prompt: is missing"),
        (b'{"userInput": {"prompt": 5}}', 400, "userInput.prompt: expected a string"),
        (b'{"userInput": "hi"}', 400, "userInput: expected"),
        (b'{"prompt": "  "}', 400, "prompt: is missing"),
        (b'{"prompt": "a\\u0000"}', 400, "prompt: has a NUL"),
        (b'{"prompt": "x", "workflowId": "a/b"}', 400, "workflowId: has a control character or a slash"),
        (b'{"prompt": "x", "listFileId": ["1"]}', 400, "listFileId[0]: is no id"),
        (b'{"prompt": "x", "listFileId": "1"}', 400, "listFileId: expected an array"),
        (b'{"workflowId": "unknown"}', 404, "no such workflow"),
        (b'{"prompt": "' + b"x" * 32_001 + b'"}', 400, "32,001 characters"),
    ],
)
async def test_a_bad_request_is_named_and_stores_nothing(
    server: ServerProcess, body: bytes, status: int, sentence: str
) -> None:
    before = server.query("SELECT count(*) FROM comm_message")
    async with Client(server) as client:
        response = await client.http.post(START, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    assert sentence in response.json()["detail"]["error"]
    assert server.query("SELECT count(*) FROM comm_message") == before


async def test_other_methods_and_sizes_are_refused(server: ServerProcess) -> None:
    async with Client(server) as client:
        assert (await client.http.get(START)).status_code == 405
        response = await client.http.post(START, content=b" " * (27 * 1024 * 1024))
        assert response.status_code == 413


async def test_a_workflow_of_somebody_else_is_theirs(server: ServerProcess) -> None:
    async with Client(server) as owner, Client(server) as stranger:
        workflow_id, *_ = await owner.run({"prompt": "mine"})
        for body in ({"workflowId": workflow_id}, {"workflowId": workflow_id, "prompt": "let me in"}):
            response = await stranger.http.post(START, json=body)
            assert response.status_code == 403, response.text
        assert (await stranger.http.post(f"{STOP}/{workflow_id}")).status_code == 404
        assert told((await owner.run({"workflowId": workflow_id}))[1])[0] == ("message", "mine")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.one_of(st.binary(max_size=100), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["userInput", "workflowId", "listFileId", "userLanguage", "tenant"]), inner, max_size=3),
    max_leaves=6).map(lambda value: json.dumps(value).encode())))  # fmt: skip
def test_no_body_without_a_prompt_starts_anything(server: ServerProcess, body: bytes) -> None:
    response = httpx.post(server.url + START, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 404), (body, response.text)


# --- restarting ---------------------------------------------------------------------------------------------


async def test_a_restart_ends_the_stream_and_a_later_one_tells_what_became_of_it(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, env={**ENV, "DRAIN_GRACE_SECONDS": "0.5"}).start()
    async with Client(server) as client:
        async with client.start({"prompt": "wait"}) as workflow:
            await workflow.until("Searching")
            server.terminate()
            _, end, data = await workflow.whole()
            assert end == "error"
            assert data["error_type"] in ("turn_interrupted", "draining")
        assert server.wait() in (0, -15)
        server.start()
        try:
            again = await client.run({"workflowId": workflow.id})
        finally:
            server.stop()
    assert (again[2], again[3]["error_type"]) == ("error", "turn_interrupted")


async def test_a_killed_server_s_workflow_is_told_to_have_been_interrupted(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, env=ENV).start()
    async with Client(server) as client:
        async with client.start({"prompt": "wait"}) as workflow:
            await workflow.until("Searching")
            server.kill()
        server.start()

        async def interrupted() -> bool:
            return (await client.run({"workflowId": workflow.id}))[2] == "error"

        try:
            await aeventually(interrupted, what="the interruption")
            items = (await client.run({"workflowId": workflow.id}))[1]
        finally:
            server.stop()
    assert told(items)[:2] == [("message", "wait"), ("log", "Searching")]
