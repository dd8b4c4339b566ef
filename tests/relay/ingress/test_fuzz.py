"""Whatever is sent to the endpoints: an acknowledgement or a refusal that says why, never a 500."""

import json
from typing import Any

import msgspec
import pytest
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.relay.ingress.visitors import Visitor

# The visitor is made once for all examples; what they store does not matter to the next.
FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

FORM = "multipart/form-data; boundary=b"
TEXTS = st.text(max_size=12) | st.sampled_from(["", " ", "\0", "a/b", "Hello", "steer", "followup", "demo"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(TEXTS, parts, max_size=3),
    max_leaves=8,
)
IDS = st.sampled_from(["", "c-1", "c-2", "ünï", None]) | TEXTS
MAYBE = st.sampled_from([None, True, False])
KINDS = st.sampled_from([None, "", "regular", "followup", "steer"])


def mostly(likely: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What a client means to send, and now and then anything: else no example gets past its first field."""
    return st.integers(0, 19).flatmap(lambda dice: VALUES if dice == 0 else likely)


HEAD = {
    **{name: mostly(IDS) for name in ("tenant", "project", "conversation_id", "turn_id", "active_turn_id")},
    **{name: mostly(MAYBE) for name in ("followup", "steer")},
    **{name: mostly(KINDS) for name in ("message_kind", "continuation_kind")},
    "bundle_id": mostly(st.sampled_from(["", None, "demo"])),
    "payload": VALUES,
    "config": mostly(st.none() | st.dictionaries(TEXTS, VALUES, max_size=3)),
}
SAID = st.fixed_dictionaries({"role": mostly(TEXTS), "content": mostly(TEXTS)}, optional={"id": VALUES})
WORDS = mostly(st.sampled_from(["Hello", "What is a turn?", "", "ünï\U0001f600"]) | TEXTS)
MESSAGES = st.fixed_dictionaries(
    {"text": WORDS}, optional={**HEAD, "message": WORDS, "chat_history": st.lists(SAID, max_size=2)}
)
EVENT_TYPES = (
    "event.user.prompt", "event.user.followup", "event.user.steer", "event.user.attachment.file", "app.x"
)  # fmt: skip
SPOKEN = st.fixed_dictionaries({"event": WORDS | st.fixed_dictionaries({"text": WORDS})})
EVENTS = st.fixed_dictionaries(
    {"type": mostly(st.sampled_from(EVENT_TYPES)), "payload": mostly(SPOKEN)},
    optional={"reactive": mostly(MAYBE), "event_source_id": mostly(IDS)},
)
FILE_META = st.fixed_dictionaries({"filename": mostly(TEXTS)}, optional={"mime": mostly(TEXTS)})
META = st.lists(FILE_META, max_size=2)
DOCUMENTS = mostly(
    st.fixed_dictionaries({"message": mostly(MESSAGES)}, optional={"attachment_meta": mostly(META)})
    | st.fixed_dictionaries({"external_events": mostly(st.lists(EVENTS, max_size=3))}, optional=HEAD)
)


@pytest.fixture
def patient(visitor: Visitor, settings: Any) -> Visitor:
    """A visitor whose rate and backlog never end."""
    settings.RELAY = {"MESSAGE_RATE": "", "BACKLOG_TURNS": 10**6}
    # A server error shall be a 500 to be found here, not an exception of the test client.
    visitor.client = Client(raise_request_exception=False)
    return visitor


def check(response: Any, *allowed: int) -> None:
    """An acknowledgement, or a refusal by name."""
    assert response.status_code in (200, *allowed), (response.status_code, response.content)
    if response.status_code == 200:
        assert response.json()["status"]
        return
    detail = response.json()["detail"]
    assert detail["error"]
    if response.status_code == 400:
        assert detail["error"].startswith(detail["field"]) or detail["attachments"]


@FUZZ
@given(document=DOCUMENTS)
def test_any_document(patient: Visitor, document: Any) -> None:
    check(patient.post(json.dumps(document).encode()), 400)


@FUZZ
@given(body=st.binary(max_size=300), content_type=st.sampled_from(["application/json", FORM]))
def test_any_bytes(patient: Visitor, body: bytes, content_type: str) -> None:
    check(patient.post(body, content_type=content_type), 400, 411)


FIELD = 'Content-Disposition: form-data; name="{}"'
FILE = 'Content-Disposition: form-data; name="files"; filename'
ENCODED = DOCUMENTS.map(msgspec.json.encode)
DOCUMENT_HEADERS = (FIELD.format("message"), FIELD.format("event_submission"))
DOCUMENT_PARTS = st.tuples(st.sampled_from(DOCUMENT_HEADERS), ENCODED)
FILE_HEADERS = (
    f'{FILE}="a.csv"\r\nContent-Type: text/csv', f'{FILE}="../x.png"', f"{FILE}*=utf-8''%FF%00", f'{FILE}=""'
)  # fmt: skip
OTHER_HEADERS = (
    FIELD.format("attachment_meta"), FIELD.format("message") + "\r\nContent-Transfer-Encoding: base64",
    "Content-Disposition: form-data", "X-Nothing: here",
)  # fmt: skip
OTHER_PARTS = st.tuples(
    st.sampled_from(FILE_HEADERS + OTHER_HEADERS), META.map(msgspec.json.encode) | st.binary(max_size=40)
)
PARTS = st.tuples(mostly(DOCUMENT_PARTS), st.lists(OTHER_PARTS, max_size=3)).map(
    lambda parts: [part for part in (parts[0], *parts[1]) if isinstance(part, tuple)]
)


@FUZZ
@given(parts=PARTS, end=st.sampled_from([b"--b--\r\n", b"--b", b""]))
def test_any_form(patient: Visitor, parts: list[tuple[str, bytes]], end: bytes) -> None:
    body = b"".join(b"--b\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n" for head, content in parts)
    check(patient.post(body + end, content_type=FORM), 400, 411)


@FUZZ
@given(document=VALUES | st.fixed_dictionaries({}, optional={**HEAD, "stream_id": TEXTS | VALUES}))
def test_any_question_for_a_state(patient: Visitor, document: Any) -> None:
    response = patient.ask("/sse/conv_status.get", document)
    assert response.status_code in (200, 400, 404), response.content


@FUZZ
@given(
    value=st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40),
    name=st.sampled_from(
        [
            "Authorization", "X-ID-Token", "User-Session-ID", "KDC-Stream-ID", "X-User-Timezone",
            "X-User-UTC-Offset", "Idempotency-Key", "Cookie", "Origin",
        ]
    ),
)  # fmt: skip
def test_any_header(patient: Visitor, name: str, value: str) -> None:
    response = patient.post({"message": {"text": "Hi"}}, **{name: value})
    assert response.status_code in (200, 400, 401, 422), response.content
