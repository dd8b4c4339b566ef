"""The envelope's shape, its one table, and what cannot be encoded."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comm.envelope import (
    ENVELOPE_BYTES,
    ConversationContext,
    Delta,
    Envelope,
    Event,
    ServiceContext,
    decode_envelope,
    route_of,
    stamp,
)
from comm.exceptions import EnvelopeInvalid


def make(**changes: Any) -> Envelope:
    timestamp, ts = stamp()
    fields: dict[str, Any] = {
        "type": "chat.step",
        "timestamp": timestamp,
        "ts": ts,
        "service": ServiceContext(),
        "conversation": ConversationContext(session_id="s"),
        "event": Event(step="read", status="running"),
    }
    return Envelope(**{**fields, **changes})


@pytest.mark.parametrize(
    ("type", "route"),
    [
        ("chat.start", "chat_start"),
        ("chat.step", "chat_step"),
        ("chat.delta", "chat_delta"),
        ("chat.complete", "chat_complete"),
        ("chat.error", "chat_error"),
        ("chat.service", "chat_service"),
        ("conv.status", "conv_status"),
        ("gateway.rate_limit", "chat_service"),
        ("rate_limit.denied", "chat_service"),
        ("queue.followup_absorbed", "chat_service"),
        ("event.recorded", "chat_service"),
        ("chat.followups", "chat_step"),
        ("accounting.usage", "chat_step"),
        ("gateway", "chat_step"),
        ("", "chat_step"),
    ],
)
def test_one_table_maps_types_to_routes(type: str, route: str) -> None:
    assert route_of(type) == route
    assert make(type=type).socket_event == route


def test_an_envelope_without_content_in_them_has_no_optional_keys() -> None:
    assert set(json.loads(make().encode())) == {
        "type",
        "timestamp",
        "ts",
        "service",
        "conversation",
        "event",
        "data",
    }
    assert set(json.loads(make().encode())["event"]) == {"agent", "step", "status", "title"}


def test_a_delta_stands_beside_its_mirrors() -> None:
    delta = Delta(text="chunk", index=4, marker="canvas", completed=True)
    body = json.loads(make(delta=delta, text="chunk", idx=4, extra={"artifact_name": "table"}).encode())
    assert body["delta"] == {"text": "chunk", "index": 4, "marker": "canvas", "completed": True}
    assert (body["text"], body["idx"], body["extra"]) == ("chunk", 4, {"artifact_name": "table"})


def test_the_two_times_of_an_envelope_are_one() -> None:
    timestamp, ts = stamp()
    assert timestamp.endswith("Z")
    assert timestamp[-4:-1] == f"{ts % 1000:03d}"


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"a": {"b": ["x", "\ud800"]}}, r"data\.a\.b\[1\]"),
        ({"a": float("nan")}, r"data\.a"),
        ({"a": [1.0, float("-inf")]}, r"data\.a\[1\]"),
        ({"a": object()}, r"data\.a"),
        ({"bad\ud800key": 1}, "a key of data"),
        ({"a": {(1, 2): 3}}, r"a key of data\.a"),
    ],
)
def test_what_cannot_be_encoded_is_an_error_that_names_the_field(data: dict[str, Any], field: str) -> None:
    with pytest.raises(EnvelopeInvalid, match=field):
        make(data=data).encode()


def test_a_structure_without_end_is_an_error_and_not_a_crash() -> None:
    endless: dict[str, Any] = {}
    endless["again"] = endless
    with pytest.raises(EnvelopeInvalid):
        make(data=endless).encode()


def test_null_is_a_value_like_any_other() -> None:
    assert json.loads(make(data={"a": None, "b": "null", "c": 1.5}).encode())["data"] == {
        "a": None,
        "b": "null",
        "c": 1.5,
    }


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"type": 1}', b'{"type": "x"}', b"\xff\xfe", "nonsense"]
)
def test_what_is_no_envelope_is_told(body: bytes | str) -> None:
    with pytest.raises(EnvelopeInvalid):
        decode_envelope(body)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), VALUES, max_size=5), st.text())
def test_any_json_travels_unchanged_on_one_line(data: dict[str, Any], text: str) -> None:
    envelope = make(type="chat.delta", data=data, delta=Delta(text=text, index=0), text=text, idx=0)
    body = envelope.encode()
    assert b"\n" not in body
    assert b"\r" not in body
    assert decode_envelope(body) == envelope
    assert json.loads(body)["data"] == data


def test_an_envelope_cannot_be_changed_in_place() -> None:
    envelope = make()
    with pytest.raises(AttributeError):
        envelope.type = "chat.delta"  # type: ignore[misc]
    assert msgspec.structs.replace(envelope, type="chat.delta").type == "chat.delta"


def test_an_envelope_is_no_larger_than_the_channel_layer_can_carry() -> None:
    assert make(data={"text": "x" * (ENVELOPE_BYTES - 1000)}).encode()
    with pytest.raises(EnvelopeInvalid, match="at most 16777216"):
        make(data={"text": "x" * ENVELOPE_BYTES}).encode()
