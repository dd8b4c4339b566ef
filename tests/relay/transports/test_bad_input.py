"""What no client should send, over real sockets: a clear word or close code, and a server that goes on."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import socketio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.clients import ChatClient
from tests.servers import ServerProcess
from tests.waiting import aeventually

ENV = {
    "BUNDLES": "script=tests.contract.bundles.Script",
    "DEFAULT_BUNDLE": "script",
    "MESSAGE_RATE": "",
    "SOCKET_AUTH_SECONDS": "2",
    "NOT_READING_SECONDS": "2",
}
LARGE = 27 * 1024 * 1024
pytestmark = pytest.mark.wire
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture(scope="module", params=["uvicorn", "daphne"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path_factory.mktemp("bad"), server=request.param, env=ENV).start()
    yield server
    server.stop()
    assert "Traceback" not in server.output()


def ws(server: ServerProcess, path: str, **options: Any) -> Any:
    return connect(server.url.replace("http", "ws", 1) + path, max_size=None, **options)


async def closed(socket: ClientConnection) -> tuple[list[Any], int]:
    """Read to the end; return what came, and the close code."""
    seen = []
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(90):
            while True:
                seen.append(await socket.recv())
    return seen, int(socket.close_code or 0)


async def serves(server: ServerProcess) -> None:
    """The server still answers a turn."""
    async with ChatClient(server.url) as client, client.stream() as stream:
        await client.send("still there?", payload=[{"text": "yes"}])
        await stream.until_idle()


def stored(server: ServerProcess) -> list[Any]:
    return server.query("SELECT count(*) FROM comm_message") + server.query("SELECT count(*) FROM comm_turn")


# --- the native WebSocket -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "code", "sentence"),
    [
        (b"\x00\x01", 4400, "binary"),
        ("{", 4400, "not valid JSON"),
        ("[]", 4400, "must be a JSON object"),
        ('{"no": "type"}', 4400, 'needs a string "type"'),
        ('{"type": 5}', 4400, 'needs a string "type"'),
        ("[" * 5000 + "]" * 5000, 4400, "not valid JSON"),
        ('{"type": "ping"}', 4401, "must be auth"),
        ('{"type": "auth", "tenant": 5}', 4400, "auth.tenant: expected a string"),
        ('{"type": "auth", "tenant": "a\\u0000"}', 4400, "auth.tenant: has a NUL"),
        ('{"type": "auth", "bearer_token": "forged"}', 4401, "The token is not valid"),
        ('{"type": "auth", "user_session_id": "unknown"}', 4401, "no such session"),
        ('{"type": "auth", "stream_id": "' + "x" * 201 + '"}', 4400, "stream_id"),
        ('{"type": "' + "x" * LARGE + '"}', 4413, "too large"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_a_bad_beginning_is_told_and_closes_the_socket(
    server: ServerProcess, first: Any, code: int, sentence: str
) -> None:
    async with ws(server, f"/ws/stream?stream_id={uuid.uuid4()}") as socket:
        await socket.send(first)
        seen, got = await closed(socket)
    assert got == code
    (told,) = map(json.loads, seen)
    assert told["type"] == "error"
    assert sentence in told["error"]


async def test_no_auth_in_time_closes_with_4408(server: ServerProcess) -> None:
    async with ws(server, f"/ws/stream?stream_id={uuid.uuid4()}") as socket:
        assert (await closed(socket))[1] == 4408


async def test_a_stream_needs_its_id(server: ServerProcess) -> None:
    async with ws(server, "/ws/stream") as socket:
        await socket.send('{"type": "auth"}')
        seen, code = await closed(socket)
    assert (code, "stream_id: required" in str(seen)) == (4400, True)


async def test_a_second_auth_closes_the_socket(server: ServerProcess) -> None:
    async with ws(server, f"/ws/stream?stream_id={uuid.uuid4()}") as socket:
        for _ in range(2):
            await socket.send('{"type": "auth"}')
        seen, code = await closed(socket)
    assert (code, json.loads(seen[-1])["error"]) == (4400, "auth comes first, and once.")


@pytest.mark.parametrize(
    ("message", "status", "sentence"),
    [
        ({"type": "dance"}, 400, "expected one of auth, chat_message"),
        ({"type": "chat_message"}, 400, "body: expected an object"),
        ({"type": "chat_message", "data": []}, 400, "body: expected an object"),
        ({"type": "chat_message", "data": {}}, 400, "message: is missing"),
        ({"type": "chat_message", "data": {"message": {"text": 5}}}, 400, "message.text: expected a string"),
        ({"type": "chat_message", "data": {"message": {"text": "x" * 32_001}}}, 400, "32,001 characters"),
        (
            {"type": "chat_message", "data": {"message": {"text": "hi"}, "idempotency_key": 5}},
            400,
            "Idempotency-Key",
        ),
        (
            {"type": "chat_message", "data": {"message": {"text": "hi", "bundle_id": "none"}}},
            400,
            "no bundle",
        ),
        ({"type": "conv_status.get", "data": 5}, 400, "data: expected an object"),
        ({"type": "conv_status.get", "data": {"conversation_id": "unknown"}}, 404, "no such conversation"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_bad_message_is_answered_and_the_socket_goes_on(
    server: ServerProcess, message: dict[str, Any], status: int, sentence: str
) -> None:
    before = stored(server)
    async with ws(server, f"/ws/stream?stream_id={uuid.uuid4()}") as socket:
        await socket.send('{"type": "auth"}')
        await socket.recv()
        await socket.send(json.dumps({**message, "id": "m1"}))
        while (answer := json.loads(await socket.recv())).get("type") != "ack":
            pass
        assert (answer["id"], answer["ok"], answer["status"]) == ("m1", False, status)
        assert sentence in answer["error"]
        await socket.send('{"type": "ping", "id": 2}')
        while (answer := json.loads(await socket.recv())).get("id") != 2:
            pass
        assert answer["ok"] is True
    assert stored(server) == before


async def test_ids_of_others_open_and_tell_nothing(server: ServerProcess) -> None:
    async with ChatClient(server.url) as owner, owner.stream() as stream:
        conversation = (await owner.send("mine", payload=[{"text": "private"}]))["conversation_id"]
        await stream.until_idle()
        async with ws(server, f"/ws/stream?stream_id={owner.stream_id}") as socket:
            await socket.send('{"type": "auth"}')
            ready = json.loads(await socket.recv())
            assert ready["data"]["session_id"] != owner.session_id
            for number, (kind, data) in enumerate(
                [
                    ("conv_status.get", {"conversation_id": conversation}),
                    ("chat_message", {"message": {"text": "in", "conversation_id": conversation}}),
                ]
            ):
                await socket.send(json.dumps({"type": kind, "id": number, "data": data}))
                while (answer := json.loads(await socket.recv())).get("type") != "ack":
                    pass
                assert (answer["ok"], answer["status"]) == (False, 404 if number == 0 else 403)


async def test_a_session_of_a_user_is_forbidden_to_whoever_only_names_it(server: ServerProcess) -> None:
    script = (
        "from relay.models import Session; "
        "Session.objects.get_or_create(session_id='session-of-ada', defaults={'user_id': 'ada'})"
    )
    await asyncio.to_thread(server.manage, "shell", "-c", script)
    async with ws(server, f"/ws/stream?stream_id={uuid.uuid4()}&user_session_id=session-of-ada") as socket:
        assert (await closed(socket))[1] == 4403
    client = socketio.AsyncClient(reconnection=False)
    refused: list[Any] = []
    client.on("connect_error", refused.append)
    with pytest.raises(socketio.exceptions.ConnectionError):
        await client.connect(server.url, auth={"user_session_id": "session-of-ada"}, transports=["websocket"])
    assert (refused[0]["data"]["status"], refused[0]["data"]["error_type"]) == (403, "session_forbidden")


async def test_pages_of_other_sites_get_no_socket(server: ServerProcess) -> None:
    for path in (f"/ws/stream?stream_id={uuid.uuid4()}", "/socket.io/?EIO=4&transport=websocket"):
        with pytest.raises(Exception, match=r"40[03]"):
            async with ws(server, path, additional_headers={"Origin": "https://elsewhere.example"}):
                pass
    response = httpx.get(
        f"{server.url}/socket.io/?EIO=4&transport=polling", headers={"Origin": "https://elsewhere.example"}
    )
    assert response.status_code == 400


@settings(max_examples=40, deadline=None, suppress_health_check=SLOW)
@given(
    frames=st.lists(
        st.text() | st.binary() | st.dictionaries(st.text(), st.text()).map(json.dumps), max_size=4
    )
)
def test_garbage_on_a_websocket_harms_nobody(server: ServerProcess, frames: list[Any]) -> None:
    async def throw() -> None:
        async with ws(server, f"/ws/stream?stream_id={uuid.uuid4()}") as socket:
            await socket.send('{"type": "auth"}')
            with contextlib.suppress(ConnectionClosed, UnicodeEncodeError):
                for frame in frames:
                    await socket.send(frame)

    asyncio.run(throw())
    assert httpx.get(f"{server.url}/health").status_code == 200


# --- Socket.IO ------------------------------------------------------------------------------------------------


async def joined(socket: ClientConnection) -> None:
    """Join the namespace by hand."""
    assert str(await socket.recv()).startswith("0{")
    await socket.send("40")
    while not str(await socket.recv()).startswith('42["session_info"'):
        pass


@pytest.mark.parametrize(
    "packet",
    [
        "4{}", "49", "4", "42", "42{}", "42[]", "42[5]", '42["connect", {}]', '42["disconnect"]', "42[",
        "4" + "2" * 200,
        '42["x"' + "[" * 3000, "451-", '451-["chat_message",{"_placeholder":true,"num":7}]',
        '459999-["chat_message"]',
        '451-["chat_message"]', "44", "43[1]", "9", "\u00fc", '42/admin,["x"]', "40/admin,",
    ],
    ids=lambda packet: packet[:30],
)  # fmt: skip
async def test_what_is_no_packet_ends_the_connection_or_is_answered(
    server: ServerProcess, packet: str
) -> None:
    async with ws(server, "/socket.io/?EIO=4&transport=websocket") as socket:
        await joined(socket)
        await socket.send(packet)
        with contextlib.suppress(ConnectionClosed):
            # A text where a binary argument belongs, for those that announced one; then what is no packet at all.
            await socket.send('42["ping"]')
            await socket.send(b"xx")
            async with asyncio.timeout(10):
                while True:
                    await socket.recv()


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        ((), 400, "body: expected an object, got null"),
        (("text",), 400, "body: expected an object"),
        ((b"binary",), 400, "body: expected an object"),
        (({"message": {"text": "hi", "payload": b"inside"}},), 400, "binary content"),
        (({"message": {"text": "hi"}}, "no file"), 400, "argument 2: is not binary"),
        (
            ({"message": {"text": "hi"}, "attachment_meta": [{"filename": "a"}]},),
            400,
            "names 1 files, but 0 came",
        ),
        (
            ({"message": {"text": "hi"}, "attachment_meta": 5}, b"x"),
            400,
            "attachment_meta: expected an array",
        ),
        (
            ({"message": {"text": "hi"}, "attachment_meta": [{"filename": "a.png"}]}, b"none"),
            400,
            "content is none",
        ),
        (({"message": {"text": "hi"}}, *[b"x"] * 201), 400, "201 files"),
        (({"external_events": []},), 400, "external_events: is empty"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_bad_message_is_acknowledged_with_its_reason(
    server: ServerProcess, arguments: tuple[Any, ...], status: int, sentence: str
) -> None:
    before = stored(server)
    client = socketio.AsyncClient(reconnection=False)
    await client.connect(server.url, transports=["websocket"])
    try:
        ack = await client.call("chat_message", arguments or None, timeout=10)
        assert (ack["ok"], ack["status"]) == (False, status), ack
        assert sentence in ack["error"]
        assert (await client.call("ping"))["ok"]
    finally:
        await client.disconnect()
    assert stored(server) == before


@pytest.mark.parametrize("auth", [["x"], {"tenant": {}}, {"stream_id": "x" * 201}, {"last_event_id": 5}])
async def test_a_bad_auth_payload_is_a_connect_error(server: ServerProcess, auth: Any) -> None:
    client = socketio.AsyncClient(reconnection=False)
    refused: list[Any] = []
    client.on("connect_error", refused.append)
    with pytest.raises(socketio.exceptions.ConnectionError):
        await client.connect(server.url, auth=auth, transports=["websocket"])
    assert refused[0]["message"]
    assert refused[0]["data"]["status"] in (400, 422)


@pytest.mark.parametrize(
    "query", ["", "EIO=3&transport=polling", "EIO=4&transport=smoke", "EIO=4&transport=polling&sid=unknown"]
)
def test_a_bad_handshake_is_refused(server: ServerProcess, query: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        response = httpx.request(method, f"{server.url}/socket.io/?{query}", content=b"x")
        assert response.status_code in (400, 404, 405), (method, response.text)


async def test_the_server_goes_on_after_all_that(server: ServerProcess) -> None:
    await serves(server)


async def test_who_holds_a_connection_without_joining_is_let_go(server: ServerProcess) -> None:
    async with ws(server, "/socket.io/?EIO=4&transport=websocket") as socket:
        await socket.recv()
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await socket.recv()


async def test_a_flood_of_events_from_who_does_not_read_is_held_back(server: ServerProcess) -> None:
    """Each is answered; the answers wait for the reader, and then so do the events."""
    async with ws(server, "/socket.io/?EIO=4&transport=websocket") as socket:
        await joined(socket)
        event = '42["' + "nonsense" * 500 + '",{}]'
        sent = 0
        with contextlib.suppress(TimeoutError, ConnectionClosed):
            async with asyncio.timeout(10):
                while sent < 3000:
                    await socket.send(event)
                    sent += 1
        socket.transport.abort()
    assert sent > 100
    await serves(server)
    await aeventually(lambda: httpx.get(f"{server.url}/health").json()["streams"] == 0, timeout=120)


@settings(max_examples=40, deadline=None, suppress_health_check=SLOW)
@given(
    packets=st.lists(
        st.text(max_size=50).map("4{}".format) | st.binary(max_size=50) | st.text(max_size=20), max_size=4
    )
)
def test_garbage_on_socketio_harms_nobody(server: ServerProcess, packets: list[Any]) -> None:
    async def throw() -> None:
        async with ws(server, "/socket.io/?EIO=4&transport=websocket") as socket:
            await joined(socket)
            with contextlib.suppress(ConnectionClosed, UnicodeEncodeError):
                for packet in packets:
                    await socket.send(packet)

    asyncio.run(throw())
    assert httpx.get(f"{server.url}/health").status_code == 200
