"""The web chat channel, over real servers and real sockets."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.servers import ServerProcess
from tests.waiting import eventually

pytestmark = pytest.mark.wire
BUNDLES = ",".join(
    f"{name.lower()}=tests.relay.transports.webchat_bundles.{name}"
    for name in ("Speaking", "Waiting", "Silent", "Failing")
)
ENV = {"BUNDLES": BUNDLES, "DEFAULT_BUNDLE": "speaking", "WEBCHAT_TIMEOUT_SECONDS": "1"}
TENANT = str(uuid.uuid4())


@pytest.fixture(scope="module", params=["uvicorn", "daphne"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path_factory.mktemp("webchat"), server=request.param, env=ENV).start()
    yield server
    server.stop()
    output = server.output()
    assert output.count("Traceback") == output.count("ValueError: a secret of the server")


class Chat:
    """One socket of a user on a conversation."""

    def __init__(self, socket: ClientConnection, conversation_id: str) -> None:
        self.socket = socket
        self.conversation_id = conversation_id

    async def auth(self, user_id: str = "", tenant_id: str = TENANT, **more: Any) -> None:
        await self.send(
            {"type": "auth", "userId": user_id or str(uuid.uuid4()), "role": "customer_operator",
             "tenantId": tenant_id, **more}
        )  # fmt: skip

    async def say(self, text: str, **more: Any) -> None:
        await self.send({"type": "message", "text": text, **more})

    async def send(self, message: Any) -> None:
        await self.socket.send(message if isinstance(message, (str, bytes)) else json.dumps(message))

    async def next(self, timeout: float = 15) -> dict[str, Any]:
        return dict(json.loads(await asyncio.wait_for(self.socket.recv(), timeout)))

    async def until(self, *kinds: str) -> list[dict[str, Any]]:
        """Read up to and with the first message of one of these types."""
        seen = []
        while True:
            seen.append(await self.next())
            if seen[-1]["type"] in kinds:
                return seen

    async def closed(self) -> tuple[list[dict[str, Any]], int]:
        """Read to the end; return what came and the close code."""
        seen = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                seen.append(await self.next())
        return seen, int(self.socket.close_code or 0)


@contextlib.asynccontextmanager
async def open_chat(server: ServerProcess, conversation_id: str = "", **options: Any) -> AsyncIterator[Chat]:
    conversation_id = conversation_id or str(uuid.uuid4())
    url = f"{server.url.replace('http', 'ws')}/chat/ws/{conversation_id}"
    async with connect(url, max_size=None, **options) as socket:
        yield Chat(socket, conversation_id)


def text_of(messages: list[dict[str, Any]]) -> str:
    return "".join(m["text"] for m in messages if m["type"] == "chunk")


def kept(server: ServerProcess, conversation_id: str) -> list[list[str]]:
    """What the database has of a conversation: tenant, role, author, content, in order."""
    script = (
        "import json; from comm.models import Message; print('@' + json.dumps(["
        "[m.conversation.tenant, m.role, m.author, m.content] for m in Message.objects.filter("
        f"conversation__conversation_id={conversation_id!r}).order_by('id')]))"
    )
    output = server.manage("shell", "-c", script)
    return list(json.loads(output.split("@", 1)[1]))


# --- refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "sentence"),
    [
        ({"type": "message", "text": "hi"}, "First message must be auth"),
        ({}, "First message must be auth"),
        ({"type": "auth"}, "Missing userId or tenantId in auth"),
        ({"type": "auth", "userId": str(uuid.uuid4())}, "Missing userId or tenantId in auth"),
        ({"type": "auth", "userId": "me", "tenantId": TENANT}, "Invalid UUID format in auth: userId"),
        ({"type": "auth", "userId": TENANT, "tenantId": "t"}, "Invalid UUID format in auth: tenantId"),
        ({"type": "auth", "userId": 5, "tenantId": TENANT}, "userId: expected a string, got a number"),
        ({"type": "auth", "userId": TENANT, "tenantId": TENANT, "token": "forged"}, "The token is not valid"),
        ("[1, 2]", "must be a JSON object"),
        ("{", "not valid JSON"),
        (b"\x00\x01", "binary"),
        ({"type": "auth", "userId": TENANT, "tenantId": TENANT, "role": "a\0b"}, "role: has a NUL"),
    ],
)
async def test_whoever_does_not_introduce_themselves_is_told_why_and_closed_with_4001(
    server: ServerProcess, first: Any, sentence: str
) -> None:
    async with open_chat(server) as chat:
        await chat.send(first)
        seen, code = await chat.closed()
    assert code == 4001
    assert [m["type"] for m in seen] == ["error"]
    assert sentence in seen[0]["message"]


async def test_ids_are_not_believed_without_the_setting(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, env={**ENV, "WEBCHAT_TRUST_IDS": "false"}).start()
    try:
        async with open_chat(server) as chat:
            await chat.auth()
            seen, code = await chat.closed()
    finally:
        server.stop()
    assert code == 4001
    assert "token: is missing" in seen[0]["message"]


async def test_a_page_of_another_site_gets_no_socket(server: ServerProcess) -> None:
    with pytest.raises(Exception, match="403"):
        async with open_chat(server, additional_headers={"Origin": "https://elsewhere.example"}):
            pass


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"text": 7}, "text: expected a string"),
        ({"text": "   "}, "text: is empty"),
        ({"text": "x" * 32_001}, "32,001 characters"),
        ({"text": "hi", "conversationId": "a/b"}, "conversationId"),
        ({"text": "hi", "displayName": ["x"]}, "displayName: expected a string"),
        ({"text": "a\0b"}, "text: has a NUL"),
    ],
)
async def test_a_bad_message_is_refused_and_the_next_one_is_answered(
    server: ServerProcess, message: dict[str, Any], sentence: str
) -> None:
    async with open_chat(server) as chat:
        await chat.auth()
        await chat.send({"type": "message", **message})
        assert await chat.next() == {"type": "typing"}
        refused = await chat.next()
        assert refused["type"] == "error"
        assert sentence in refused["message"]
        await chat.say("still here")
        assert text_of(await chat.until("done")) == "still here "
    assert [row[3] for row in kept(server, chat.conversation_id)] == ["still here", "still here "]


async def test_a_frame_that_is_no_json_closes_the_socket_after_auth(server: ServerProcess) -> None:
    async with open_chat(server) as chat:
        await chat.auth()
        await chat.send("{")
        seen, code = await chat.closed()
    assert (code, seen[0]["type"]) == (4400, "error")


async def test_a_second_auth_and_unknown_types_are_ignored(server: ServerProcess) -> None:
    async with open_chat(server) as chat:
        await chat.auth()
        await chat.auth()
        await chat.send({"type": "presence"})
        await chat.send({"no": "type"})
        await chat.say("one two")
        assert [m["type"] for m in await chat.until("done")] == ["typing", "chunk", "chunk", "done"]


async def test_a_conversation_of_another_user_stays_theirs(server: ServerProcess) -> None:
    async with open_chat(server) as mine:
        await mine.auth()
        await mine.say("private")
        await mine.until("done")
        async with open_chat(server, mine.conversation_id) as theirs:
            await theirs.auth()
            await theirs.say("let me in")
            assert await theirs.next() == {"type": "typing"}
            assert "belongs to somebody else" in (await theirs.next())["message"]
            await mine.say("still private")
            await mine.until("done")
            # What came next on the stranger's socket is the answer to its own message elsewhere.
            await theirs.say("own", conversationId=str(uuid.uuid4()))
            assert text_of(await theirs.until("done")) == "own "


# --- answered -------------------------------------------------------------------------------------------


async def test_a_message_is_answered_by_typing_chunks_and_done(server: ServerProcess) -> None:
    async with open_chat(server) as chat:
        await chat.auth()
        await chat.say("Where is my order?", displayName="Ada", agentId=str(uuid.uuid4()))
        seen = await chat.until("done")
    assert seen[0] == {"type": "typing"}
    assert {m["type"] for m in seen[1:-1]} == {"chunk"}
    assert text_of(seen) == seen[-1]["text"] == "Where is my order? "
    assert seen[-1]["conversation_id"] == chat.conversation_id
    assert all(m["id"] for m in seen[1:])
    rows = kept(server, chat.conversation_id)
    assert rows == [
        [TENANT, "user", "Ada", "Where is my order?"],
        [TENANT, "assistant", "speaking", "Where is my order? "],
    ]


async def test_several_messages_on_one_socket_are_answered_in_turn(server: ServerProcess) -> None:
    async with open_chat(server) as chat:
        await chat.auth()
        for text in ("one", "two", "three"):
            await chat.say(text)
        done = [(await chat.until("done"))[-1]["text"] for _ in range(3)]
    assert done == ["one ", "two ", "three "]


async def test_two_sockets_on_a_conversation_both_hear_the_answer_and_only_the_sender_typing(
    server: ServerProcess,
) -> None:
    user = str(uuid.uuid4())
    async with open_chat(server) as one, open_chat(server, one.conversation_id) as two:
        await one.auth(user)
        await two.auth(user)
        # An answer proves that the second socket listens.
        await two.say("first")
        await two.until("done")
        await one.until("done")
        await one.say("second message")
        here, there = await one.until("done"), await two.until("done")
    assert here[0] == {"type": "typing"}
    assert here[1:] == there


async def test_another_tenant_of_the_same_user_hears_nothing(server: ServerProcess) -> None:
    user, other = str(uuid.uuid4()), str(uuid.uuid4())
    async with open_chat(server) as one, open_chat(server, one.conversation_id) as two:
        await one.auth(user)
        await two.auth(user, tenant_id=other)
        await two.say("there")
        await two.until("done")
        await one.say("here")
        await one.until("done")
        await two.say("there again")
        assert text_of(await two.until("done")) == "there again "
    assert {row[0] for row in kept(server, one.conversation_id)} == {TENANT, other}


async def test_the_agent_names_the_bundle_and_a_followup_is_read_by_the_running_turn(
    server: ServerProcess,
) -> None:
    async with open_chat(server) as chat:
        await chat.auth()
        await chat.say("begin", agentId="waiting")
        seen = await chat.until("chunk")
        await chat.say("the rest", agentId="waiting")
        seen += await chat.until("done")
        assert seen[-1]["text"] == "waiting the rest"
        # The absorbed message gets no end of its own, and no timeout either.
        await chat.say("next", agentId="speaking")
        assert (await chat.until("done"))[0] == {"type": "typing"}


async def test_an_answer_that_takes_too_long_is_given_up_on_the_socket_and_still_saved(
    server: ServerProcess,
) -> None:
    async with open_chat(server) as chat:
        await chat.auth()
        await chat.say("slowly", agentId="silent")
        seen = await chat.until("error")
        assert seen[-1]["message"] == "Agent did not respond in time. Please try again."
        assert (await chat.until("done"))[-1]["text"] == "late"


async def test_a_failing_bundle_ends_with_an_error_that_tells_no_secret(server: ServerProcess) -> None:
    async with open_chat(server) as chat:
        await chat.auth()
        await chat.say("now", agentId="failing")
        seen = await chat.until("error")
        assert text_of(seen) == "half "
        assert "secret" not in seen[-1]["message"]
        await chat.say("again", agentId="speaking")
        assert (await chat.until("done"))[-1]["text"] == "again "


async def test_a_closed_tab_loses_no_answer_and_can_resume(server: ServerProcess) -> None:
    user = str(uuid.uuid4())
    async with open_chat(server) as chat:
        await chat.auth(user)
        await chat.say("begin", agentId="waiting")
        first = (await chat.until("chunk"))[-1]
    async with open_chat(server, chat.conversation_id) as again:
        await again.auth(user, last_event_id=first["id"])
        greeting = await again.next()
        assert (greeting["type"], greeting["resume"]["outcome"]) == ("ready", "replayed")
        await again.say("more", agentId="waiting")
        rest = await again.until("done")
    assert first["text"] + text_of(rest) == rest[-1]["text"] == "waiting more"


async def test_an_answer_is_saved_when_every_socket_has_gone(server: ServerProcess) -> None:
    async with open_chat(server) as chat:
        await chat.auth()
        await chat.say("slowly", agentId="silent")
        await chat.next()
    rows = eventually(
        lambda: [r for r in kept(server, chat.conversation_id) if r[1] == "assistant"], what="the answer"
    )
    assert rows == [[TENANT, "assistant", "silent", "late"]]


async def test_a_drain_is_announced_and_closes_with_4503(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, env=ENV).start()
    async with open_chat(server) as chat:
        await chat.auth()
        await chat.say("hello")
        await chat.until("done")
        server.terminate()
        seen, code = await chat.closed()
    assert server.wait() in (0, -15)
    assert code == 4503
    assert seen[-1]["type"] == "server_shutdown"
    assert seen[-1]["retry_after_ms"] >= 1000


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.one_of(st.text(), st.binary(), st.dictionaries(st.text(), st.text())), after=st.booleans())
def test_garbage_never_harms_the_server(server: ServerProcess, garbage: Any, after: bool) -> None:
    async def throw() -> None:
        async with open_chat(server) as chat:
            if after:
                await chat.auth()
            await chat.send(garbage if isinstance(garbage, (str, bytes)) else json.dumps(garbage))
            with contextlib.suppress(ConnectionClosed):
                await chat.say("alive?")
                if after:
                    await chat.until("done", "error")

    with contextlib.suppress(UnicodeEncodeError):
        asyncio.run(throw())
