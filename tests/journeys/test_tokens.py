"""Tokens and tickets over a real server: by header, cookie, query and auth message, on each transport."""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import pytest
import socketio
from websockets.asyncio.client import ClientConnection, connect

from tests.clients import ChatClient, text_of
from tests.servers import ServerProcess

SECRET = "a-secret-that-is-shared-by-both-sides-of-it"
ENV = {
    "TOKEN_KEY": SECRET,
    "TOKEN_ISSUER": "https://login.example.com/",
    "TOKEN_AUDIENCES": "chat",
    "DEFAULT_BUNDLE": "silent",
    "BUNDLES": "silent=tests.journeys.bundles.Silent",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path_factory.mktemp("tokens"), env=ENV).start()
    yield server
    server.stop()


def token(name: str, **claims: Any) -> str:
    said = {"iss": ENV["TOKEN_ISSUER"], "aud": "chat", "sub": name, "exp": time.time() + 300, **claims}
    return jwt.encode(said, SECRET, "HS256")


@pytest.fixture
def name() -> str:
    return f"user-{uuid.uuid4().hex}"


async def test_a_bearer_token_is_a_user_with_one_session_everywhere(server: ServerProcess, name: str) -> None:
    bearer = {"Authorization": f"Bearer {token(name, roles=['paid'])}"}
    async with ChatClient(server.url, headers=bearer) as client, client.stream() as stream:
        assert stream.received[0].data["user_type"] == "paid"
        ack = await client.send("hello")
        assert text_of(await stream.until_idle(), turn_id=ack["turn_id"]) == "done"
        profile = (await client.http.get(f"{server.url}/profile")).json()
        assert (profile["user_id"], profile["user_type"]) == (name, "PAID")
        query = {"stream_id": str(uuid.uuid4()), "bearer_token": token(name)}
        async with httpx.AsyncClient(base_url=server.url) as other:
            async with other.stream("GET", "/sse/stream", params=query) as again:
                assert again.headers["X-Session-ID"] == client.session_id
            old = {"Authorization": f"Bearer {token(name, exp=1)}"}
            refused = await other.get("/profile", headers=old)
            assert refused.status_code == 401
            assert (
                refused.json()["detail"]["error"] == "The token has expired; log in again and send a new one."
            )


async def test_a_token_cookie_posts_from_our_own_pages_alone(server: ServerProcess, name: str) -> None:
    async with ChatClient(server.url) as client:
        client.http.cookies["__Secure-LATC"] = token(name)
        body = {"message": {"text": "hello"}}
        assert (await client.post(body, headers={"Origin": "https://evil.example.com"})).status_code == 403
        assert (await client.post(body)).status_code == 403
        assert (await client.post(body, headers={"Origin": server.url})).status_code == 200


async def ticket_of(server: ServerProcess, headers: dict[str, str]) -> str:
    async with httpx.AsyncClient(base_url=server.url, headers=headers) as http:
        answer = await http.post("/sse/ticket")
    assert answer.status_code == 200, answer.text
    assert answer.json()["expires_in"] == 30
    return str(answer.json()["ticket"])


async def test_a_ticket_opens_one_stream(server: ServerProcess, name: str) -> None:
    ticket = await ticket_of(server, {"Authorization": f"Bearer {token(name)}"})
    async with ChatClient(server.url) as client:
        async with client.stream(ticket=ticket) as stream:
            assert stream.received[0].data["user_type"] == "registered"
        again = await client.http.get(
            f"{server.url}/sse/stream", params={"stream_id": client.stream_id, "ticket": ticket}
        )
        assert again.status_code == 401
        assert "get a new one" in again.json()["detail"]["error"]
        nobody = await client.http.post(f"{server.url}/sse/ticket")
        assert nobody.status_code == 401
    assert ticket not in server.output()


async def ready(socket: ClientConnection) -> dict[str, Any]:
    while True:
        frame = json.loads(await socket.recv())
        if frame["event"] == "ready":
            return dict(frame["data"])


async def test_a_websocket_takes_tickets_in_its_url_and_in_its_auth(server: ServerProcess, name: str) -> None:
    headers = {"Authorization": f"Bearer {token(name)}"}
    address = f"{server.url.replace('http', 'ws')}/ws/stream?stream_id={uuid.uuid4()}"
    async with connect(f"{address}&ticket={await ticket_of(server, headers)}") as socket:
        session_id = (await ready(socket))["session_id"]
        # An auth that names nobody else: the ticket has done its work, and the stream stays its user's.
        await socket.send(json.dumps({"type": "auth", "project_events": True}))
        assert (await ready(socket))["session_id"] == session_id
    async with connect(address) as socket:
        await socket.send(json.dumps({"type": "auth", "ticket": await ticket_of(server, headers)}))
        assert (await ready(socket))["session_id"] == session_id


async def test_socketio_takes_a_ticket_in_its_auth_payload(server: ServerProcess, name: str) -> None:
    ticket = await ticket_of(server, {"Authorization": f"Bearer {token(name)}"})
    client, other = socketio.AsyncSimpleClient(), socketio.AsyncSimpleClient()
    try:
        await client.connect(server.url, auth={"ticket": ticket}, transports=["websocket"])
        event, data = await client.receive(timeout=20)
        assert (event, data["user_type"]) == ("ready", "registered")
        with pytest.raises(socketio.exceptions.ConnectionError):
            await other.connect(server.url, auth={"ticket": ticket}, transports=["websocket"])
    finally:
        await client.disconnect()
