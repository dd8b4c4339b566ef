"""Stop and steer: the request upstream ends with the turn, at whatever point it is."""

import asyncio
from collections.abc import Callable

import pytest

from comm import ChatCommunicator, TurnLost
from comm.bundles import TurnContext, TurnMessage
from comm.bundles.llm.bundle import LlmBundle
from comm.bundles.llm.tools import tool
from tests.comm.bundles.conftest import SCOPE
from tests.comm.bundles.llm.conversing import LlmTalk
from tests.comm.bundles.llm.modelserver import Exchange, ModelServer, calls, refuses, says
from tests.waiting import aeventually

MakeLlmTalk = Callable[..., LlmTalk]
Configure = Callable[..., None]


async def silent(exchange: Exchange) -> None:
    """Take the request and say nothing."""
    await exchange.until_gone()


async def hesitant(exchange: Exchange) -> None:
    """Begin to answer and stop speaking."""
    await exchange.delta(content="The answer")
    await exchange.until_gone()


@pytest.mark.parametrize("steered", [False, True])
async def test_stop_closes_the_request_and_keeps_the_partial_answer(
    server: ModelServer, talk: MakeLlmTalk, steered: bool
) -> None:
    server.plan(hesitant)
    turn = talk()
    running = asyncio.create_task(turn.run())
    await turn.until("chat.delta")

    turn.turn.ring_stop(steered=steered)
    await asyncio.wait_for(running, 2)

    await asyncio.wait_for(server.requests[0].gone.wait(), 5)
    assert turn.of("chat.error") == turn.of("chat.complete") == []
    assert turn.turn.communicator.final_answer == "The answer"
    assert turn.states("model") == ["started", "running", "skipped"]
    assert turn.usage["data"]["breakdown"][0]["estimated"] is True


async def test_stop_before_the_first_token_closes_the_request(server: ModelServer, talk: MakeLlmTalk) -> None:
    server.plan(silent)
    turn = talk()
    running = asyncio.create_task(turn.run())
    await turn.until("chat.step")
    await aeventually(lambda: server.requests)

    turn.turn.ring_stop(steered=False)
    await asyncio.wait_for(running, 2)

    await asyncio.wait_for(server.requests[0].gone.wait(), 5)
    assert turn.of("accounting.usage") == []


async def test_stop_ends_the_wait_for_another_try(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure
) -> None:
    configure(RETRIES=2)
    server.plan(refuses(503, None, Retry_After="8"))
    turn = talk()
    running = asyncio.create_task(turn.run())
    await turn.until("chat.step", 2)

    turn.turn.ring_stop(steered=False)
    await asyncio.wait_for(running, 2)

    assert turn.of("chat.error") == []


cancelled: list[str] = []


@tool
async def wait_for_ever() -> str:
    """Wait."""
    try:
        await asyncio.Event().wait()
    finally:
        cancelled.append("wait_for_ever")
    return "never"


async def test_stop_cancels_the_tools_that_run(
    server: ModelServer, talk: MakeLlmTalk, configure: Configure
) -> None:
    configure(TOOLS=[f"{__name__}.wait_for_ever"])
    cancelled.clear()
    server.plan(calls(("wait_for_ever", {}), ("wait_for_ever", {})))
    turn = talk()
    running = asyncio.create_task(turn.run())
    await turn.until("chat.step", 3)

    turn.turn.ring_stop(steered=False)
    await asyncio.wait_for(running, 2)

    assert cancelled == ["wait_for_ever"] * 2
    assert turn.states("tool.1") == turn.states("tool.2") == ["started", "skipped"]


async def test_turn_that_is_lost_leaves_no_tool_running(
    server: ModelServer, bundle: LlmBundle, configure: Configure, make_comm: Callable[..., ChatCommunicator]
) -> None:
    configure(TOOLS=[f"{__name__}.wait_for_ever", "comm.bundles.llm.toolkit"])
    cancelled.clear()
    server.plan(calls(("wait_for_ever", {}), ("calculate", {"expression": "1+1"})))

    def guard() -> None:
        if "tool.2" in [step["step"] for step in comm.steps]:
            raise TurnLost("another process has it")

    async def absorb() -> TurnMessage | None:
        return None

    comm = make_comm(guard=guard)
    with pytest.raises(TurnLost):
        async with asyncio.timeout(5):
            await bundle.run(TurnContext(SCOPE, TurnMessage("Hello?", "turn-1"), [], comm, absorb))

    assert cancelled == ["wait_for_ever"]


async def test_cancelled_turn_closes_the_request(server: ModelServer, talk: MakeLlmTalk) -> None:
    server.plan(hesitant)
    turn = talk()
    running = asyncio.create_task(turn.run())
    await turn.until("chat.delta")

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    await asyncio.wait_for(server.requests[0].gone.wait(), 5)


async def test_next_turn_is_answered_after_a_stop(server: ModelServer, talk: MakeLlmTalk) -> None:
    server.plan(hesitant, says("As you like."))
    turn = talk()
    running = asyncio.create_task(turn.run())
    await turn.until("chat.delta")
    turn.turn.ring_stop(steered=True)
    await running

    assert (await talk("Differently").run()).text().endswith("As you like.")


async def test_closed_bundle_has_closed_its_connections(
    server: ModelServer, talk: MakeLlmTalk, bundle: LlmBundle
) -> None:
    gone = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await says("Yes.")(exchange)
        await exchange.until_gone()
        gone.set()

    server.plan(handler)
    await talk().run()
    assert not gone.is_set()

    await bundle.aclose()
    await bundle.aclose()

    await asyncio.wait_for(gone.wait(), 5)
