"""Sinks: who is handed recorded events, and that none holds up or breaks a turn."""

import asyncio
import threading
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from comm import ChatCommunicator
from tests.comm.speech import titles, types
from tests.waiting import aeventually


async def test_a_sink_gets_the_batch_and_what_it_took_is_forgotten(comm: ChatCommunicator) -> None:
    batches: list[list[dict[str, Any]]] = []

    async def sink(
        batch: list[dict[str, Any]], *, comm: ChatCommunicator, filter: Any = None
    ) -> dict[str, int]:
        await asyncio.sleep(0)
        batches.append(batch)
        return {"accepted": len(batch)}

    comm.record()
    comm.set_event_sink(sink)
    await comm.start()
    await comm.step("One")
    result = await comm.send_recorded_events("chat.step")
    assert result == {"ok": True, "sent": 1, "skipped": 0, "disabled": False, "sink_result": {"accepted": 1}}
    assert [item["type"] for item in batches[0]] == ["chat.step"]
    assert types(comm.export_recorded_events()) == ["chat.start"]


async def test_without_a_sink_sending_is_disabled_and_keeps_the_events(comm: ChatCommunicator) -> None:
    comm.record()
    await comm.start()
    result = await comm.send_recorded_events()
    assert (result["ok"], result["sent"], result["disabled"]) == (True, 0, True)
    assert types(comm.export_recorded_events()) == ["chat.start"]


async def test_a_sink_that_fails_or_takes_a_part_keeps_the_events(comm: ChatCommunicator) -> None:
    def failing(batch: list[dict[str, Any]], **more: Any) -> None:
        raise OSError("no network")

    comm.record()
    await comm.start()
    await comm.step("One")
    result = await comm.send_recorded_events(sink=failing)
    assert (result["ok"], result["error"]) == (False, "no network")
    result = await comm.send_recorded_events(sink=lambda batch, **more: {"sent": 1})
    assert (result["sent"], result["skipped"]) == (1, 1)
    assert len(comm.export_recorded_events()) == 2
    result = await comm.send_recorded_events(sink=lambda batch, **more: None, clear_on_success=False)
    assert result["sent"] == len(comm.export_recorded_events()) == 2


async def test_what_is_said_while_a_sink_works_is_not_forgotten_with_the_batch(
    comm: ChatCommunicator,
) -> None:
    async def sink(batch: list[dict[str, Any]], **more: Any) -> None:
        await comm.step("Meanwhile")

    comm.record()
    await comm.start()
    await comm.send_recorded_events(sink=sink)
    assert titles(comm.export_recorded_events()) == ["Meanwhile"]


async def test_a_block_may_send_at_its_end_through_a_sink_of_its_own(comm: ChatCommunicator) -> None:
    seen: list[str] = []

    def sink(batch: list[dict[str, Any]], **more: Any) -> None:
        seen.extend(item["type"] for item in batch)

    async with comm.recording("chat.step", sink=sink, send_on_exit=True) as recording:
        await comm.start()
        await comm.step("One")
    assert recording.result is not None
    assert recording.result["sent"] == 1
    assert seen == ["chat.step"]
    assert (await comm.send_recorded_events())["disabled"] is True


async def test_a_sink_that_is_no_callable_is_refused(comm: ChatCommunicator) -> None:
    with pytest.raises(TypeError, match="an event sink is a callable or None"):
        comm.set_event_sink("https://collector")  # type: ignore[arg-type]


async def test_a_filter_that_fails_at_sending_is_told_and_raises_nothing(comm: ChatCommunicator) -> None:
    comm.record()
    await comm.start()
    result = await comm.send_recorded_events(lambda *_: 1 / 0, sink=lambda batch, **more: None)
    assert (result["ok"], result["error"]) == (False, "division by zero")
    assert comm.recording_config()["sink_failures"] == 1
    assert len(comm.export_recorded_events()) == 1


async def test_a_sink_that_never_answers_is_given_up(comm: ChatCommunicator, settings: Any) -> None:
    settings.COMM = {**settings.COMM, "EVENT_SINK_SECONDS": 0.1}
    cancelled = asyncio.Event()

    async def endless(batch: list[dict[str, Any]], **more: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    comm.record()
    await comm.start()
    result = await comm.send_recorded_events(sink=endless)
    assert (result["ok"], result["error"]) == (False, "the event sink did not answer in 0.1 s")
    assert cancelled.is_set()
    assert types(comm.export_recorded_events()) == ["chat.start"]


async def test_a_synchronous_sink_that_hangs_costs_one_thread_and_blocks_no_loop(
    comm: ChatCommunicator, settings: Any
) -> None:
    settings.COMM = {**settings.COMM, "EVENT_SINK_SECONDS": 0.1}
    calls: list[int] = []
    go_on, gone_on = threading.Event(), threading.Event()

    def hanging(batch: list[dict[str, Any]], **more: Any) -> None:
        calls.append(threading.get_ident())
        assert go_on.wait(30)
        gone_on.set()

    comm.record()
    await comm.start()
    try:
        sending = asyncio.create_task(comm.send_recorded_events(sink=hanging))
        # The loop is free while the sink hangs: this goes out before the sink is given up.
        assert await comm.step("Meanwhile") is not None
        assert not sending.done()
        assert (await sending)["error"] == "the event sink did not answer in 0.1 s"
        for _ in range(5):
            result = await comm.send_recorded_events(sink=hanging)
            assert result["error"] == "the event sink has not come back from an earlier batch"
        assert len(calls) == 1
        assert threading.get_ident() not in calls
        other = await comm.send_recorded_events(sink=lambda batch, **more: None, clear_on_success=False)
        assert other["sent"] == 2
    finally:
        go_on.set()
    assert await asyncio.to_thread(gone_on.wait, 30)
    await aeventually(lambda: _sends(comm, hanging), what="the sink's return")


async def _sends(comm: ChatCommunicator, sink: Any) -> bool:
    return (await comm.send_recorded_events(sink=sink))["ok"]


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration(), KeyboardInterrupt()])
async def test_a_synchronous_sink_may_raise_what_it_likes(
    comm: ChatCommunicator, error: BaseException
) -> None:
    def raising(batch: list[dict[str, Any]], **more: Any) -> None:
        raise error

    comm.record()
    await comm.start()
    result = await comm.send_recorded_events(sink=raising)
    assert (result["ok"], result["skipped"]) == (False, 1)


async def test_an_event_is_in_one_hand_at_a_time(comm: ChatCommunicator) -> None:
    batches: list[list[str]] = []
    go_on = asyncio.Event()

    async def slow(batch: list[dict[str, Any]], **more: Any) -> None:
        batches.append(titles(batch))
        await go_on.wait()

    comm.record("chat.step")
    comm.set_event_sink(slow)
    await comm.step("One")
    first = asyncio.create_task(comm.send_recorded_events())
    await aeventually(lambda: batches)
    await comm.step("Two")
    second = asyncio.create_task(comm.send_recorded_events())
    await aeventually(lambda: len(batches) == 2)
    go_on.set()
    assert [(await task)["sent"] for task in (first, second)] == [1, 1]
    assert batches == [["One"], ["Two"]]
    assert comm.export_recorded_events() == []


async def test_a_cancelled_hand_over_leaves_the_events_for_the_next(comm: ChatCommunicator) -> None:
    begun = asyncio.Event()

    async def endless(batch: list[dict[str, Any]], **more: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    comm.record()
    await comm.start()
    sending = asyncio.create_task(comm.send_recorded_events(sink=endless))
    await begun.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert (await comm.send_recorded_events(sink=lambda batch, **more: None))["sent"] == 1


async def test_what_the_communicator_s_sink_took_from_a_block_it_does_not_get_again(
    comm: ChatCommunicator,
) -> None:
    taken: list[str] = []
    comm.set_event_sink(lambda batch, **more: taken.extend(titles(batch)))
    comm.record("chat.step")
    async with comm.recording("chat.step", send_on_exit=True):
        await comm.step("Inside")
    await comm.step("Outside")
    await comm.send_recorded_events()
    assert taken == ["Inside", "Outside"]


async def test_a_block_with_a_sink_of_its_own_takes_nothing_from_the_others(comm: ChatCommunicator) -> None:
    own: list[str] = []
    whole = comm.record("chat.step")
    await comm.step("Before")
    async with comm.recording(
        "chat.step", sink=lambda batch, **more: own.extend(titles(batch)), send_on_exit=True
    ) as block:
        await comm.step("Inside")
    assert own == ["Inside"]
    assert (titles(whole.export()), block.export()) == (["Before", "Inside"], [])


async def test_a_block_that_fails_still_sends_what_it_has(comm: ChatCommunicator) -> None:
    own: list[str] = []
    scope = comm.recording(sink=lambda batch, **more: own.extend(types(batch)), send_on_exit=True)

    async def fail() -> None:
        async with scope:
            await comm.start()
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert own == ["chat.start"]
    assert scope.result is not None
    assert scope.result["ok"]


async def test_on_the_event_loop_a_block_that_sends_says_to_use_async_with(comm: ChatCommunicator) -> None:
    with pytest.raises(RuntimeError, match="await the async method"):
        comm.recording(send_on_exit=True).__enter__()
    assert comm.recording_config()["enabled"] is False
    comm.record()
    with pytest.raises(RuntimeError, match="await the async method"):
        comm.send_recorded_events_sync()


@pytest.mark.django_db(transaction=True)
async def test_synchronous_code_records_and_sends_too(comm: ChatCommunicator) -> None:
    taken: list[str] = []

    async def sink(batch: list[dict[str, Any]], **more: Any) -> None:
        taken.extend(titles(batch))

    def work() -> None:
        comm.set_event_sink(sink)
        with comm.recording("chat.step", send_on_exit=True) as block:
            comm.step_sync("Inside")
        assert block.result is not None
        assert block.result["sent"] == 1
        handle = comm.record("chat.step")
        comm.step_sync("Handle")
        assert handle.send_sync()["sent"] == 1
        comm.step_sync("All")
        assert comm.send_recorded_events_sync("chat.step")["sent"] == 1

    await sync_to_async(work)()
    assert taken == ["Inside", "Handle", "All"]


# --- live sinks -------------------------------------------------------------------------------------


class Taking:
    """An async sink that keeps what it takes."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.calls = 0

    async def __call__(self, batch: list[dict[str, Any]], **more: Any) -> None:
        self.calls += 1
        self.taken += titles(batch)


async def test_a_live_sink_is_handed_events_as_they_are_recorded(comm: ChatCommunicator) -> None:
    sink = Taking()
    comm.record("chat.step")
    comm.set_event_sink(sink, live=True)
    await comm.step("One")
    await aeventually(lambda: sink.taken == ["One"])
    for number in range(50):
        await comm.step(f"Step {number}")
    await aeventually(lambda: len(sink.taken) == 51)
    assert sink.taken == ["One", *(f"Step {number}" for number in range(50))]
    assert sink.calls < 10
    assert comm.export_recorded_events() == []
    await comm.aclose()


async def test_a_live_sink_gets_the_last_events_when_the_turn_ends(comm: ChatCommunicator) -> None:
    sink = Taking()
    comm.record("chat.step")
    comm.set_event_sink(sink, live=True)
    for number in range(5):
        await comm.step(f"Step {number}")
    await comm.aclose()
    await comm.aclose()
    assert sink.taken == [f"Step {number}" for number in range(5)]
    await comm.step("After the end")
    assert titles(comm.export_recorded_events()) == ["After the end"]


async def test_a_live_sink_that_fails_is_tried_again_and_the_turn_goes_on(comm: ChatCommunicator) -> None:
    taken: list[str] = []

    def unsteady(batch: list[dict[str, Any]], **more: Any) -> None:
        if comm.recording_config()["sink_failures"] == 0:
            raise OSError("not yet")
        taken.extend(titles(batch))

    comm.record("chat.step")
    comm.set_event_sink(unsteady, live=True)
    await comm.step("One")
    await aeventually(lambda: comm.recording_config()["sink_failures"])
    assert await comm.step("Two") is not None
    await aeventually(lambda: taken == ["One", "Two"])
    await comm.aclose()


async def test_a_live_sink_that_hangs_holds_up_neither_the_turn_nor_its_end(
    comm: ChatCommunicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comm.recording.sinks.CLOSE_SECONDS", 0.2)
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless(batch: list[dict[str, Any]], **more: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    comm.record("chat.step", max_events=10)
    comm.set_event_sink(endless, live=True)
    await comm.step("One")
    await begun.wait()
    for number in range(100):
        await comm.step(f"Step {number}")
    assert comm.recording_config()["recorded"] == 10
    async with asyncio.timeout(5):
        await comm.aclose()
    assert ended.is_set()


async def test_no_live_sink_is_handed_what_is_a_block_s_own(comm: ChatCommunicator) -> None:
    live, own = Taking(), Taking()
    comm.record("chat.step", scope="all")
    comm.set_event_sink(live, live=True)
    async with comm.recording({"include": {"type": "chat.*"}}, sink=own, send_on_exit=True):
        await comm.start()
        await comm.step("Inside")
        await aeventually(lambda: live.taken == ["Inside"])
    assert own.taken == ["", "Inside"]
    await comm.aclose()
    assert live.taken == ["Inside"]


async def test_a_sink_that_is_taken_away_gets_nothing_more(comm: ChatCommunicator) -> None:
    first, second = Taking(), Taking()
    comm.record("chat.step")
    comm.set_event_sink(first, live=True)
    await comm.step("One")
    await aeventually(lambda: first.taken)
    comm.set_event_sink(None)
    await comm.step("Two")
    comm.set_event_sink(second, live=True)
    await comm.step("Three")
    await aeventually(lambda: second.taken == ["Two", "Three"])
    await comm.aclose()
    assert first.taken == ["One"]
