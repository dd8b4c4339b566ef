"""What the layer and the recorder process agree on."""

import pytest

from comm.groups import session_group
from comm.history import Position
from comm.recorder_stream import Gap, StreamKeys, entry_bytes, pack, read_entry, read_gap

MESSAGE = {
    "type": "relay.envelope",
    "group": "session.a",
    "route": "chat_delta",
    "target_sid": None,
    "body": b"{}",
}


def test_an_entry_reads_back_as_it_was_written() -> None:
    packed = pack(MESSAGE)
    entry = read_entry(b"7-0", {b"p": b"1772140445267-42", b"g": session_group("a").encode(), b"m": packed})
    assert entry.message == MESSAGE
    assert (entry.group, entry.position) == ("session.a", Position(1772140445267, 42))
    assert entry.size == entry_bytes(b"session.a", b"1772140445267-42", packed) > len(packed)


def test_an_event_of_a_project_has_no_position() -> None:
    assert read_entry(b"7-0", {b"p": b"", b"g": b"project.p", b"m": pack(MESSAGE)}).position is None


@pytest.mark.parametrize(
    "fields", [{}, {b"p": b"", b"g": b"g", b"m": b"\xc1"}, {b"p": b"x", b"g": b"g", b"m": b"\x80"}]
)
def test_what_is_none_of_ours_is_a_value_error(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(ValueError):
        read_entry(b"7-0", fields)


def test_a_gap_tells_its_ends_and_its_count() -> None:
    assert read_gap(b"session.a", b"5-1 5-9 9") == Gap("session.a", Position(5, 1), Position(5, 9), 9)
    assert read_gap(b"project.p", b"- - 3") == Gap("project.p", None, None, 3)


def test_the_names_stand_under_the_prefix() -> None:
    assert StreamKeys.of("house") == (
        "house:recorder",
        "house:recorder:bytes",
        "house:recorder:gaps",
        "house:born",
        "house:recorder:gaps:taken",
    )
