"""Recordings of a communicator: what is kept, in which order and form, and several at once."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from asgiref.sync import sync_to_async

from comm import ChatCommunicator, Envelope, EnvelopeInvalid, IEventFilter, TurnLost
from comm.composer import Composer
from comm.progress import Progress
from tests.comm.speech import EVERYTHING, say_everything, titles, types

Maker = Callable[..., ChatCommunicator]


class Blocking(IEventFilter):
    def __init__(self, type: str) -> None:
        self.type = type

    def allow_event(self, user_type: str, user_id: str, event: Any) -> bool:
        return bool(event.type != self.type)


async def test_nothing_is_recorded_until_asked(comm: ChatCommunicator) -> None:
    await comm.start()
    assert comm.export_recorded_events() == []
    assert comm.recording_config()["enabled"] is False


async def test_everything_is_recorded_without_a_selector_and_in_order(comm: ChatCommunicator) -> None:
    comm.record()
    await say_everything(comm)
    items = comm.export_recorded_events()
    assert [item["type"] for item in items] == EVERYTHING
    positions = [int(item["position"].split("-")[1]) for item in items]
    assert positions == sorted(positions)
    first = items[0]
    assert first["socket_event"] == "chat_start"
    assert first["conversation"]["turn_id"] == "turn-1"
    assert first["service"]["tenant"] == "acme"
    assert [(item["target_sid"], item["broadcast"]) for item in items][4] == ("tab-1", False)
    assert len({item["record_id"] for item in items}) == 6


async def test_what_a_filter_blocks_is_not_there_and_what_it_changes_is_there_changed(
    make_comm: Maker,
) -> None:
    class Changing(IEventFilter):
        def allow_event(self, user_type: str, user_id: str, event: Any) -> Any:
            if event.type == "chat.start":
                return False
            changed = msgspec.structs.replace(event.envelope.event, title="Changed")
            return msgspec.structs.replace(event.envelope, event=changed)

    comm = make_comm(event_filter=Changing())
    comm.record()
    await comm.start()
    await comm.step("Original")
    (item,) = comm.export_recorded_events()
    assert (item["type"], item["event"]["title"]) == ("chat.step", "Changed")


async def test_what_was_not_published_is_not_recorded(make_comm: Maker) -> None:
    lost = False

    def guard() -> None:
        if lost:
            raise TurnLost("gone")

    comm = make_comm(guard=guard)
    comm.record()
    await comm.step("One")
    with pytest.raises(EnvelopeInvalid):
        await comm.step("Two", data={"bad": float("nan")})
    lost = True
    with pytest.raises(TurnLost):
        await comm.step("Three")
    assert titles(comm.export_recorded_events()) == ["One"]


@pytest.mark.django_db(transaction=True)
async def test_what_is_emitted_from_synchronous_code_is_recorded(comm: ChatCommunicator) -> None:
    comm.record("chat.step")
    await sync_to_async(comm.step_sync)("From a thread")
    assert titles(comm.export_recorded_events()) == ["From a thread"]


async def test_project_events_are_recorded(comm: ChatCommunicator) -> None:
    comm.record()
    await comm.project_event(type="deploy.done")
    (item,) = comm.export_recorded_events()
    assert (item["type"], item["position"], item["service"]["user"]) == ("deploy.done", None, "")


async def test_recordings_add_up_and_an_event_names_every_scope_that_wanted_it(
    comm: ChatCommunicator,
) -> None:
    comm.record("chat.step", scope={"owner": "workflow"})
    comm.record({"include": {"types": ["chat.*"]}}, scope="stats")
    await comm.start()
    await comm.step("One")
    start, step = comm.export_recorded_events()
    assert start["recording"]["scopes"] == ["stats"]
    assert step["recording"]["scopes"] == [{"owner": "workflow"}, "stats"]
    assert len(comm.recording_config()["scopes"]) == 2


async def test_replacing_begins_anew_and_stopping_keeps_what_there_is(comm: ChatCommunicator) -> None:
    comm.record("chat.start")
    await comm.start()
    comm.record("chat.step", mode="replace")
    await comm.step("One")
    comm.stop_recording()
    await comm.step("Two")
    assert titles(comm.export_recorded_events()) == ["One"]


async def test_a_block_records_for_its_length_and_brings_back_what_was(comm: ChatCommunicator) -> None:
    comm.record("chat.start")
    with comm.recording("chat.step"):
        await comm.step("Inside")
    await comm.step("Outside")
    await comm.start()
    assert types(comm.export_recorded_events()) == ["chat.step", "chat.start"]
    with pytest.raises(KeyError), comm.recording():
        raise KeyError
    await comm.step("After the error")
    assert types(comm.export_recorded_events()) == ["chat.step", "chat.start"]


async def test_each_recording_has_its_own_events_and_as_much_of_them_as_it_asked_for(
    comm: ChatCommunicator,
) -> None:
    plain = comm.record({"include": {"types": ["chat.step", "chat.delta"]}}, scope="telemetry")
    curious = comm.record(
        {"include": {"type": "chat.*"}, "privacy": {"include_data": True, "include_delta_text": True}}
    )
    await say_everything(comm)
    assert types(plain.export()) == ["chat.step", "chat.delta"]
    assert types(curious.export()) == ["chat.start", "chat.step", "chat.delta", "chat.complete"]
    assert curious.export("chat.delta")[0]["delta"]["text"] == "private text"
    assert curious.export("chat.step")[0]["data"]["query"] == "secret"
    step, delta = plain.export()
    assert (step["data"], step["privacy"]["contains_content"]) == ({}, False)
    assert "text" not in delta["delta"]
    assert (plain.recorded, curious.recorded, plain.active) == (2, 4, True)


async def test_a_filter_with_a_privacy_shows_no_more_than_that(comm: ChatCommunicator) -> None:
    comm.record({"privacy": {"include_data": True, "include_delta_text": True}})
    await say_everything(comm)
    modest = {"include": {"types": ["chat.step", "chat.delta"]}, "privacy": {"data_keys": ["rows"]}}
    step, delta = comm.export_recorded_events(modest)
    assert (step["data"], step["privacy"]["data_redacted"]) == ({"rows": 3}, True)
    assert delta["delta"] == {"marker": "answer", "index": 0, "completed": False, "text_length": 12}
    assert comm.export_recorded_events("chat.step")[0]["data"]["query"] == "secret"


async def test_one_recording_ends_and_forgets_without_the_others(comm: ChatCommunicator) -> None:
    first, second = comm.record("chat.step"), comm.record(["chat.step", "chat.start"])
    await comm.step("One")
    first.stop()
    await comm.step("Two")
    assert (titles(first.export()), titles(second.export())) == (["One"], ["One", "Two"])
    assert first.clear() == 1
    assert titles(comm.export_recorded_events()) == ["One", "Two"]
    assert second.clear() == 2
    assert comm.export_recorded_events() == []


async def test_each_recording_has_a_limit_of_its_own(comm: ChatCommunicator) -> None:
    short = comm.record("chat.step", max_events=1)
    long = comm.record({"include": {"type": "chat.*"}}, max_events=5)
    for number in range(3):
        await comm.step(f"Step {number}")
    assert titles(short.export()) == ["Step 2"]
    assert titles(long.export()) == ["Step 0", "Step 1", "Step 2"]
    assert (short.dropped, long.dropped, comm.recording_config()["dropped"]) == (2, 0, 0)
    long.stop()
    long.clear()
    assert titles(comm.export_recorded_events()) == ["Step 2"]


async def test_saying_the_same_again_is_the_same_recording(comm: ChatCommunicator) -> None:
    for _ in range(1000):
        comm.record("chat.step", scope="loop")
    await comm.step("One")
    assert len(comm.recording_config()["scopes"]) == 1
    assert comm.export_recorded_events()[0]["recording"]["scopes"] == ["loop"]
    comm.record("chat.step", scope="loop", max_events=7)
    assert comm.recording_config()["max_events"] == 7


async def test_blocks_may_overlap_and_each_ends_only_itself(comm: ChatCommunicator) -> None:
    first, second = comm.recording("chat.step"), comm.recording("chat.step")
    first.__enter__()
    await comm.step("One")
    second.__enter__()
    await comm.step("Both")
    first.__exit__(None, None, None)
    await comm.step("Two")
    second.__exit__(None, None, None)
    await comm.step("Neither")
    assert titles(first.export()) == ["One", "Both"]
    assert titles(second.export()) == ["Both", "Two"]
    assert comm.recording_config()["enabled"] is False


async def test_a_block_that_replaces_brings_back_what_it_replaced(comm: ChatCommunicator) -> None:
    outer = comm.record("chat.start")
    with comm.recording("chat.step", mode="replace") as inner:
        await comm.start()
        await comm.step("Inside")
        with pytest.raises(RuntimeError, match="at work already"):
            inner.__enter__()
    assert types(comm.export_recorded_events()) == ["chat.step"]
    assert (outer.active, inner.active) == (True, False)


async def test_messages_have_the_shape_of_the_relay_s(comm: ChatCommunicator) -> None:
    comm.record()
    position = await comm.step("Searched", target_sid="tab-1")
    (message,) = comm.export_recorded_events(form="messages")
    assert message == {
        "target_sid": "tab-1",
        "session_id": "session-1",
        "event": "chat_step",
        "data": message["data"],
        "timestamp": message["data"]["timestamp"],
        "position": str(position),
    }
    assert message["data"]["type"] == "chat.step"
    assert message["data"]["conversation"]["turn_id"] == "turn-1"
    with pytest.raises(ValueError, match="form: is 'rows'"):
        comm.export_recorded_events(form="rows")  # type: ignore[arg-type]


async def test_an_export_is_a_copy(comm: ChatCommunicator) -> None:
    comm.record()
    await comm.step("One")
    comm.export_recorded_events()[0]["event"]["title"] = "Changed"
    assert titles(comm.export_recorded_events()) == ["One"]


async def test_what_many_tasks_say_at_once_is_recorded_in_the_order_of_delivery(
    comm: ChatCommunicator,
) -> None:
    comm.record("chat.step")
    positions = await asyncio.gather(*(comm.step(f"Step {n}") for n in range(200)))
    recorded = [item["position"] for item in comm.export_recorded_events()]
    assert recorded == [str(position) for position in sorted(filter(None, positions))]


@pytest.mark.django_db(transaction=True)
async def test_threads_that_speak_and_read_at_once_lose_nothing(comm: ChatCommunicator) -> None:
    comm.record("chat.step", max_events=500)

    def speak() -> None:
        for number in range(25):
            comm.step_sync(f"Step {number}")
            comm.export_recorded_events()

    await asyncio.gather(*(sync_to_async(speak, thread_sensitive=False)() for _ in range(4)))
    assert len(comm.export_recorded_events()) == 100
    assert comm.recording_config()["dropped"] == 0


async def test_observers_hear_what_went_out_and_their_failures_stop_nothing(make_comm: Maker) -> None:
    heard: list[tuple[str, str | None, bool]] = []

    def broken(envelope: Envelope, target_sid: str | None, position: Any) -> None:
        raise RuntimeError("broken")

    def observe(envelope: Envelope, target_sid: str | None, position: Any) -> None:
        heard.append((envelope.type, target_sid, position is not None))

    comm = make_comm(observers=[broken, observe])
    await comm.start()
    await comm.step("One", target_sid="tab-1")
    assert heard == [("chat.start", None, True), ("chat.step", "tab-1", True)]


async def test_an_observer_hears_nothing_of_what_was_blocked_or_is_the_projects(make_comm: Maker) -> None:
    heard: list[str] = []
    comm = make_comm(
        observers=[lambda envelope, *_: heard.append(envelope.type)],
        event_filter=Blocking("chat.start"),
    )
    await comm.start()
    await comm.project_event(type="deploy.done")
    await comm.step("One")
    assert heard == ["chat.step"]


async def test_a_draft_of_another_composer_goes_out_as_if_said_here(make_comm: Maker) -> None:
    comm, elsewhere = make_comm(), make_comm()
    comm.record()
    draft = Composer(elsewhere.service, elsewhere.conversation, None, Progress()).complete(
        data={"final_answer": "42"}
    )
    sent = await comm.dispatch(draft)
    assert sent.envelope is not None
    assert (sent.position, comm.final_answer, comm.ended) == (comm.last_position, "42", "complete")
    assert types(comm.export_recorded_events()) == ["chat.complete"]
    assert await comm.dispatch(draft) == (None, None)
    assert types(comm.export_recorded_events()) == ["chat.complete"]


async def test_a_blocked_draft_is_nothing_but_a_blocked_end_is_an_end(make_comm: Maker) -> None:
    comm = make_comm(event_filter=Blocking("chat.complete"))
    draft = Composer(comm.service, comm.conversation, None, Progress()).complete()
    assert await comm.dispatch(draft) == (None, None)
    assert comm.ended == "complete"
