"""Tools: how they are made, how a model calls them, and what their steps say."""

import asyncio
import json
import time
from collections.abc import Callable
from datetime import date
from typing import Annotated, Any, Literal

import msgspec
import pytest
from asgiref.sync import ThreadSensitiveContext
from django.core.exceptions import ImproperlyConfigured
from django.db import connection

from comm.bundles import TurnContext
from comm.bundles.llm.tools import ToolError, configured_tools, tool
from tests.comm.bundles.llm.conversing import LlmTalk
from tests.comm.bundles.llm.modelserver import Exchange, ModelServer, calls, says
from tests.waiting import aeventually

MakeLlmTalk = Callable[..., LlmTalk]
Configure = Callable[..., None]


class Place(msgspec.Struct):
    """Where it is."""

    city: str
    country: str = ""


@tool
async def weather(
    turn: TurnContext,
    place: Place,
    day: Annotated[date | None, "The day; today when left out."] = None,
    unit: Literal["C", "F"] = "C",
) -> dict[str, Any]:
    """Tell the weather of a place."""
    return {"asked_by": turn.user_id, "city": place.city, "day": day, "unit": unit}


@tool(name="stored_rows")
def count_rows() -> int:
    """Count something in the database."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 40 + 2")
        return int(cursor.fetchone()[0])


@tool
async def meet(name: str) -> str:
    """Wait for the other call: alone, it never returns."""
    meetings.append(name)
    while len(meetings) < 2:
        await asyncio.sleep(0.005)
    return f"{name} was here"


@tool
async def fail_with_secret() -> str:
    """Fail."""
    raise RuntimeError("password is hunter2")


@tool
async def refuse() -> str:
    """Refuse."""
    raise ToolError("not on Sundays")


@tool
def sleep_long() -> str:
    """Hold up the thread for longer than a tool may."""
    time.sleep(0.6)
    woken.append("sleep_long")
    return "late"


@tool
async def much() -> str:
    """Return much."""
    return "row\n" * 10_000


meetings: list[str] = []
woken: list[str] = []


def result_of(exchange: Exchange) -> list[str]:
    """The tool results that a request carries."""
    return [message["content"] for message in exchange.messages if message["role"] == "tool"]


def test_schema_is_made_of_signature_and_docstring() -> None:
    definition = weather.definition["function"]

    assert definition["name"] == "weather"
    assert definition["description"] == "Tell the weather of a place."
    parameters = definition["parameters"]
    assert list(parameters["properties"]) == ["place", "day", "unit"]
    assert parameters["required"] == ["place"]
    assert parameters["properties"]["day"]["description"] == "The day; today when left out."
    assert parameters["properties"]["unit"]["enum"] == ["C", "F"]
    assert parameters["$defs"]["Place"]["required"] == ["city"]
    json.dumps(definition)


async def test_call_is_carried_out_and_its_result_goes_back(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure
) -> None:
    configure(TOOLS=[f"{__name__}.weather"])
    arguments = {"place": {"city": "Oslo"}, "day": "2026-05-17"}
    server.plan(calls(("weather", arguments), text="Let me look."), says("It is fine."))

    turn = await talk("Weather?").run()

    asked = server.requests[1].messages
    assert asked[-2]["role"] == "assistant"
    assert asked[-2]["content"] == "Let me look."
    [call] = asked[-2]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == arguments
    assert asked[-1]["tool_call_id"] == call["id"] == "call-0"
    result = {"asked_by": "ada", "city": "Oslo", "day": "2026-05-17", "unit": "C"}
    assert json.loads(asked[-1]["content"]) == result
    assert turn.text() == "Let me look.\n\nIt is fine."
    assert turn.states("tool.1") == ["started", "completed"]
    data = turn.step_data("tool.1")
    assert (data["tool"], data["arguments"]) == ("weather", arguments)
    assert "Oslo" in data["result"]
    [row] = turn.usage["data"]["breakdown"]
    assert (row["requests"], row["input_tokens"], row["output_tokens"]) == (2, 220, 58)


async def test_calls_of_one_round_run_side_by_side(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure
) -> None:
    configure(TOOLS=[f"{__name__}.meet"], TOOL_TIMEOUT_SECONDS=5.0)
    meetings.clear()
    server.plan(calls(("meet", {"name": "Ada"}), ("meet", {"name": "Bob"})), says("They met."))

    turn = await talk().run()

    assert result_of(server.requests[1]) == ["Ada was here", "Bob was here"]
    assert turn.states("tool.1") == turn.states("tool.2") == ["started", "completed"]


async def test_rounds_follow_each_other_up_to_the_limit(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure
) -> None:
    configure(TOOL_ROUNDS=2)
    again = calls(("calculate", {"expression": "1+1"}))
    server.plan(again, again, says("Enough: 2."))

    turn = await talk().run()

    assert [request.body["tool_choice"] for request in server.requests] == ["auto", "auto", "none"]
    assert turn.text() == "Enough: 2."
    assert turn.states("tool.2") == ["started", "completed"]


async def test_model_that_calls_tools_for_ever_is_ended(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure
) -> None:
    configure(TOOL_ROUNDS=2)
    server.plan(calls(("calculate", {"expression": "1+1"})))

    turn = await talk().run()

    assert len(server.requests) == 3
    assert turn.error["reason"] == "tool_rounds"


WRONG_CALLS: list[tuple[tuple[str, Any], str]] = [
    (("calculate", {}), "the arguments do not fit: Object missing required field `expression`"),
    (("calculate", "{not json"), "the arguments do not fit"),
    (("calculate", {"expression": "1/0"}), "division by zero"),
    (("no_such_tool", {}), "there is no tool 'no_such_tool'; there are calculate"),
    (("fail_with_secret", {}), "the tool failed"),
    (("refuse", {}), "not on Sundays"),
    (("sleep_long", {}), "longer than 0.2 seconds"),
]


@pytest.mark.parametrize(("call", "problem"), WRONG_CALLS)
async def test_call_that_fails_is_told_to_the_model_and_shown(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure, call: tuple[str, Any], problem: str
) -> None:
    own = [f"{__name__}.{name}" for name in ("fail_with_secret", "refuse", "sleep_long")]
    configure(TOOLS=["comm.bundles.llm.toolkit", *own], TOOL_TIMEOUT_SECONDS=0.2)
    server.plan(calls(call), says("It did not work."))

    turn = await talk().run()

    assert turn.of("chat.error") == []
    [result] = result_of(server.requests[1])
    assert result.startswith("Error: ")
    assert problem in result
    assert "hunter2" not in str(turn.envelopes) + result
    assert turn.states("tool.1") == ["started", "error"]
    # What the model wrote may be no JSON; the next request must be one that a server can read.
    json.loads(server.requests[1].messages[-2]["tool_calls"][0]["function"]["arguments"])


async def test_long_result_is_cut(server: ModelServer, talk: MakeLlmTalk, configure: Configure) -> None:
    configure(TOOLS=[f"{__name__}.much"])
    server.plan(calls(("much", {})), says("Much."))

    turn = await talk().run()

    [result] = result_of(server.requests[1])
    assert len(result) < 12_100
    assert "first of 40,000 characters" in result
    assert len(turn.step_data("tool.1")["result"]) <= 300


@pytest.mark.django_db(transaction=True)
async def test_synchronous_tool_may_use_the_database(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure
) -> None:
    configure(TOOLS=[f"{__name__}.count_rows"])
    server.plan(calls(("stored_rows", "")), says("42."))

    await talk().run()

    assert result_of(server.requests[1]) == ["42"]


async def test_synchronous_tool_that_hangs_does_not_hold_up_the_end_of_the_turn(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure
) -> None:
    configure(TOOLS=[f"{__name__}.sleep_long"], TOOL_TIMEOUT_SECONDS=0.1)
    server.plan(calls(("sleep_long", {})), says("It sleeps."))
    woken.clear()

    async with ThreadSensitiveContext():
        turn = await talk().run()

    assert woken == []
    assert turn.text() == "It sleeps."
    await aeventually(lambda: woken)


async def test_calls_without_index_or_with_one_index_for_all_are_told_apart(
    server: ModelServer, talk: MakeLlmTalk
) -> None:
    async def handler(exchange: Exchange) -> None:
        for place, index in enumerate((0, 0, None, None)):
            function = {"name": "calculate", "arguments": json.dumps({"expression": f"{place}+1"})}
            call = {"id": f"id-{place}", "function": function, **({} if index is None else {"index": index})}
            await exchange.delta(tool_calls=[call])
        await exchange.delta("tool_calls")
        await exchange.done()

    server.plan(handler, says("Done."))

    await talk().run()

    assert result_of(server.requests[1]) == ["1", "2", "3", "4"]


async def test_reasoning_is_handed_back_with_the_calls_where_the_server_names_it_so(
    server: ModelServer, talk: MakeLlmTalk
) -> None:
    async def handler(exchange: Exchange) -> None:
        await exchange.delta(reasoning_content="I must compute.")
        await exchange.call(0, "calculate", '{"expression": "2**10"}')
        await exchange.delta("tool_calls")
        await exchange.done()

    server.plan(handler, says("1024."))

    await talk().run()

    assert server.requests[1].messages[-2]["reasoning_content"] == "I must compute."
    assert result_of(server.requests[1]) == ["1024"]


async def test_current_time_is_told_in_the_users_zone(server: ModelServer, talk: MakeLlmTalk) -> None:
    wanted = [{}, {"timezone": "Europe/Rome"}, {"timezone": "Mars/Olympus"}]
    server.plan(calls(*[("current_time", arguments) for arguments in wanted]), says("Late."))

    await talk().run()

    tokyo, rome, mars = result_of(server.requests[1])
    assert "+09:00 (JST), ISO week" in tokyo
    assert "(Europe/Rome)" in rome
    assert mars == "Error: there is no time zone 'Mars/Olympus'; names are like Europe/Rome"


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        (["no.such.module"], "No module named"),
        (["comm.bundles.llm.conf"], "where there is no tool"),
        (["comm.bundles.llm.toolkit", f"{__name__}.clashing"], "two tools named 'calculate'"),
    ],
)
def test_wrong_tools_are_told_at_start(settings: Any, paths: list[str], problem: str) -> None:
    settings.LLM = {"TOOLS": paths}

    with pytest.raises(ImproperlyConfigured, match=problem):
        configured_tools()


@tool(name="calculate")
async def clashing() -> str:
    """Have the name of another tool."""
    return ""
