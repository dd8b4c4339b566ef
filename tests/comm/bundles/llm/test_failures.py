"""Model servers that fail: each way ends in one chat_error that says what to do; what was answered stays."""

import asyncio
import logging
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from comm.bundles.llm.failures import retry_seconds
from tests.comm.bundles.llm.conversing import LlmTalk
from tests.comm.bundles.llm.modelserver import Exchange, ModelServer, calls, refuses, says

MakeLlmTalk = Callable[..., LlmTalk]
Configure = Callable[..., None]
KEY = "sk-secret-key-1234"

REFUSALS: list[tuple[int, Any, str, str, str]] = [
    (401, {"message": f"Incorrect key: {KEY}", "code": "invalid_api_key"},
     "provider_auth", "invalid_api_key", "LLM_API_KEY"),
    (402, {"message": "Insufficient balance"}, "provider_quota", "http_402", "Add credit"),
    (403, {"message": "Country not supported", "code": "unsupported_country"},
     "provider_forbidden", "unsupported_country", "no access"),
    (404, {"message": "The model `x` does not exist", "code": "model_not_found"},
     "provider_model_unknown", "model_not_found", "LLM_MODEL"),
    (404, {"message": "model 'x' not found, try pulling it first"},
     "provider_model_unknown", "http_404", "LLM_MODEL"),
    (404, "404 page not found", "provider_not_found", "http_404", "LLM_BASE_URL"),
    (400, {"message": "This model's maximum context length is 4096 tokens", "code": None},
     "provider_too_long", "http_400", "LLM_HISTORY_TOKENS"),
    (400, {"message": "too many", "code": "context_length_exceeded"},
     "provider_too_long", "context_length_exceeded", "new conversation"),
    (400, {"message": "temperature must be 1", "type": "invalid_request_error", "code": 17},
     "provider_refused", "invalid_request_error", "refused"),
    (413, "Request Entity Too Large", "provider_too_long", "http_413", "send less"),
    (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"},
     "provider_quota", "insufficient_quota", "Add credit"),
    (500, {"message": "boom", "type": "server_error"}, "provider_unavailable", "server_error", "in a moment"),
    (500, {"message": "image input is not supported"}, "provider_no_images", "http_500", "images"),
    (502, "<html>Bad gateway</html>", "provider_unavailable", "http_502", "in a moment"),
    (503, "", "provider_unavailable", "http_503", "in a moment"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "error", "error_type", "reason", "advice"), REFUSALS)
async def test_refusal_of_the_server_says_what_to_do(
    server: ModelServer, talk: MakeLlmTalk, status: int, error: Any, error_type: str, reason: str, advice: str
) -> None:
    server.plan(refuses(status, error))

    turn = await talk().run()

    assert turn.error["error_type"] == error_type
    assert turn.error["reason"] == reason
    assert advice in turn.error["error"]
    assert "retry_after" not in turn.error
    assert turn.states("model") == ["started", "error"]
    assert turn.of("accounting.usage") == []


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_time_of_the_server_reaches_the_user(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure, status: int
) -> None:
    configure(RETRIES=2)
    server.plan(refuses(status, {"message": "Slow down"}, Retry_After="37"))

    turn = await talk().run()

    assert turn.error["retry_after"] == 37
    assert "Send the message again in 37 seconds." in turn.error["error"]
    assert len(server.requests) == 1


def test_retry_time_is_read_in_each_form_it_may_have() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)

    assert retry_seconds({"retry-after": "1.2"}) == 2
    assert retry_seconds({"retry-after-ms": "250", "retry-after": "9"}) == 1
    assert retry_seconds({"retry-after": soon}) in (89, 90, 91)
    for nonsense in ("", "soon", "-4", "nan", "inf", "1e300", "Mon, 99 Foo 2026 00:00:00 GMT"):
        assert retry_seconds({"retry-after": nonsense}) is None
    assert retry_seconds({}) is None


async def test_failure_that_passes_is_tried_again_and_shown(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure
) -> None:
    configure(RETRIES=2)
    server.plan(refuses(503), refuses(429, {"message": "Slow down"}, Retry_After_Ms="10"), says("Here I am."))

    turn = await talk().run()

    assert turn.text() == "Here I am."
    assert turn.of("chat.error") == []
    assert len(server.requests) == 3
    told = [step["event"]["title"] for step in turn.of("chat.step") if step["event"]["status"] == "running"]
    assert told[0].startswith("Trying again in 0.5 s")


async def test_tries_end(server: ModelServer, talk: MakeLlmTalk, configure: Configure) -> None:
    configure(RETRIES=1)
    server.plan(refuses(503, None, Retry_After="0"))

    turn = await talk().run()

    assert len(server.requests) == 2
    assert turn.error["error_type"] == "provider_unavailable"


async def test_stream_that_is_cut_keeps_the_partial_answer_and_is_not_tried_again(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure
) -> None:
    configure(RETRIES=2)

    async def handler(exchange: Exchange) -> None:
        await exchange.delta(content="The answer begins")
        exchange.cut()

    server.plan(handler)

    turn = await talk().run()

    assert turn.error["error_type"] == "provider_stream_cut"
    assert "kept" in turn.error["error"]
    assert turn.turn.communicator.final_answer == "The answer begins"
    assert len(server.requests) == 1
    assert turn.usage["data"]["breakdown"][0]["estimated"] is True


async def test_stream_that_ends_without_a_finish_is_cut_too(server: ModelServer, talk: MakeLlmTalk) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.delta(content="The answer begins")
        await exchange.raw(b"0\r\n\r\n")

    server.plan(handler)

    turn = await talk().run()

    assert turn.error["error_type"] == "provider_stream_cut"
    assert turn.turn.communicator.final_answer == "The answer begins"


async def test_error_within_the_stream_is_told(server: ModelServer, talk: MakeLlmTalk) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.delta(content="The answer begins")
        await exchange.event({"error": {"message": "overloaded", "type": "overloaded_error", "code": 429}})

    server.plan(handler)

    turn = await talk().run()

    assert turn.error["error_type"] == "provider_rate_limited"
    assert turn.error["reason"] == "overloaded_error"
    assert turn.text() == "The answer begins"


@pytest.mark.parametrize("begun", [False, True])
async def test_server_that_falls_silent_times_out(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure, begun: bool
) -> None:
    configure(TIMEOUT_SECONDS=2.0)

    async def handler(exchange: Exchange) -> None:
        if begun:
            await exchange.delta(content="Well")
        await exchange.until_gone()

    server.plan(handler)

    turn = await talk().run()

    assert turn.error["error_type"] == "provider_timeout"
    assert turn.error["reason"] == ("silent" if begun else "no_response")
    assert "LLM_TIMEOUT_SECONDS" in turn.error["error"]
    await asyncio.wait_for(server.requests[0].gone.wait(), 5)


async def test_comments_without_an_answer_time_out_too(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure
) -> None:
    configure(TIMEOUT_SECONDS=0.3)

    async def handler(exchange: Exchange) -> None:
        for _ in range(1000):
            await exchange.send(": still working\n\n")
            await asyncio.sleep(0.02)

    server.plan(handler)

    assert (await talk().run()).error["error_type"] == "provider_timeout"


async def test_server_that_is_not_there_is_named_as_such(talk: MakeLlmTalk, configure: Configure) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        configure(BASE_URL=f"http://127.0.0.1:{unused.getsockname()[1]}/v1", RETRIES=1)

        turn = await talk().run()

    assert turn.error["error_type"] == "provider_unreachable"
    assert "LLM_BASE_URL" in turn.error["error"]
    assert "127.0.0.1" not in turn.error["error"]
    assert turn.states("model") == ["started", "running", "error"]


GARBAGE = [
    b"data: {not json}\n\n",
    b"data: \xff\xfe\x00\n\n",
    b"data: " + b"[" * 100_000 + b"\n\n",
    b"<html><body>Welcome to my router</body></html>",
    b"data: null\n\ndata: 5\n\ndata: [1]\n\ndata: {}\n\n",
    b'data: {"choices": 7, "usage": "many"}\n\ndata: {"choices": [null]}\n\n',
    b'data: {"choices": [{"delta": {"content": {"a": 1}, "tool_calls": [null, 4, {"index": "x"}]}}]}\n\n',
    b'data: {"choices": [{"delta": 3, "finish_reason": ["stop"]}]}\n\ndata: [DONE]\n\n',
    b'data: {"error": "because"}\n\n',
    b'data: {"error": ["because"]}\n\n',
    b"",
]


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_garbage_is_an_error_and_nothing_worse(
    server: ModelServer, talk: MakeLlmTalk, garbage: bytes
) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.open()
        if garbage:
            await exchange.send(garbage)
        await exchange.raw(b"0\r\n\r\n")

    server.plan(handler)

    turn = await talk().run()

    assert turn.error["error_type"] in (
        "provider_bad_response", "provider_stream_cut", "provider_unavailable", "provider_empty_answer",
    )  # fmt: skip
    assert turn.text() == ""


async def test_what_is_no_http_is_an_error(server: ModelServer, talk: MakeLlmTalk) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.raw(b"SSH-2.0-OpenSSH_9.6\r\n")
        exchange.cut()

    server.plan(handler)

    assert (await talk().run()).error["error_type"] in ("provider_unreachable", "provider_bad_response")


async def test_answer_without_words_is_told(server: ModelServer, talk: MakeLlmTalk) -> None:
    server.plan(says())

    assert (await talk().run()).error["error_type"] == "provider_empty_answer"


async def test_withheld_answer_is_told(server: ModelServer, talk: MakeLlmTalk) -> None:
    server.plan(says("I will", finish="content_filter"))

    turn = await talk().run()

    assert turn.error["error_type"] == "provider_content_filter"
    assert turn.text() == "I will"


async def test_answer_without_an_end_is_ended(
    server: ModelServer, talk: MakeLlmTalk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comm.bundles.llm.bundle.MOST_CHARACTERS", 5000)

    async def handler(exchange: Exchange) -> None:
        while True:
            await exchange.delta(content="again and again " * 10)

    server.plan(handler)

    turn = await talk().run()

    assert turn.error["error_type"] == "provider_endless_answer"
    assert len(turn.text()) <= 5000


async def test_server_without_tools_is_asked_again_without_them_and_remembered(
    server: ModelServer, talk: MakeLlmTalk
) -> None:
    refusal = refuses(400, {"message": "registry/model does not support tools"})
    server.plan(refusal, says("No tools, but an answer."))

    turn = await talk().run()
    await talk().run()

    assert turn.of("chat.error") == []
    assert [request.offered != [] for request in server.requests] == [True, False, False]
    assert "tool_choice" not in server.requests[1].body


async def test_server_that_refuses_to_count_is_asked_again(server: ModelServer, talk: MakeLlmTalk) -> None:
    server.plan(refuses(422, {"message": "Extra inputs: stream_options"}), says("Yes.", usage=None))

    turn = await talk().run()

    assert turn.text() == "Yes."
    assert "stream_options" not in server.requests[1].body


async def test_failure_after_a_tool_keeps_what_was_said(server: ModelServer, talk: MakeLlmTalk) -> None:
    server.plan(calls(("calculate", {"expression": "1+1"}), text="I compute."), refuses(500))

    turn = await talk().run()

    assert turn.error["error_type"] == "provider_unavailable"
    assert turn.text() == "I compute."
    assert turn.states("tool.1") == ["started", "completed"]
    assert turn.usage["data"]["breakdown"][0]["input_tokens"] == 100


@pytest.mark.parametrize("status", [401, 400, 500])
async def test_no_secret_and_no_content_reaches_log_or_user(
    server: ModelServer, talk: MakeLlmTalk, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    server.plan(refuses(status, {"message": f"key {KEY}; you said: my diary", "code": KEY}))
    loggers = [logging.getLogger("comm"), logging.getLogger("openai")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    try:
        turn = await talk("my diary").run()
    finally:
        for logger in loggers:
            logger.removeHandler(caplog.handler)

    assert "provider_" in caplog.text
    assert KEY not in caplog.text
    assert "diary" not in caplog.text
    assert KEY not in str(turn.envelopes)
    assert "diary" not in str(turn.of("chat.error"))
