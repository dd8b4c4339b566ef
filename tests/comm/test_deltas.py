"""The delta cache: what was streamed, per agent, marker and artifact."""

import time
from collections.abc import Callable

import pytest

from comm import ChatCommunicator, deltas
from tests.comm.listening import Listener

Maker = Callable[..., ChatCommunicator]


def texts(comm: ChatCommunicator, **wanted: str) -> dict[tuple[str, str, str], str]:
    found = comm.get_delta_aggregates(**wanted)  # type: ignore[arg-type]
    return {(item["agent"], item["marker"], item["artifact_name"]): item["text"] for item in found}


async def test_text_is_folded_per_agent_marker_and_artifact(comm: ChatCommunicator) -> None:
    await comm.delta("answer", "one ")
    await comm.delta("canvas", "{", artifact_name="chart", format="json", title="Chart")
    await comm.delta("answer", "two", agent="solver")
    await comm.delta("answer", "three")
    await comm.delta("canvas", "}", artifact_name="chart")
    assert texts(comm) == {
        ("assistant", "answer", ""): "one three",
        ("assistant", "canvas", "chart"): "{}",
        ("solver", "answer", ""): "two",
    }
    assert comm.final_answer == "one twothree"


async def test_an_aggregate_says_all_that_is_known_of_it(comm: ChatCommunicator) -> None:
    before = time.time() * 1000
    await comm.delta("canvas", "a,", artifact_name="data", format="csv", title="Data", language="csv")
    await comm.delta("canvas", "b", artifact_name="data", completed=True)
    (found,) = comm.get_delta_aggregates()
    chunks = found.pop("chunks")  # type: ignore[misc]
    first, last = found.pop("ts_first"), found.pop("ts_last")  # type: ignore[misc]
    assert found == {
        "conversation_id": "conv-1",
        "turn_id": "turn-1",
        "agent": "assistant",
        "marker": "canvas",
        "format": "csv",
        "artifact_name": "data",
        "title": "Data",
        "extra": {"artifact_name": "data", "format": "csv", "title": "Data", "language": "csv"},
        "text": "a,b",
        "truncated": False,
    }
    assert [(chunk["idx"], chunk["text"]) for chunk in chunks] == [(0, "a,"), (1, "b")]
    assert before - 1 <= first <= last <= time.time() * 1000


async def test_aggregates_can_be_narrowed_down_and_left_unmerged(comm: ChatCommunicator) -> None:
    await comm.delta("answer", "a", agent="one")
    await comm.delta("thinking", "b", agent="two")
    assert texts(comm, marker="thinking") == {("two", "thinking", ""): "b"}
    assert texts(comm, agent="one") == {("one", "answer", ""): "a"}
    assert texts(comm, turn_id="another") == {}
    assert [item["text"] for item in comm.get_delta_aggregates(merge_text=False)] == ["", ""]


async def test_an_index_of_zero_restarts_an_artifact(comm: ChatCommunicator) -> None:
    await comm.delta("canvas", "old", artifact_name="chart")
    await comm.delta("canvas", "kept", artifact_name="table")
    await comm.delta("canvas", "new", artifact_name="chart", index=0)
    await comm.delta("canvas", "er", artifact_name="chart")
    assert texts(comm) == {
        ("assistant", "canvas", "table"): "kept",
        ("assistant", "canvas", "chart"): "newer",
    }


async def test_an_index_of_zero_restarts_an_answer_that_had_moved_on(comm: ChatCommunicator) -> None:
    await comm.delta("answer", "Half an ans")
    await comm.delta("answer", "wer")
    await comm.delta("answer", "A whole ", index=0)
    await comm.delta("answer", "answer")
    assert comm.final_answer == "A whole answer"


async def test_plain_text_whose_index_is_always_zero_is_not_lost(comm: ChatCommunicator) -> None:
    await comm.delta(text="Loaded 3 turns. ", index=0, marker="timeline_text")
    await comm.delta(text="Searched.", index=0, marker="timeline_text")
    assert texts(comm) == {("assistant", "timeline_text", ""): "Loaded 3 turns. Searched."}


async def test_a_bare_end_mark_with_index_zero_forgets_nothing(comm: ChatCommunicator) -> None:
    await comm.delta("canvas", "text", artifact_name="chart")
    await comm.delta("canvas", "", artifact_name="chart", index=0, completed=True)
    assert texts(comm) == {("assistant", "canvas", "chart"): "text"}


async def test_an_agent_that_begins_at_zero_takes_nothing_from_another(comm: ChatCommunicator) -> None:
    for index, text in enumerate(["a", "b"]):
        await comm.delta(text=text, index=index, agent="one")
    for index, text in enumerate(["c", "d"]):
        await comm.delta(text=text, index=index, agent="two")
    assert comm.final_answer == "abcd"


async def test_what_a_filter_blocked_is_in_neither_cache_nor_answer(make_comm: Maker) -> None:
    def no_secrets(user_type: str, user_id: str, event: object, data: dict[str, str]) -> bool:
        return "secret" not in data.get("text", "")

    comm = make_comm(event_filter=no_secrets)
    await comm.delta("answer", "public, ")
    await comm.delta("answer", "secret, ")
    await comm.delta("answer", "open")
    assert comm.final_answer == "public, open"


async def test_clearing_forgets_the_aggregates_and_keeps_the_answer(
    comm: ChatCommunicator, listener: Listener
) -> None:
    await comm.delta("answer", "first ")
    comm.clear_delta_aggregates(turn_id="another")
    assert len(comm.get_delta_aggregates()) == 1
    comm.clear_delta_aggregates(conversation_id="conv-1", turn_id="turn-1")
    assert comm.get_delta_aggregates() == []
    await comm.delta("answer", "second")
    await comm.complete()
    assert (await listener.until("chat.complete"))[-1].envelope["data"]["final_answer"] == "first second"
    assert texts(comm) == {("assistant", "answer", ""): "second"}


async def test_many_small_chunks_are_joined_and_none_is_lost(comm: ChatCommunicator) -> None:
    count = deltas.CHUNKS_APART * 2 + 10
    for number in range(count):
        await comm.delta("answer", f"{number} ")
    (found,) = comm.get_delta_aggregates()
    assert found["text"] == "".join(f"{number} " for number in range(count))
    assert len(found["chunks"]) == 12
    assert [chunk["idx"] for chunk in found["chunks"][:3]] == [
        0,
        deltas.CHUNKS_APART,
        deltas.CHUNKS_APART * 2,
    ]


async def test_kept_text_is_bounded_and_says_so(
    comm: ChatCommunicator, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deltas, "KEPT_CHARACTERS", 1000)
    await comm.delta("answer", "a" * 700)
    await comm.delta("answer", "b" * 100)
    await comm.delta("answer", "c")
    (found,) = comm.get_delta_aggregates()
    assert (found["text"], found["truncated"]) == ("a" * 700, True)
    await comm.complete()
    heard = await listener.until("chat.complete")
    assert [item.envelope["text"][0] for item in heard[:-1]] == ["a", "b", "c"]
    assert heard[-1].envelope["data"] == {"final_answer": "a" * 700, "final_answer_truncated": True}


async def test_restarting_and_clearing_make_room_again(
    comm: ChatCommunicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deltas, "KEPT_CHARACTERS", 1000)
    for _ in range(5):
        await comm.delta("canvas", "x" * 700, artifact_name="chart", index=0)
    assert texts(comm) == {("assistant", "canvas", "chart"): "x" * 700}
    comm.clear_delta_aggregates()
    await comm.delta("answer", "y" * 700)
    assert comm.final_answer == "y" * 700


async def test_many_empty_artifacts_are_bounded_too(
    comm: ChatCommunicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deltas, "KEPT_CHARACTERS", deltas.RUN_COST * 10)
    for number in range(100):
        await comm.delta("canvas", "x", artifact_name=f"artifact {number}")
    assert len(comm.get_delta_aggregates()) < 10
