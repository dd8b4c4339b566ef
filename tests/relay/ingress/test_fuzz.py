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
HEAD_FIELDS = (
    "tenant", "project", "conversation_id", "turn_id", "bundle_id", "message_kind", "continuation_kind",
    "followup", "steer", "active_turn_id", "target_turn_id", "payload", "config",
)  # fmt: skip
HEAD = dict.fromkeys(HEAD_FIELDS, TEXTS | VALUES)
MESSAGES = st.fixed_dictionaries(
    {"text": TEXTS}, optional={**HEAD, "message": VALUES, "chat_history": st.lists(VALUES, max_size=2)}
)
EVENT_TYPES = (
    "event.user.prompt", "event.user.followup", "event.user.steer", "event.user.attachment.file", "app.x"
)  # fmt: skip
EVENTS = st.fixed_dictionaries(
    {"type": st.sampled_from(EVENT_TYPES)},
    optional={
        "reactive": st.booleans() | VALUES,
        "event_source_id": VALUES,
        "payload": st.fixed_dictionaries({"event": TEXTS | st.fixed_dictionaries({"text": TEXTS})}) | VALUES,
    },
)
DOCUMENTS = (
    VALUES
    | st.fixed_dictionaries({"message": MESSAGES | VALUES}, optional={"attachment_meta": VALUES})
    | st.fixed_dictionaries({"external_events": st.lists(EVENTS, max_size=3) | VALUES}, optional=HEAD)
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


PART_HEADERS = st.sampled_from(
    [
        'Content-Disposition: form-data; name="message"',
        'Content-Disposition: form-data; name="event_submission"',
        'Content-Disposition: form-data; name="attachment_meta"',
        'Content-Disposition: form-data; name="files"; filename="a.csv"\r\nContent-Type: text/csv',
        'Content-Disposition: form-data; name="files"; filename="../x.png"',
        "Content-Disposition: form-data; name=\"files\"; filename*=utf-8''%FF%00",
        "Content-Disposition: form-data",
        'Content-Disposition: form-data; name="message"\r\nContent-Transfer-Encoding: base64',
        "X-Nothing: here",
    ]
)
CONTENTS = DOCUMENTS.map(msgspec.json.encode) | st.binary(max_size=40)
PARTS = st.lists(st.tuples(PART_HEADERS, CONTENTS), max_size=4)


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
