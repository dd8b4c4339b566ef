"""Files at the limits, over a real server: by form and by Socket.IO, the answers are alike, and ours."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import socketio

from tests.attachments import LimitCase, limit_cases
from tests.clients import ChatClient
from tests.servers import ServerProcess

ENV = {"MESSAGE_RATE": "", "DEFAULT_BUNDLE": "silent", "BUNDLES": "silent=tests.journeys.bundles.Silent"}
pytestmark = pytest.mark.wire
CASES = limit_cases()


@pytest.fixture(scope="module", params=["uvicorn", "daphne"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path_factory.mktemp("limits"), server=request.param, env=ENV).start()
    yield server
    server.stop()


def stored(server: ServerProcess) -> tuple[int, int]:
    """How many messages and files the server has."""
    ((messages,),) = server.query("SELECT count(*) FROM comm_message")
    ((files,),) = server.query("SELECT count(*) FROM comm_attachment")
    folder = server.folder / "attachments"
    on_disk = sum(path.is_file() for path in folder.rglob("*")) if folder.exists() else 0
    assert on_disk == files, "a file without its row, or a row without its file"
    return messages, on_disk


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
async def test_a_form_at_the_limits(server: ServerProcess, case: LimitCase) -> None:
    before = stored(server)
    async with ChatClient(server.url) as client, client.stream() as stream:
        form = {"message": (None, '{"message": {"text": "' + case.message + '"}}')}
        files = [("files", (name, content)) for name, content in case.files]
        response = await client.http.post(
            f"{server.url}/sse/chat",
            params={"stream_id": client.stream_id},
            headers={"User-Session-ID": str(client.session_id)},
            files=[*form.items(), *files],
            timeout=60,
        )
        if not case.status:
            assert response.status_code == 200, response.text
            events = await stream.until_idle()
            (announced,) = [e for e in events if e.data["type"] == "chat.attachments"]
            assert announced.data["data"]["count"] == len(case.files)
            return
        assert response.status_code == case.status, response.text
        detail = response.json()["detail"]
        assert case.reason in (detail["error_type"], detail.get("reason"))
        events = await stream.until(lambda event: event.event == "chat_error")
        failures = [e for e in events if e.data["type"] == "rate_limit.attachment_failure"]
        assert len(failures) == (case.status == 400)
    assert stored(server) == before


@contextlib.asynccontextmanager
async def connected(
    server: ServerProcess, transport: str
) -> AsyncIterator[tuple[socketio.AsyncClient, list[Any]]]:
    client = socketio.AsyncClient(reconnection=False)
    seen: list[Any] = []
    client.on("*", lambda event, data=None: seen.append((event, data)))
    await client.connect(server.url, auth={"stream_id": str(uuid.uuid4())}, transports=[transport])
    try:
        yield client, seen
    finally:
        await client.disconnect()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@pytest.mark.parametrize("transport", ["websocket", "polling"])
# The client's own doing: it hands its polling requests over in one piece.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_binary_arguments_at_the_limits(server: ServerProcess, transport: str, case: LimitCase) -> None:
    before = stored(server)
    async with connected(server, transport) as (client, seen):
        meta = [{"filename": name} for name, _ in case.files]
        body = {"message": {"text": case.message}, "attachment_meta": meta}
        ack = await client.call("chat_message", (body, *(content for _, content in case.files)), timeout=60)
        assert ack["ok"] == (not case.status), ack
        if not case.status:
            async with asyncio.timeout(30):
                while not any("completion" in str(data) for event, data in seen if event == "conv_status"):
                    await asyncio.sleep(0.02)
            return
        assert ack["status"] == case.status
        assert case.reason in (ack["error_type"], ack.get("reason"))
        # The connection is whole.
        assert (await client.call("ping"))["ok"]
    assert stored(server) == before
