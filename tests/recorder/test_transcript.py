"""A replay in words: text together per marker, nothing lost, nothing that steers a terminal."""

from typing import Any

import pytest

from comm.envelope import Event
from comm.sinks import Published
from recorder import transcript
from recorder.models import RecordedEnvelope
from recorder.rows import write_rows
from recorder.transcript import Transcript
from tests.recorder.publishing import published

pytestmark = pytest.mark.django_db


def worded(*offered: Published) -> str:
    assert write_rows(offered, []) == []
    text = Transcript()
    return "".join(text.add(row) for row in RecordedEnvelope.objects.in_order()) + text.end()


def delta(seq: int, text: str, index: int, marker: str = "answer", **fields: Any) -> Published:
    return published(seq, text=text, index=index, marker=marker, **fields)


def step(seq: int, title: str, **fields: Any) -> Published:
    return published(seq, type="chat.step", event=Event("a", "s", "completed", title), **fields)


def test_a_turn_reads_from_question_to_answer() -> None:
    text = worded(
        published(1, type="chat.start", data={"message": "How many?"}),
        step(2, "Counting"),
        delta(3, "There are ", 0),
        delta(4, "three.", 1),
        published(5, type="chat.complete", data={"final_answer": "There are three."}),
        published(6, type="conv.status", data={"state": "idle", "completion": "success"}, turn_id="turn-1"),
    )
    assert text == (
        "\n── turn-1 ──\n"
        "21:14:05  > How many?\n"
        "21:14:05  Counting (completed)\n"
        "[answer]\n"
        "There are three.\n"
        "21:14:05  complete\n"
        "21:14:05  conversation: idle success\n"
    )


def test_text_of_markers_that_alternate_stays_together() -> None:
    text = worded(
        delta(1, "one ", 0),
        delta(2, "hmm ", 0, "thinking"),
        step(3, "Looking"),
        delta(4, "two ", 1),
        delta(5, "well", 1, "thinking"),
        delta(6, "three", 2, completed=True),
        delta(7, "!", 2, "thinking"),
    )
    assert text == (
        "\n── turn-1 ──\n[answer]\none two three\n[thinking]\nhmm well!\n21:14:05  Looking (completed)\n"
    )


def test_text_is_written_as_it_comes() -> None:
    assert write_rows([delta(1, "one ", 0), delta(2, "two", 1)], []) == []
    text = Transcript()
    first, second = RecordedEnvelope.objects.in_order()
    assert text.add(first).endswith("one ")
    assert text.add(second) == "two"
    assert text.end() == "\n"
    assert text.end() == ""


def test_turns_at_the_same_time_are_told_one_after_the_other() -> None:
    text = worded(
        delta(1, "A1 ", 0, turn_id="A"),
        delta(2, "B1 ", 0, turn_id="B"),
        delta(3, "A2", 1, turn_id="A"),
        delta(4, "B2", 1, turn_id="B"),
        published(5, type="chat.complete", turn_id="A", data={}),
        published(6, type="chat.complete", turn_id="B", data={}),
    )
    assert text == (
        "\n── A ──\n[answer]\nA1 A2\n\n── B ──\n[answer]\nB1 B2\n"
        "\n── A ──\n21:14:05  complete\n\n── B ──\n21:14:05  complete\n"
    )


def test_artifacts_of_a_marker_are_apart_and_begin_anew_at_index_0() -> None:
    table, chart = {"artifact_name": "table"}, {"artifact_name": "chart"}
    text = worded(
        delta(1, "a|", 0, "canvas", extra=table),
        delta(2, "<svg>", 0, "canvas", extra=chart),
        delta(3, "b", 1, "canvas", extra=table),
        delta(4, "c|d", 0, "canvas", extra=table),
    )
    assert text == ("\n── turn-1 ──\n[canvas table]\na|b\n[canvas chart]\n<svg>\n[canvas table]\nc|d\n")


def test_an_answer_that_nobody_streamed_is_told_at_the_end() -> None:
    complete = published(1, type="chat.complete", data={"final_answer": "Forty-two."})
    assert "complete\nForty-two.\n" in worded(complete)


def test_cards_and_errors_are_told() -> None:
    usage = Event("a", "accounting", "completed", "Usage", "Token usage: 1,240 in / 380 out")
    items = {"items": ["Why?", {"text": "How?"}]}
    text = worded(
        published(1, type="accounting.usage", event=usage),
        published(2, type="chat.followups", event=Event(title="Next?"), data=items),
        published(3, type="chat.error", data={"error": "It broke."}),
    )
    assert "accounting.usage: Usage (completed)\nToken usage: 1,240 in / 380 out\n" in text
    assert "chat.followups: Next?\nWhy?; How?\n" in text
    assert "error: It broke.\n" in text


def test_recorded_text_cannot_steer_the_terminal() -> None:
    text = worded(delta(1, "\x1b[2Jred\x07\r\x9b1m\tend\nline", 0), step(2, "\x1b]0;title\x07"))
    assert not [c for c in text if c < " " and c not in "\n\t"]
    assert "\x9b" not in text
    assert "␛[2Jred␇␍" in text
    assert "\tend\nline\n" in text


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that never ended holds up the others only so long."""
    monkeypatch.setattr(transcript, "HELD_CHARACTERS", 10)
    text = worded(
        delta(1, "open ", 0, turn_id="A"),
        delta(2, "123456", 0, turn_id="B"),
        delta(3, "789012", 1, turn_id="B"),
        delta(4, "ended", 1, turn_id="A"),
    )
    assert text == (
        "\n── A ──\n[answer]\nopen \n\n── B ──\n[answer]\n123456789012\n\n── A ──\n[answer]\nended\n"
    )


def test_thousands_of_short_sections_are_told_too() -> None:
    lines = [delta(seq, f"line {seq}", seq, "timeline_text", completed=True) for seq in range(2, 3002)]
    text = worded(delta(1, "open", 0), *lines)
    assert text.count("line ") == 3000
