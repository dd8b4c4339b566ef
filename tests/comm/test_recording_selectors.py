"""Selectors: which events a recording keeps or hands out."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comm import ChatCommunicator, Decision, IEventFilter
from comm.recording import Selector
from tests.comm.speech import EVERYTHING, say_everything, types


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
    assert types(comm.export_recorded_events()) == kept


@pytest.mark.parametrize(
    "selector", ["chat.step", {"include": {"socket_events": ["chat_step"], "step": "search"}}]
)
async def test_the_same_selectors_choose_among_what_was_recorded(
    comm: ChatCommunicator, selector: Any
) -> None:
    comm.record()
    await say_everything(comm)
    assert types(comm.export_recorded_events(selector)) == ["chat.step"]
    assert comm.clear_recorded_events(selector) == 1
    assert types(comm.export_recorded_events()) == [t for t in EVERYTHING if t != "chat.step"]
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


async def test_a_filter_class_means_what_it_would_let_through(comm: ChatCommunicator) -> None:
    class Steps(IEventFilter):
        def allow_event(self, user_type: str, user_id: str, event: Any, data: Any = None) -> Any:
            if event.type == "chat.delta":
                return Decision(False)
            if event.type == "chat.complete":
                return False
            assert data["type"] == event.type
            return None if event.type == "chat.step" else Decision(user_type == "nobody")

    comm.record(Steps())
    await say_everything(comm)
    assert types(comm.export_recorded_events()) == ["chat.step"]
    assert types(comm.export_recorded_events(Steps())) == ["chat.step"]


async def test_an_asynchronous_selector_is_refused_and_costs_the_turn_nothing(comm: ChatCommunicator) -> None:
    async def later(user_type: str, user_id: str, event: Any) -> bool:
        return True

    comm.record(later)
    assert await comm.step("Still said") is not None
    assert comm.recording_config()["dropped"] == 1


async def test_one_failing_selector_leaves_the_others_their_events(comm: ChatCommunicator) -> None:
    broken = comm.record(lambda user_type, user_id, event: 1 / 0)
    whole = comm.record("chat.step")
    await comm.step("Kept")
    assert (broken.recorded, broken.dropped, whole.recorded) == (0, 1, 1)


async def test_what_its_author_changes_afterwards_changes_no_selector(comm: ChatCommunicator) -> None:
    wanted = {"include": {"types": ["chat.step"]}}
    comm.record(wanted)
    wanted["include"]["types"].append("chat.start")
    await comm.start()
    assert comm.export_recorded_events() == []
    assert comm.recording_config()["filter"] == {"include": {"types": ["chat.step"]}}
