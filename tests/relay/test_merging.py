"""Joining the deltas that a slow peer has yet to read."""

from itertools import groupby
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from comm.history import Position
from relay.merging import merge_deltas
from relay.transports.frames import Frame


def delta(seq: int, text: str, **given: Any) -> Frame:
    body = {
        "type": "chat.delta",
        "conversation": {"turn_id": given.get("turn", "t1")},
        "event": {"agent": given.get("agent", "a")},
        "delta": {
            "text": text,
            "index": given.get("index", seq),
            "marker": given.get("marker", "answer"),
            "completed": given.get("completed", False),
        },
        "text": text,
        "idx": given.get("index", seq),
    }
    if "artifact" in given:
        body["extra"] = {"artifact_name": given["artifact"]}
    return Frame("chat_delta", msgspec.json.encode(body), Position(1, seq), given.get("target"))


def step(seq: int) -> Frame:
    return Frame("chat_step", b'{"type":"chat.step"}', Position(1, seq), None)


def bodies(frames: list[Frame]) -> list[dict[str, Any]]:
    return [msgspec.json.decode(frame.body) for frame in frames]


def test_a_run_has_the_firsts_index_and_the_lasts_position_and_end() -> None:
    merged = list(merge_deltas([delta(1, "Hel"), delta(2, "lo"), delta(3, ".", completed=True)]))
    assert [frame.position for frame in merged] == [Position(1, 3)]
    body = bodies(merged)[0]
    assert body["delta"] == {"text": "Hello.", "index": 1, "marker": "answer", "completed": True}
    assert (body["text"], body["idx"]) == ("Hello.", 1)
    assert body["extra"]["merged"] == 3


def test_another_event_is_never_crossed() -> None:
    merged = list(merge_deltas([delta(1, "a"), step(2), delta(3, "b"), delta(4, "c")]))
    assert [frame.position.seq for frame in merged if frame.position] == [1, 2, 4]


def test_markers_artifacts_turns_and_agents_are_kept_apart() -> None:
    frames = [
        delta(1, "a"),
        delta(2, "b", marker="thinking"),
        delta(3, "c", marker="thinking", artifact="x"),
        delta(4, "d", marker="thinking", artifact="y"),
        delta(5, "e", turn="t2"),
        delta(6, "f", turn="t2", agent="b"),
    ]
    assert [f.position for f in merge_deltas(frames)] == [f.position for f in frames]


def test_a_completed_delta_ends_a_run_and_index_0_begins_one() -> None:
    frames = [delta(1, "a"), delta(2, "b", completed=True), delta(3, "c", index=0), delta(4, "d", index=1)]
    assert [body["delta"]["text"] for body in bodies(list(merge_deltas(frames)))] == ["ab", "cd"]


def test_what_is_not_merged_is_passed_on_as_it_was() -> None:
    frames = [step(1), delta(2, "a"), step(3)]
    assert list(merge_deltas(frames)) == frames


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["answer", "thinking"]), st.text(max_size=3), st.booleans()),
            st.just(None),
        ),
        max_size=40,
    )
)
def test_text_per_marker_is_the_same_and_positions_rise(events: list[tuple[str, str, bool] | None]) -> None:
    frames = [
        step(n) if e is None else delta(n, e[1], marker=e[0], completed=e[2])
        for n, e in enumerate(events, start=1)
    ]
    merged = list(merge_deltas(frames))

    def texts(of: list[Frame]) -> dict[str, str]:
        deltas = [b["delta"] for b in bodies(of) if "delta" in b]
        ordered = sorted(deltas, key=lambda d: d["marker"])
        return {k: "".join(d["text"] for d in g) for k, g in groupby(ordered, key=lambda d: d["marker"])}

    assert texts(merged) == texts(frames)
    positions = [frame.position for frame in merged]
    assert positions == sorted(set(positions))
    if frames:
        assert positions[-1] == frames[-1].position
