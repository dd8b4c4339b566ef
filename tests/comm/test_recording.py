"""The recording API of the communicator: what is kept, how much of it, and who is handed it."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from asgiref.sync import sync_to_async
from hypothesis import given
from hypothesis import strategies as st

from comm import ChatCommunicator, Envelope, EnvelopeInvalid, IEventFilter, TurnLost
from comm.recording import Selector
from comm.recording.store import MAX_BYTES

Maker = Callable[..., ChatCommunicator]


def types(comm: ChatCommunicator, filter: Any = None) -> list[str]:
    return [item["type"] for item in comm.export_recorded_events(filter)]


async def say_everything(comm: ChatCommunicator) -> None:
    await comm.start(message="hello")
    await comm.step(step="search", status="completed", title="Searched", data={"rows": 3, "query": "secret"})
    await comm.delta("answer", "private text")
    await comm.event(
        type="accounting.usage",
        data={"breakdown": [{"input_tokens": 3}], "cost_total_usd": 0.5, "model": "m"},
    )
    await comm.service_event(type="status.update", data={"value": "busy"}, target_sid="tab-1")
    await comm.complete()


EVERYTHING = ["chat.start", "chat.step", "chat.delta", "accounting.usage", "status.update", "chat.complete"]


# --- what is kept -------------------------------------------------------------------------------------------


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
    assert [item["event"]["title"] for item in comm.export_recorded_events()] == ["One"]


@pytest.mark.django_db(transaction=True)
async def test_what_is_emitted_from_synchronous_code_is_recorded(comm: ChatCommunicator) -> None:
    comm.record("chat.step")
    await sync_to_async(comm.step_sync)("From a thread")
    assert [item["event"]["title"] for item in comm.export_recorded_events()] == ["From a thread"]


async def test_project_events_are_recorded(comm: ChatCommunicator) -> None:
    comm.record()
    await comm.project_event(type="deploy.done")
    (item,) = comm.export_recorded_events()
    assert (item["type"], item["position"], item["service"]["user"]) == ("deploy.done", None, "")


# --- selectors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "kept"),
    [
        ("chat.step", ["chat.step"]),
        (["chat.start", "chat.complete"], ["chat.start", "chat.complete"]),
        ({"include": {"types": ["chat.*"]}}, ["chat.start", "chat.step", "chat.delta", "chat.complete"]),
        ({"include": {"socket_events": ["chat_step"]}}, ["chat.step", "accounting.usage"]),
        ({"include": {"routes": ["chat_service"]}}, ["status.update"]),
        ({"exclude": {"types": ["chat.delta"]}}, [t for t in EVERYTHING if t != "chat.delta"]),
        ({"include": {"types": ["chat.*"]}, "exclude": {"steps": ["turn"]}}, ["chat.step", "chat.delta"]),
        ({"include": {"broadcast": False}}, ["status.update"]),
        ({"include": {"type": "chat.step", "statuses": ["running"]}}, []),
        ({"any": [{"include": {"types": ["chat.start"]}}, "chat.complete"]}, ["chat.start", "chat.complete"]),
        ({"any": ["chat.start", "chat.step"], "exclude": {"type": "chat.start"}}, ["chat.step"]),
        (lambda user_type, user_id, event: event.type == "chat.delta", ["chat.delta"]),
    ],
)
async def test_selectors_choose_by_what_an_event_is(
    comm: ChatCommunicator, selector: Any, kept: list[str]
) -> None:
    comm.record(selector)
    await say_everything(comm)
    assert types(comm) == kept


@pytest.mark.parametrize(
    "selector", ["chat.step", {"include": {"socket_events": ["chat_step"], "step": "search"}}]
)
async def test_the_same_selectors_choose_among_what_was_recorded(
    comm: ChatCommunicator, selector: Any
) -> None:
    comm.record()
    await say_everything(comm)
    assert types(comm, selector) == ["chat.step"]
    assert comm.clear_recorded_events(selector) == 1
    assert types(comm) == [t for t in EVERYTHING if t != "chat.step"]
    assert comm.clear_recorded_events() == 5


@pytest.mark.parametrize(
    ("selector", "sentence"),
    [
        ({"includes": {}}, "selector: has no includes"),
        ({"include": {"kinds": []}}, "include: has no kinds"),
        ({"include": {"types": [1]}}, "include.types: must be a string or a list of strings"),
        ({"include": ["chat.step"]}, "include: must be a mapping"),
        ({"include": {"broadcast": "yes"}}, "include.broadcast: must be true or false"),
        ({"privacy": {"include_data": 1}}, "privacy.include_data: must be true or false"),
        ({"privacy": {"data_keys": "rows"}}, "privacy.data_keys: must be a list of strings"),
        ({"any": "chat.step"}, "any: must be a list of selectors"),
        ({"limits": {"events": 3}}, "limits: has no events"),
        (5, "a selector is a type"),
    ],
)
def test_a_wrong_selector_is_named(comm: ChatCommunicator, selector: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        comm.record(selector)
    assert comm.recording_config()["enabled"] is False


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "add"}, {"max_events": 0}, {"max_events": "9"}, {"scope": object()}, {"scope": float("nan")}],
)
def test_a_wrong_argument_is_named(comm: ChatCommunicator, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        comm.record(**wrong)


async def test_a_selector_that_fails_costs_the_turn_nothing(comm: ChatCommunicator) -> None:
    def broken(user_type: str, user_id: str, event: Any) -> bool:
        raise RuntimeError("broken")

    comm.record(broken)
    assert await comm.step("Still said") is not None
    assert comm.recording_config()["dropped"] == 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.text() | st.integers(),
        lambda s: st.lists(s) | st.dictionaries(st.text(), s),
    )
)
def test_whatever_is_given_as_a_selector_is_one_or_a_value_error(given_value: Any) -> None:
    try:
        selector = Selector(given_value)
    except ValueError:
        return
    assert selector.matches("", "", {}) in (True, False)


# --- privacy ------------------------------------------------------------------------------------------------


async def test_data_and_text_are_kept_only_when_asked_for(comm: ChatCommunicator) -> None:
    comm.record()
    await say_everything(comm)
    written = json.dumps(comm.export_recorded_events())
    assert "secret" not in written
    assert "private text" not in written
    by_type = {item["type"]: item for item in comm.export_recorded_events()}
    assert by_type["chat.step"]["metrics"] == {"rows": 3}
    assert by_type["chat.step"]["privacy"] == {
        "contains_content": False, "data_redacted": True, "data_cut": False
    }  # fmt: skip
    assert by_type["chat.delta"]["delta"] == {
        "marker": "answer", "index": 0, "completed": False, "text_length": 12
    }  # fmt: skip
    assert by_type["accounting.usage"]["data"] == {"breakdown": [{"input_tokens": 3}], "cost_total_usd": 0.5}


async def test_a_selector_s_privacy_opens_what_it_names(comm: ChatCommunicator) -> None:
    comm.record({"include": {"type": "chat.step"}, "privacy": {"data_keys": ["query"]}})
    comm.record({"include": {"type": "chat.delta"}, "privacy": {"include_delta_text": True}})
    comm.record({"include": {"type": "status.update"}, "privacy": {"include_data": True}})
    await say_everything(comm)
    step, delta, status = comm.export_recorded_events()
    assert step["data"] == {"query": "secret"}
    assert delta["delta"]["text"] == "private text"
    assert status["data"] == {"value": "busy"}


# --- bounds -------------------------------------------------------------------------------------------------


async def test_the_newest_events_are_kept_and_the_dropped_are_counted(comm: ChatCommunicator) -> None:
    comm.record(max_events=3)
    for number in range(10):
        await comm.step(f"Step {number}")
    assert [item["event"]["title"] for item in comm.export_recorded_events()] == [
        "Step 7",
        "Step 8",
        "Step 9",
    ]
    config = comm.recording_config()
    assert (config["recorded"], config["dropped"], config["max_events"]) == (3, 7, 3)


async def test_bytes_are_bounded_whatever_the_number(comm: ChatCommunicator) -> None:
    comm.record({"privacy": {"include_delta_text": True}}, max_events=100_000)
    for _ in range(100):
        await comm.delta("answer", "x" * 500_000)
    items = comm.export_recorded_events()
    assert sum(len(json.dumps(item)) for item in items) <= MAX_BYTES
    assert comm.recording_config()["dropped"] == 100 - len(items) > 0


async def test_data_that_is_too_much_is_left_out_and_said_to_be(comm: ChatCommunicator) -> None:
    comm.record({"privacy": {"include_data": True}})
    await comm.step("Large", data={"blob": "x" * 100_000})
    (item,) = comm.export_recorded_events()
    assert (item["data"], item["privacy"]["data_cut"]) == ({}, True)


# --- several recordings -------------------------------------------------------------------------------------


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
    assert [item["event"]["title"] for item in comm.export_recorded_events()] == ["One"]


async def test_a_block_records_for_its_length_and_brings_back_what_was(comm: ChatCommunicator) -> None:
    comm.record("chat.start")
    with comm.recording("chat.step"):
        await comm.step("Inside")
    await comm.step("Outside")
    await comm.start()
    assert types(comm) == ["chat.step", "chat.start"]
    with pytest.raises(KeyError), comm.recording():
        raise KeyError
    await comm.step("After the error")
    assert types(comm) == ["chat.step", "chat.start"]


async def test_what_was_recorded_elsewhere_is_merged_once(make_comm: Maker) -> None:
    there, here = make_comm(), make_comm()
    there.record()
    await there.start()
    exported = there.export_recorded_events()
    assert here.merge_recorded_events(exported) == 1
    assert here.merge_recorded_events(exported) == 0
    assert here.export_recorded_events() == exported


# --- sinks --------------------------------------------------------------------------------------------------


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
    assert types(comm) == ["chat.start"]


async def test_without_a_sink_sending_is_disabled_and_keeps_the_events(comm: ChatCommunicator) -> None:
    comm.record()
    await comm.start()
    result = await comm.send_recorded_events()
    assert (result["ok"], result["sent"], result["disabled"]) == (True, 0, True)
    assert types(comm) == ["chat.start"]


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
    assert [item["event"]["title"] for item in comm.export_recorded_events()] == ["Meanwhile"]


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


# --- observers ----------------------------------------------------------------------------------------------


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
