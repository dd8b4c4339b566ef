"""The bound on bodies, before Django has read one."""

import asyncio
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from channels.routing import URLRouter
from django.core.asgi import get_asgi_application
from django.urls import re_path

from relay.ingress.bodies import BodyLimit, body_limit
from relay.routing import bounded
from tests.relay.ingress.visitors import Visitor

LIMIT = 10


async def read_all(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with the body, as an application that reads all of it."""
    body, more = b"", True
    while more:
        event = await receive()
        body += event["body"]
        more = event.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
    assert (await receive())["type"] == "http.disconnect"


def connect(app: Any, *headers: tuple[bytes, bytes], **scope: Any) -> ApplicationCommunicator:
    request = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/", "query_string": b""}
    return ApplicationCommunicator(app, {**request, "headers": list(headers), **scope})


async def answer(client: ApplicationCommunicator, *chunks: bytes) -> tuple[int, bytes]:
    for number, chunk in enumerate(chunks, 1):
        await client.send_input({"type": "http.request", "body": chunk, "more_body": number < len(chunks)})
    start = await client.receive_output(10)
    body = await client.receive_output(10)
    await client.send_input({"type": "http.disconnect"})
    await client.wait(10)
    return start["status"], body["body"]


@pytest.mark.parametrize(
    "chunks", [[b""], [b"12345"], [b"1234567890"], [b"12345", b"67890"], [b"1", b"", b"2"]]
)
@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_within_the_limit_passes_as_it_is(chunks: list[bytes], announced: bool) -> None:
    body = b"".join(chunks)
    headers = [(b"content-length", str(len(body)).encode())] if announced else []
    client = connect(BodyLimit(read_all, lambda: LIMIT), *headers)
    assert await answer(client, *chunks) == (200, body)


async def test_a_body_announced_over_the_limit_is_not_read() -> None:
    client = connect(BodyLimit(read_all, lambda: LIMIT), (b"content-length", b"11"))
    start = await client.receive_output(10)
    assert start["status"] == 200
    assert (await client.receive_output(10))["body"] == b""
    await client.send_input({"type": "http.request", "body": b"12345678901", "more_body": False})
    await client.send_input({"type": "http.disconnect"})
    await client.wait(10)


async def test_an_endless_body_is_cut_at_the_limit() -> None:
    client = connect(BodyLimit(read_all, lambda: LIMIT))
    status, body = await answer(client, b"12345", b"678901", b"never seen", b"")
    assert status == 200
    assert len(body) <= LIMIT


async def test_other_protocols_pass() -> None:
    seen = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        seen.append((scope["type"], await receive()))

    client = ApplicationCommunicator(BodyLimit(app, lambda: LIMIT), {"type": "websocket"})
    await client.send_input({"type": "websocket.receive", "bytes": b"12345678901"})
    await client.wait(10)
    assert seen == [("websocket", {"type": "websocket.receive", "bytes": b"12345678901"})]


@pytest.mark.parametrize("length", [str(body_limit() + 1), None])
async def test_a_message_that_is_too_large_is_answered_before_it_was_sent(
    visitor: Visitor, length: str | None
) -> None:
    headers = [
        (b"host", b"testserver"),
        (b"content-type", b"application/json"),
        (b"user-session-id", visitor.session.session_id.encode()),
    ]
    if length:
        headers.append((b"content-length", length.encode()))
    scope = {"path": "/sse/chat", "query_string": f"stream_id={visitor.stream_id}".encode()}
    routes = URLRouter([re_path(r"", bounded(get_asgi_application()))])
    client = connect(routes, *headers, **scope)
    if not length:
        chunk = {"type": "http.request", "body": b"x" * (body_limit() // 2 + 1), "more_body": True}
        for _ in range(2):
            await client.send_input(chunk)
    start = await client.receive_output(10)
    assert start["status"] == 413
    assert (b"X-Session-ID", visitor.session.session_id.encode()) in start["headers"]
    assert b"message_too_large" in (await client.receive_output(10))["body"]
    await client.send_input({"type": "http.disconnect"})
    await client.wait(10)
    (told,) = await asyncio.to_thread(visitor.told, "chat.error")
    assert told.data["status"] == 413
