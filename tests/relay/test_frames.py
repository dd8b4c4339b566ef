"""Frames as they stand on the wire."""

import pytest

from comm.envelope import ConversationContext, Delta, Envelope, Event, ServiceContext
from comm.history import Position
from relay.transports.frames import Frame, sse_frame, sse_retry
from tests.clients import parse_event

LINE_BREAKS = "\n \r \r\n \x0b \x0c \x1c \x1d \x1e \x85 \u2028 \u2029"


def test_an_sse_frame_has_id_event_and_one_line_of_data() -> None:
    assert (
        sse_frame("chat_step", b'{"a":1}', Position(7, 9)) == b'id: 7-9\nevent: chat_step\ndata: {"a":1}\n\n'
    )


def test_a_frame_without_position_moves_none() -> None:
    assert sse_frame("server_shutdown", b"{}", None) == b"event: server_shutdown\ndata: {}\n\n"


def test_retry_stands_before_the_frame_it_belongs_to() -> None:
    frame = sse_retry(1500) + sse_frame("server_shutdown", b"{}", None)
    event = parse_event(frame.decode().removesuffix("\n\n").split("\n"))
    assert event is not None
    assert (event.event, event.retry) == ("server_shutdown", 1500)


@pytest.mark.parametrize("text", [LINE_BREAKS, "a\n\nb", "data: x\n\nevent: evil\ndata: {}\n\n"])
def test_a_line_break_of_any_kind_never_splits_a_frame(text: str) -> None:
    envelope = Envelope(
        type="chat.delta",
        timestamp="2026-01-01T00:00:00.000Z",
        ts=0,
        service=ServiceContext(),
        conversation=ConversationContext(session_id="s"),
        event=Event(),
        delta=Delta(text=text, index=0),
        text=text,
        idx=0,
    )
    frame = sse_frame(envelope.socket_event, envelope.encode(), Position(1, 1))
    assert frame.count(b"\n") == 4
    assert b"\r" not in frame
    event = parse_event(frame.decode().removesuffix("\n\n").split("\n"))
    assert event is not None
    assert event.data["delta"]["text"] == text


def test_a_frame_is_encoded_once_per_wire() -> None:
    calls = []

    def encoder(route: str, body: bytes, position: Position | None) -> bytes:
        calls.append(route)
        return body

    frame = Frame("chat_step", b"{}", None, None)
    assert frame.encoded(encoder) is frame.encoded(encoder)
    assert calls == ["chat_step"]
