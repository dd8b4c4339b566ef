"""Socket.IO with its real JavaScript client, in Node: polling, WebSocket, upgrade, files, and restarts."""

import asyncio
import base64
import json
import os
import shutil
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.servers import ServerProcess

pytestmark = pytest.mark.wire
NODE = Path(__file__).resolve().parent.parent / "node"
ENV = {"BUNDLES": "script=tests.contract.bundles.Script", "DEFAULT_BUNDLE": "script"}


@pytest.fixture(scope="module", autouse=True)
def node() -> None:
    """Node and the client, as tests/provision.sh installs them."""
    if shutil.which("node") and (NODE / "node_modules" / "socket.io-client").is_dir():
        return
    if os.environ.get("CI"):
        pytest.fail("Node or socket.io-client is not installed, and in CI the real client must be driven")
    pytest.skip("Node or socket.io-client is not installed: run tests/provision.sh")


class JsClient:
    """One client in a process of its own; `seen` is everything that it told."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.seen: list[dict[str, Any]] = []

    async def next(self, timeout: float = 20) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), timeout)
        assert line, "the client has ended"
        self.seen.append(json.loads(line))
        return self.seen[-1]

    async def until(self, key: str, value: Any = None) -> dict[str, Any]:
        while True:
            told = await self.next()
            if key in told and value in (None, told[key]):
                return told

    async def emit(self, event: str, *args: Any, files: tuple[bytes, ...] = ()) -> Any:
        assert self.process.stdin is not None
        encoded = [base64.b64encode(file).decode() for file in files]
        self.process.stdin.write(json.dumps({"emit": event, "args": args, "files": encoded}).encode() + b"\n")
        return (await self.until("ack"))["ack"]

    async def until_idle(self) -> None:
        while True:
            told = await self.until("event", "conv_status")
            if "completion" in told["data"]["data"]:
                return

    @property
    def text(self) -> str:
        """The answer's text, of everything seen."""
        deltas = [told["data"]["delta"] for told in self.seen if told.get("event") == "chat_delta"]
        return "".join(delta["text"] for delta in deltas if delta["marker"] == "answer")

    @property
    def ids(self) -> list[str]:
        """The positions of everything seen, without `ready`."""
        return [
            told["data"]["id"]
            for told in self.seen
            if "id" in (told.get("data") or {}) and told["event"] != "ready"
        ]


@asynccontextmanager
async def js_client(url: str, **options: Any) -> AsyncIterator[JsClient]:
    process = await asyncio.create_subprocess_exec(
        "node", str(NODE / "client.mjs"), url, json.dumps(options),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**24,
    )  # fmt: skip
    try:
        yield JsClient(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.kill()
        await process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Any:
    server = ServerProcess(tmp_path, env=ENV).start()
    yield server
    server.stop()


@pytest.mark.parametrize("transports", [["websocket"], ["polling"], ["polling", "websocket"]])
async def test_a_turn_in_the_real_client(server: ServerProcess, transports: list[str]) -> None:
    auth = {"tenant": "acme", "project": "web", "stream_id": str(uuid.uuid4())}
    async with js_client(server.url, transports=transports, auth=auth) as client:
        connected = await client.until("connected")
        ready = (await client.until("event", "ready"))["data"]
        assert ready["stream_id"] == connected["connected"]
        assert (ready["tenant"], ready["resume"]["outcome"]) == ("acme", "live")
        info = (await client.until("event", "session_info"))["data"]
        assert set(info) == {
            "session_id", "user_type", "user_id", "username", "project", "tenant", "connected_at"
        }  # fmt: skip
        if len(transports) == 2 and connected["transport"] == "polling":
            assert (await client.until("upgraded"))["upgraded"] == "websocket"
        body = {"message": {"text": "Look", "payload": [{"text": "w", "times": 300}]},
                "attachment_meta": [{"filename": "a.csv", "mime": "text/csv"}]}  # fmt: skip
        ack = await client.emit("chat_message", body, files=(b"a,b\n1,2\n",))
        assert (ack["ok"], ack["status"]) == (True, "processing_started")
        await client.until_idle()
        assert client.text == "".join(f"w{n} " for n in range(300))
        cards = [
            told["data"]
            for told in client.seen
            if told.get("data") and told["data"].get("type") == "chat.attachments"
        ]
        assert cards[0]["data"]["items"][0]["filename"] == "a.csv"
        prompt = {"type": "event.user.prompt", "payload": {"event": {"text": "And this"}}}
        file = {"type": "event.user.attachment.file", "payload": {"mime": "text/plain", "filename": "b.txt"}}
        ack = await client.emit("chat_message", {"external_events": [prompt, file]}, files=(b"text",))
        assert (ack["ok"], ack["is_continuation"]) == (True, False)
        state = await client.emit("conv_status.get", {"conversation_id": ack["conversation_id"]})
        assert (state["ok"], state["conversation_id"]) == (True, ack["conversation_id"])
        refused = await client.emit("chat_message", {"message": {"text": 5}})
        assert (refused["ok"], refused["status"], refused["field"]) == (False, 400, "message.text")
        await client.emit("ping")
        if not any(told.get("event") == "pong" for told in client.seen):
            await client.until("event", "pong")


async def test_a_refused_connection_is_a_connect_error_with_its_reason(server: ServerProcess) -> None:
    async with js_client(server.url, auth={"user_session_id": "unknown"}) as client:
        refused = await client.until("refused")
        assert "no such session" in refused["refused"]
        assert (refused["data"]["error_type"], refused["data"]["status"]) == ("session_unknown", 401)
    async with js_client(server.url, auth={"tenant": 5}) as client:
        refused = await client.until("refused")
        assert refused["data"]["field"] == "auth.tenant"


@pytest.mark.parametrize("transports", [["websocket"], ["polling"]])
async def test_a_restart_is_survived_by_the_client_itself(
    server: ServerProcess, transports: list[str]
) -> None:
    async with js_client(server.url, transports=transports, auth={"stream_id": str(uuid.uuid4())}) as client:
        session_id = (await client.until("event", "ready"))["data"]["session_id"]
        options = {"transports": transports, "auth": {"user_session_id": session_id}}
        async with js_client(server.url, **options) as tab:
            await tab.until("event", "ready")
            await tab.emit(
                "chat_message", {"message": {"text": "x", "payload": [{"text": "a", "times": 50}]}}
            )
            await tab.until_idle()
            before = len(tab.ids)
            server.terminate()
            goodbye = (await tab.until("event", "server_shutdown"))["data"]
            assert goodbye["retry_after_ms"] >= 1000
            await tab.until("disconnected")
            server.wait()
            server.start()
            ready = (await tab.until("event", "ready"))["data"]
            assert (ready["session_id"], ready["resume"]["outcome"]) == (session_id, "replayed")
            await tab.emit(
                "chat_message", {"message": {"text": "y", "payload": [{"text": "b", "times": 50}]}}
            )
            await tab.until_idle()
            assert tab.text == "".join(f"{word}{n} " for word in "ab" for n in range(50))
            assert len(tab.ids) == len(set(tab.ids)) > before


async def test_a_targeted_event_finds_a_client_by_its_stable_name_after_its_sid_has_changed(
    server: ServerProcess,
) -> None:
    name = str(uuid.uuid4())
    async with js_client(server.url, transports=["websocket"], auth={"stream_id": name}) as client:
        first = (await client.until("event", "ready"))["data"]
        options = {
            "transports": ["websocket"],
            "auth": {"user_session_id": first["session_id"], "stream_id": name},
        }
        async with js_client(server.url, **options) as again:
            second = (await again.until("event", "ready"))["data"]
            assert second["stream_id"] != first["stream_id"]
            payload = [{"event": "to.name", "to": name}, {"event": "to.sid", "to": first["stream_id"]}]
            await again.emit("chat_message", {"message": {"text": "x", "payload": payload}})
            await again.until_idle()
            types = [told["data"]["type"] for told in again.seen if "type" in (told.get("data") or {})]
            assert "to.name" in types
            assert "to.sid" not in types
