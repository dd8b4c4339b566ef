"""Both generations of the message format, and what is said about a body that is neither."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.exceptions import BadRequest
from relay.ingress.checking import DEPTH_LIMIT, check_storable, decode_json
from relay.ingress.parsing import FileHint, parse_submission

pytestmark = pytest.mark.wire


def refusal(document: Any, attachment_meta: Any = None) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse_submission(document, attachment_meta)
    return caught.value


def prompt(text: Any, type: str = "event.user.prompt", **event: Any) -> dict[str, Any]:
    return {"type": type, "payload": {"mime": "text/plain", "event": {"text": text}}, **event}


@pytest.mark.parametrize(
    "message",
    [
        {"text": "Hello"},
        {"message": "Hello"},
        {"message": {"text": "Hello"}},
        {"message": {"message": "Hello"}},
        {"message": {"msg": "Hello"}},
        {"text": "Hello", "message": "not this"},
    ],
)
def test_generation_1_text_is_found_wherever_clients_put_it(message: dict[str, Any]) -> None:
    submission = parse_submission({"message": message})
    assert submission.text == "Hello"
    assert submission.generation == 1
    assert submission.reactive


@pytest.mark.parametrize("document", [{"text": "Hello"}, {"message": "Hello"}])
def test_a_body_may_be_the_message_object_itself(document: dict[str, Any]) -> None:
    submission = parse_submission({**document, "conversation_id": "c-1"})
    assert (submission.text, submission.conversation_id) == ("Hello", "c-1")


def test_generation_1_fields_are_read() -> None:
    said = {"role": "user", "content": "Before", "timestamp": 1, "id": "m-1"}
    submission = parse_submission(
        {
            "message": {
                "text": "Hello",
                "tenant": "acme",
                "project": "web",
                "conversation_id": " c-1 ",
                "turn_id": "the server mints its own",
                "bundle_id": "demo",
                "message_kind": None,
                "active_turn_id": "turn_1",
                "payload": {"any": ["thing"]},
                "config": {"pace_ms": 0},
                "chat_history": [said],
                "unknown": object.__name__,
            },
            "attachment_meta": [{"filename": "a.csv", "mime": "text/csv"}],
        }
    )
    assert (submission.tenant, submission.project) == ("acme", "web")
    assert (submission.conversation_id, submission.bundle_id) == ("c-1", "demo")
    assert submission.target_turn_id == "turn_1"
    assert submission.kind is None
    assert submission.payload == {"any": ["thing"]}
    assert submission.config == {"pace_ms": 0}
    assert submission.chat_history == [said]
    assert submission.hints_by_name == {"a.csv": FileHint("a.csv", "text/csv")}


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, None),
        ({"message_kind": "regular"}, "regular"),
        ({"message_kind": "followup"}, "followup"),
        ({"continuation_kind": "steer"}, "steer"),
        ({"followup": True}, "followup"),
        ({"steer": True}, "steer"),
        ({"followup": True, "steer": True}, "steer"),
        ({"message_kind": "regular", "steer": True}, "regular"),
        ({"followup": False, "steer": None, "message_kind": ""}, None),
    ],
)
def test_generation_1_kind_is_said_in_words_or_by_switches(fields: dict[str, Any], kind: str | None) -> None:
    assert parse_submission({"message": {"text": "Hello", **fields}}).kind == kind


@pytest.mark.parametrize(
    ("type", "kind"),
    [("event.user.prompt", None), ("event.user.followup", "followup"), ("event.user.steer", "steer")],
)
def test_generation_2_text_and_kind_come_from_the_first_text_event(type: str, kind: str | None) -> None:
    events = [{"type": "app.opened"}, prompt("Hello", type), prompt("not this", "event.user.steer")]
    submission = parse_submission({"external_events": events, "conversation_id": "c-2", "tenant": "acme"})
    assert (submission.text, submission.kind, submission.generation) == ("Hello", kind, 2)
    assert (submission.conversation_id, submission.tenant) == ("c-2", "acme")
    assert submission.external_events == events
    assert submission.reactive


def test_generation_2_text_may_be_a_plain_string() -> None:
    event = {"type": "event.user.prompt", "payload": {"event": "Hello"}}
    assert parse_submission({"external_events": [event]}).text == "Hello"


@pytest.mark.parametrize(
    ("event", "reactive"),
    [
        ({"type": "app.opened"}, False),
        ({"type": "app.clicked", "reactive": True}, True),
        (prompt("Hello"), True),
        (prompt("Only for the record", reactive=False), False),
        ({"type": "event.user.attachment.file"}, False),
        ({"type": "event.user.steer"}, True),
    ],
)
def test_generation_2_starts_a_turn_only_for_a_reactive_event(event: dict[str, Any], reactive: bool) -> None:
    assert parse_submission({"external_events": [event]}).reactive is reactive


def test_generation_2_attachment_events_belong_to_the_files_in_order() -> None:
    events = [
        prompt("Hello"),
        {"type": "event.user.attachment.file", "payload": {"filename": "a.csv", "mime": "text/csv"}},
        {"type": "event.user.attachment", "payload": {"event": {"name": "b.md"}}},
        {"type": "event.user.attachment.file"},
    ]
    hints = parse_submission({"external_events": events}).hints_in_order
    assert hints == [FileHint("a.csv", "text/csv"), FileHint("b.md", ""), FileHint()]


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ([], "body"),
        ("text", "body"),
        (None, "body"),
        ({}, "message"),
        ({"message": None}, "message"),
        ({"message": 7}, "message"),
        ({"message": ["Hello"]}, "message"),
        ({"message": {"text": 7}}, "message.text"),
        ({"message": {"message": 7}}, "message.message"),
        ({"message": {"message": {"msg": []}}}, "message.message.msg"),
        ({"message": {"text": "x" * 32_001}}, "message.text"),
        ({"message": {"text": "a\0b"}}, "message.text"),
        ({"message": {"text": "a", "conversation_id": 7}}, "message.conversation_id"),
        ({"message": {"text": "a", "conversation_id": "c" * 101}}, "message.conversation_id"),
        ({"message": {"text": "a", "conversation_id": "../c"}}, "message.conversation_id"),
        ({"message": {"text": "a", "tenant": "a\nb"}}, "message.tenant"),
        ({"message": {"text": "a", "project": {}}}, "message.project"),
        ({"message": {"text": "a", "bundle_id": 1.5}}, "message.bundle_id"),
        ({"message": {"text": "a", "message_kind": "loud"}}, "message.message_kind"),
        ({"message": {"text": "a", "continuation_kind": True}}, "message.continuation_kind"),
        ({"message": {"text": "a", "followup": "yes"}}, "message.followup"),
        ({"message": {"text": "a", "steer": 1}}, "message.steer"),
        ({"message": {"text": "a", "target_turn_id": "t" * 65}}, "message.target_turn_id"),
        ({"message": {"text": "a", "config": []}}, "message.config"),
        ({"message": {"text": "a", "config": {"n": 2**64}}}, "message.config.n"),
        ({"message": {"text": "a", "payload": {"rows": [1, "\0"]}}}, "message.payload.rows[1]"),
        ({"message": {"text": "a", "payload": {"x": float("nan")}}}, "message.payload.x"),
        ({"message": {"text": "a", "payload": "\ud800"}}, "message.payload"),
        ({"message": {"text": "a", "payload": {"\0": 1}}}, "message.payload"),
        ({"message": {"text": "a", "chat_history": {}}}, "message.chat_history"),
        ({"message": {"text": "a", "chat_history": ["Hi"]}}, "message.chat_history[0]"),
        ({"message": {"text": "a", "chat_history": [{"role": "user"}]}}, "message.chat_history[0].content"),
        (
            {"message": {"text": "a", "chat_history": [{"role": "user", "content": ""}, {"content": ""}]}},
            "message.chat_history[1].role",
        ),
        ({"message": {"text": "a"}, "attachment_meta": {}}, "attachment_meta"),
        ({"message": {"text": "a"}, "attachment_meta": [7]}, "attachment_meta[0]"),
        ({"message": {"text": "a"}, "attachment_meta": [{"mime": "a/b"}]}, "attachment_meta[0].filename"),
        ({"message": {"text": "a"}, "attachment_meta": [{"filename": 7}]}, "attachment_meta[0].filename"),
        ({"external_events": {}}, "external_events"),
        ({"external_events": []}, "external_events"),
        ({"external_events": [7]}, "external_events[0]"),
        ({"external_events": [{}]}, "external_events[0].type"),
        ({"external_events": [prompt("a"), {"type": 7}]}, "external_events[1].type"),
        ({"external_events": [prompt("a", reactive="yes")]}, "external_events[0].reactive"),
        ({"external_events": [prompt(7)]}, "external_events[0].payload.event.text"),
        ({"external_events": [prompt("x" * 32_001)]}, "external_events[0].payload.event.text"),
        ({"external_events": [{"type": "event.user.prompt"}]}, "external_events[0].payload"),
        ({"external_events": [{"type": "event.user.prompt", "payload": []}]}, "external_events[0].payload"),
        ({"external_events": [{**prompt("a"), "payload": {}}]}, "external_events[0].payload.event"),
        (
            {"external_events": [{"type": "event.user.prompt", "payload": {"event": 7}}]},
            "external_events[0].payload.event",
        ),
        ({"external_events": [prompt("a")], "tenant": 7}, "tenant"),
    ],
)
def test_what_is_wrong_is_named(document: Any, field: str) -> None:
    error = refusal(document)
    assert error.field == field
    assert str(error).startswith(f"{field}: ")
    assert error.status == 400
    json.dumps(error.document()).encode()


def test_a_wrong_type_is_said_in_the_words_of_json() -> None:
    error = refusal({"message": {"text": {"rich": True}}})
    assert str(error) == "message.text: expected a string, got an object"


def test_attachment_meta_beside_the_document_wins() -> None:
    document = {"message": {"text": "a"}, "attachment_meta": [{"filename": "inside.md"}]}
    assert list(parse_submission(document, [{"filename": "beside.md"}]).hints_by_name) == ["beside.md"]
    assert refusal(document, {"filename": "beside.md"}).field == "attachment_meta"


def test_depth_has_a_limit_that_names_the_place() -> None:
    deep: Any = "bottom"
    for _ in range(DEPTH_LIMIT * 20):
        deep = [deep]
    assert refusal({"message": {"text": "a", "payload": deep}}).field.startswith("message.payload[0]")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b'"\\ud800"', b"NaN", b"[" * 100_000, b'{"a": 1} x', b"1e999", '{"a": "\ud800"}'],
)
def test_what_is_no_json_is_said_of_its_field(body: bytes | str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode_json(body, "event_submission")
    assert caught.value.field == "event_submission"


# Keys that the parser looks at, so that random documents get past its first questions.
KEYS = st.sampled_from(
    [
        "message", "text", "msg", "tenant", "project", "conversation_id", "turn_id", "bundle_id",
        "message_kind", "continuation_kind", "followup", "steer", "active_turn_id", "target_turn_id",
        "payload", "config", "chat_history", "role", "content", "attachment_meta", "filename", "name",
        "mime", "external_events", "type", "event_source_id", "reactive", "event",
    ]
)  # fmt: skip
WORDS = st.sampled_from(
    ["regular", "followup", "steer", "event.user.prompt", "event.user.steer", "event.user.attachment.file"]
)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | WORDS
DOCUMENTS = st.recursive(
    SCALARS,
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(KEYS | ANY_TEXT, parts, max_size=6),
    max_leaves=40,
)
EVENTS = st.dictionaries(KEYS, DOCUMENTS, max_size=6)


def refusal_or_none(attempt: Callable[[], Any]) -> tuple[Any, BadRequest | None]:
    try:
        return attempt(), None
    except BadRequest as error:
        return None, error


@settings(max_examples=300, deadline=None)
@given(
    document=DOCUMENTS
    | st.fixed_dictionaries({"message": st.dictionaries(KEYS, DOCUMENTS, max_size=8)})
    | st.fixed_dictionaries({"external_events": st.lists(EVENTS, max_size=4)}),
    meta=st.none() | DOCUMENTS,
)
@example(document={"message": {"text": "", "config": {"\ud800": 1}}}, meta=None)
def test_any_document_is_read_or_refused_by_name(document: Any, meta: Any) -> None:
    submission, error = refusal_or_none(lambda: parse_submission(document, meta))
    if error is not None:
        assert error.field
        assert str(error).startswith(error.field)
        error.render()
        return
    # What gets through can be stored and sent on.
    kept = [submission.payload, submission.config, submission.chat_history, submission.external_events]
    json.dumps(kept, allow_nan=False).encode()
    check_storable(kept)


@settings(max_examples=300, deadline=None)
@given(body=st.binary(max_size=200) | DOCUMENTS.map(json.dumps).map(str.encode))
def test_any_bytes_are_decoded_or_refused(body: bytes) -> None:
    _, error = refusal_or_none(lambda: decode_json(body, "body"))
    assert error is None or error.field == "body"
