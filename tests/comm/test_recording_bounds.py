"""How much a recording keeps: data and text when asked for, so many events and bytes, and what is lost is said."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comm import ChatCommunicator
from comm.recording.items import TEXT_CHARACTERS
from comm.recording.store import MAX_BYTES, MAX_RULES
from tests.comm.speech import say_everything, titles

Maker = Callable[..., ChatCommunicator]


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


async def test_the_newest_events_are_kept_and_the_dropped_are_counted(comm: ChatCommunicator) -> None:
    comm.record(max_events=3)
    for number in range(10):
        await comm.step(f"Step {number}")
    assert titles(comm.export_recorded_events()) == [
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


async def test_what_was_recorded_elsewhere_is_merged_once(make_comm: Maker) -> None:
    there, here = make_comm(), make_comm()
    there.record()
    await there.start()
    exported = there.export_recorded_events()
    assert here.merge_recorded_events(exported) == 1
    assert here.merge_recorded_events(exported) == 0
    assert here.export_recorded_events() == exported


@pytest.mark.parametrize(
    "changes",
    [
        {"record_id": ""},
        {"record_id": 7},
        {"data": None},
        {"delta": "text"},
        {"privacy": {"data_redacted": "no"}},
        {"event": []},
        {"extra": object()},
        {"extra": "x" * 2_000_000},
        {"extra": "\ud800"},
    ],
)
async def test_what_is_no_recorded_event_is_named_and_nothing_is_merged(
    make_comm: Maker, changes: dict[str, Any]
) -> None:
    there, here = make_comm(), make_comm()
    there.record()
    await there.start()
    (good,) = there.export_recorded_events()
    with pytest.raises(ValueError, match=r"items\[1\]: "):
        here.merge_recorded_events([good, {**good, "record_id": "another", **changes}])
    assert here.export_recorded_events() == []


@given(
    st.recursive(
        st.none() | st.booleans() | st.text() | st.integers() | st.floats(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_whatever_is_merged_is_an_event_or_a_value_error(value: Any) -> None:
    here = ChatCommunicator(service={}, conversation={})
    try:
        here.merge_recorded_events([value])
    except ValueError:
        assert here.export_recorded_events() == []


async def test_long_text_is_cut_and_said_to_be(comm: ChatCommunicator) -> None:
    comm.record({"privacy": {"include_delta_text": True}})
    await comm.delta("answer", "x" * (TEXT_CHARACTERS + 1))
    await comm.delta("answer", "y" * TEXT_CHARACTERS)
    cut, whole = comm.export_recorded_events()
    assert (len(cut["delta"]["text"]), cut["delta"]["text_length"]) == (TEXT_CHARACTERS, TEXT_CHARACTERS + 1)
    assert (cut["privacy"]["text_cut"], whole["privacy"]["text_cut"]) == (True, False)


async def test_an_export_says_how_many_events_are_missing_before_it(comm: ChatCommunicator) -> None:
    recording = comm.record(max_events=2)
    for number in range(5):
        await comm.step(f"Step {number}")
    first, second = comm.export_recorded_events()
    assert first["recording"]["dropped_before"] == 3
    assert "dropped_before" not in second["recording"]
    assert recording.export()[0]["recording"]["dropped_before"] == 3
    assert comm.recording_config()["truncated"] is True
    # Whoever took a batch knows; the next batch tells only what was lost since.
    await comm.send_recorded_events(sink=lambda batch, **more: None)
    for number in range(3):
        await comm.step(f"Later {number}")
    assert comm.export_recorded_events()[0]["recording"]["dropped_before"] == 1


async def test_thousands_of_deltas_stay_within_the_bounds(comm: ChatCommunicator) -> None:
    comm.record({"privacy": {"include_delta_text": True}}, max_events=100)
    for _ in range(3000):
        await comm.delta("answer", "x" * 100)
    config = comm.recording_config()
    assert (config["recorded"], config["dropped"]) == (100, 2900)
    assert config["bytes"] < 100 * 2000
    assert [item["delta"]["index"] for item in comm.export_recorded_events()] == list(range(2900, 3000))


def test_recordings_at_once_are_bounded(comm: ChatCommunicator) -> None:
    for number in range(MAX_RULES):
        comm.record(f"type.{number}")
    with pytest.raises(ValueError, match="more than 100 recordings at once"):
        comm.record("one.more")
    comm.stop_recording()
    comm.record("one.more")


@pytest.mark.parametrize("scope", ["x" * 5000, "\ud800", {"a": {1, 2}}, [[float("inf")]]])
def test_a_scope_that_is_too_large_or_no_json_is_refused(comm: ChatCommunicator, scope: Any) -> None:
    with pytest.raises(ValueError, match="scope: "):
        comm.record(scope=scope)
    assert comm.recording_config()["enabled"] is False


async def test_numbers_and_titles_have_a_bound_too(comm: ChatCommunicator) -> None:
    comm.record()
    await comm.step("T" * 10_000, data={f"n{number}": number for number in range(10_000)})
    (item,) = comm.export_recorded_events()
    assert (len(item["metrics"]), len(item["event"]["title"])) == (50, 500)
    assert comm.recording_config()["bytes"] < 4000
