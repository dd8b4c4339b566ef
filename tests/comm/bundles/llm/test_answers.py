"""What a turn of the llm bundle says, and what it asks the model server."""

from collections.abc import Callable
from typing import Any

import pytest

from comm.bundles import HistoryMessage, TurnMessage
from tests.comm.bundles.llm.conversing import LlmTalk
from tests.comm.bundles.llm.modelserver import Exchange, ModelServer, calls, says

MakeLlmTalk = Callable[..., LlmTalk]
Configure = Callable[..., None]


async def test_answer_is_streamed_chunk_by_chunk_and_closed(server: ModelServer, talk: MakeLlmTalk) -> None:
    server.plan(says("The sky ", "is ", "blue."))

    turn = await talk("Why?").run()

    assert [delta["delta"]["text"] for delta in turn.deltas("answer")] == ["The sky ", "is ", "blue.", ""]
    assert [delta["delta"]["completed"] for delta in turn.deltas("answer")] == [False, False, False, True]
    assert turn.turn.communicator.final_answer == "The sky is blue."
    assert turn.of("chat.error") == []
    assert turn.states("model") == ["started", "running", "completed"]


async def test_request_names_model_key_and_what_it_wants(server: ModelServer, talk: MakeLlmTalk) -> None:
    server.plan(says("Yes."))

    await talk("Is it?").run()

    [request] = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer sk-secret-key-1234"
    assert request.body["model"] == "test-model"
    assert request.body["stream"] is True
    assert request.body["stream_options"] == {"include_usage": True}
    assert request.offered == ["calculate", "current_time", "query_table"]
    assert [message["role"] for message in request.messages] == ["system", "user"]
    assert "helpful assistant" in request.messages[0]["content"]
    assert request.messages[1]["content"] == "Is it?"


async def test_no_key_is_sent_where_none_is_set(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-somebody-else")
    configure(API_KEY="", SYSTEM_PROMPT="Be brief.")
    server.plan(says("Yes."))

    await talk().run()

    [request] = server.requests
    assert "authorization" not in request.headers
    assert "openai-organization" not in request.headers
    assert request.messages[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_goes_to_the_thinking_marker(
    server: ModelServer, talk: MakeLlmTalk, field: str
) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.delta(**{field: "Let me "})
        await exchange.delta(**{field: "see."})
        await exchange.delta(content="Blue.")
        await exchange.delta("stop")
        await exchange.done()

    server.plan(handler)

    turn = await talk().run()

    assert turn.text("thinking") == "Let me see."
    assert turn.text("answer") == "Blue."
    assert turn.deltas("thinking")[-1]["delta"]["completed"] is True


async def test_think_tags_in_the_content_are_reasoning_too(server: ModelServer, talk: MakeLlmTalk) -> None:
    server.plan(says("<th", "ink>Let me", " see.</thi", "nk>\n\n", "Blue, not <think>red</think>."))

    turn = await talk().run()

    assert turn.text("thinking") == "Let me see."
    assert turn.text("answer") == "Blue, not <think>red</think>."


async def test_usage_is_what_the_server_counted_and_costs_what_the_settings_say(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure
) -> None:
    configure(PRICE_INPUT_PER_MILLION=2.0, PRICE_OUTPUT_PER_MILLION=10.0)
    server.plan(says("Blue.", usage=(1240, 380)))

    usage = (await talk().run()).usage

    assert usage["event"]["markdown"] == "Token usage: 1,240 in / 380 out"
    assert usage["event"]["step"] == "accounting"
    [row] = usage["data"]["breakdown"]
    assert (row["model"], row["input_tokens"], row["output_tokens"]) == ("test-model", 1240, 380)
    assert row["estimated"] is False
    assert usage["data"]["cost_total_usd"] == row["cost_usd"] == pytest.approx(0.00628)


async def test_usage_is_estimated_and_says_so_where_the_server_does_not_count(
    server: ModelServer, talk: MakeLlmTalk
) -> None:
    server.plan(says("word " * 700, usage=None))

    usage = (await talk("question " * 70).run()).usage

    [row] = usage["data"]["breakdown"]
    assert row["estimated"] is True
    assert row["output_tokens"] == 1000
    assert row["input_tokens"] > 180
    assert "estimated" in usage["event"]["markdown"]


@pytest.mark.django_db(transaction=True)
async def test_history_is_sent_oldest_first_within_its_budget(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure
) -> None:
    configure(HISTORY_TOKENS=60)
    history = [
        HistoryMessage("user", "An old question. " * 20),
        HistoryMessage("assistant", "An old answer."),
        HistoryMessage("user", "How tall is it?"),
        HistoryMessage("event", "The door was opened."),
        HistoryMessage("assistant", "I cannot know."),
    ]
    server.plan(says("Now I know."))

    await talk("It has 24 floors.", history=history).run()

    assert server.requests[0].messages[1:] == [
        {"role": "user", "content": "How tall is it?\n\n[Event] The door was opened."},
        {"role": "assistant", "content": "I cannot know."},
        {"role": "user", "content": "It has 24 floors."},
    ]


@pytest.mark.django_db(transaction=True)
async def test_question_without_an_answer_is_asked_together_with_the_next(
    server: ModelServer, talk: MakeLlmTalk
) -> None:
    server.plan(says("Both."))

    await talk("And now?", history=[HistoryMessage("user", "First?")]).run()

    assert server.requests[0].messages[1:] == [{"role": "user", "content": "First?\n\nAnd now?"}]


async def test_suggested_followups_come_from_a_second_request(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure
) -> None:
    configure(SUGGESTIONS=True)
    server.plan(
        says("It is blue."),
        says("<think>Hm.</think>Here are some:\n1. Why is it blue?\n- **At night?**\n* On Mars?\n4) More?"),
    )

    turn = await talk("What colour is the sky?").run()

    [card] = turn.of("chat.followups")
    assert card["data"]["items"] == ["Why is it blue?", "At night?", "On Mars?"]
    second = server.requests[1]
    assert "tools" not in second.body
    assert "It is blue." in second.messages[1]["content"]
    rows = turn.usage["data"]["breakdown"]
    assert [row["purpose"] for row in rows] == ["answer", "followups"]


async def test_turn_goes_well_where_suggestions_fail(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure
) -> None:
    configure(SUGGESTIONS=True, SUGGESTIONS_TIMEOUT_SECONDS=0.2)

    async def broken(exchange: Exchange) -> None:
        await exchange.delta(content="Why is")
        exchange.cut()

    async def silent(exchange: Exchange) -> None:
        await exchange.open()
        await exchange.until_gone()

    for handler in (broken, silent):
        server.plan(says("It is blue."), handler)
        turn = await talk().run()
        assert turn.of("chat.error") == []
        assert turn.of("chat.followups") == []
        assert turn.text("answer").endswith("It is blue.")


async def test_followup_that_comes_while_tools_run_is_seen_by_the_model(
    server: ModelServer, talk: MakeLlmTalk
) -> None:
    server.plan(calls(("calculate", {"expression": "6*7"})), says("42, in French: quarante-deux."))

    turn = talk("What is 6*7?", followups=[TurnMessage("In French, please.", "turn-2")])
    await turn.run()

    assert server.requests[1].messages[-1] == {"role": "user", "content": "In French, please."}


async def test_answer_that_reached_the_limit_says_so(server: ModelServer, talk: MakeLlmTalk) -> None:
    server.plan(says("It begins with", finish="length"))

    turn = await talk().run()

    assert turn.of("chat.error") == []
    [end] = [step for step in turn.of("chat.step") if step["event"]["status"] == "completed"]
    assert "cut off" in end["event"]["markdown"]
    assert end["data"]["finish_reason"] == "length"


async def test_bundle_that_is_not_set_up_says_what_to_set(talk: MakeLlmTalk, configure: Configure) -> None:
    configure(BASE_URL="")

    turn = await talk().run()

    assert turn.error["error_type"] == "config_missing"
    assert "LLM_BASE_URL" in turn.error["error"]


async def test_one_client_serves_many_turns_on_one_connection(server: ModelServer, talk: MakeLlmTalk) -> None:
    server.plan(says("Yes."))

    for _ in range(3):
        await talk().run()

    assert len({request.peer for request in server.requests}) == 1


async def test_content_in_parts_is_read(server: ModelServer, talk: MakeLlmTalk) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.delta(content=[{"type": "text", "text": "Bl"}, {"type": "text", "text": "ue."}])
        await exchange.delta("stop")
        await exchange.done()

    server.plan(handler)

    assert (await talk().run()).text() == "Blue."


async def test_payload_is_sent_along(server: ModelServer, talk: MakeLlmTalk) -> None:
    server.plan(says("Two."))
    events: list[dict[str, Any]] = [{"type": "event.user.prompt"}, {"type": "door.opened", "by": "Ada"}]

    await talk("How many?", payload={"boxes": 2}, external_events=events).run()

    content = server.requests[0].messages[-1]["content"]
    assert '{"boxes": 2}' in content
    assert '"by": "Ada"' in content
    assert "event.user.prompt" not in content
