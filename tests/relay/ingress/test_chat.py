"""POST /sse/chat: acknowledgements, refusals, and what the sending stream is told of them."""

from collections.abc import Callable
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from pytest_django.fixtures import Settings

from comm.models import Attachment, Conversation, Message, Turn
from relay.conf import MIB
from relay.ingress.bodies import body_limit
from tests.relay.ingress.visitors import Visitor

MakeVisitor = Callable[..., Visitor]

GEN_1_KEYS = {
    "status", "task_id", "session_id", "conversation_id", "turn_id", "active_turn_id", "target_turn_id",
    "queued_turn_id", "event_id", "external_event_sequence", "live_owner_detected", "conversation_created",
    "user_type", "message_kind", "message",
}  # fmt: skip
GEN_2_KEYS = GEN_1_KEYS - {"message_kind"} | {"is_continuation"}


def prompt(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    return {"type": "event.user.prompt", "payload": {"mime": "text/plain", "event": {"text": text}}, **fields}


def refused(visitor: Visitor, response: Any, status: int, error_type: str, field: str = "") -> dict[str, Any]:
    """Check a refusal: its HTTP reply, its chat_error on the sending stream, and that nothing was stored."""
    assert response.status_code == status, response.content
    detail: dict[str, Any] = response.json()["detail"]
    assert detail["error_type"] == error_type
    assert detail.get("field", "") == field
    assert response["X-Session-ID"] == visitor.session.session_id
    assert response["X-User-Type"] == visitor.session.user_type
    (told,) = visitor.told("chat.error")
    assert (told.route, told.target_sid) == ("chat_error", visitor.stream_id)
    assert told.data == {**detail, "status": status}
    assert (response.headers.get("Retry-After") is not None) == (status in (429, 503))
    assert not Turn.objects.exists()
    assert not Message.objects.exists()
    return detail


# --- accepted -------------------------------------------------------------------------------------


def test_a_first_message_starts_a_turn(visitor: Visitor) -> None:
    response = visitor.say("Hello", config={"pace_ms": 0})
    assert response.status_code == 200, response.content
    ack = response.json()
    assert set(ack) == GEN_1_KEYS
    assert (ack["status"], ack["conversation_created"]) == ("processing_started", True)
    assert (ack["session_id"], ack["user_type"]) == (visitor.session.session_id, "anonymous")
    assert response["X-Session-ID"] == visitor.session.session_id
    assert response["X-User-Type"] == "anonymous"
    turn = Turn.objects.get(turn_id=ack["turn_id"])
    assert turn.origin_stream_id == visitor.stream_id
    assert turn.conversation.conversation_id == ack["conversation_id"]
    assert visitor.told("chat.error") == []


def test_a_message_inherits_the_scope_of_its_stream(visitor: Visitor) -> None:
    visitor.say()
    conversation = Conversation.objects.get()
    assert (conversation.tenant, conversation.project) == ("acme", "web")


def test_a_message_may_name_its_scope_and_without_either_there_is_the_default(
    visitor: Visitor, settings: Settings
) -> None:
    visitor.say(tenant="other", project="app")
    assert (Conversation.objects.get().tenant, Conversation.objects.get().project) == ("other", "app")
    Conversation.objects.all().delete()
    visitor.close_stream()
    visitor.say()
    conversation = Conversation.objects.get()
    assert (conversation.tenant, conversation.project) == (settings.DEFAULT_TENANT, settings.DEFAULT_PROJECT)


def test_the_stream_of_another_session_gives_no_scope(visitor: Visitor, make_visitor: MakeVisitor) -> None:
    other = make_visitor(tenant="secret", project="secret")
    visitor.stream_id = other.stream_id
    visitor.say()
    assert Conversation.objects.get().tenant != "secret"


def test_an_unmarked_message_to_a_busy_conversation_is_a_followup(visitor: Visitor) -> None:
    first = visitor.say().json()
    second = visitor.say("And?", conversation_id=first["conversation_id"]).json()
    assert second["status"] == "followup_accepted"
    assert second["active_turn_id"] == first["turn_id"]
    assert second["queued_turn_id"] == second["turn_id"] != first["turn_id"]
    assert second["conversation_created"] is False


def test_generation_2_is_accepted_with_its_own_keys(visitor: Visitor) -> None:
    first = visitor.tell(prompt()).json()
    assert set(first) == GEN_2_KEYS
    assert (first["status"], first["is_continuation"]) == ("processing_started", False)
    second = visitor.tell(prompt("And?"), conversation_id=first["conversation_id"]).json()
    assert (second["status"], second["is_continuation"]) == ("external_event_accepted", True)


def test_generation_2_without_a_reactive_event_is_recorded(visitor: Visitor) -> None:
    ack = visitor.tell({"type": "app.opened", "payload": {"page": 1}}).json()
    assert ack["status"] == "external_event_recorded"
    assert not Turn.objects.exists()


def test_a_steer_with_nothing_to_steer_does_nothing(visitor: Visitor) -> None:
    ack = visitor.say("", message_kind="steer", conversation_id="c-1").json()
    assert ack["status"] == "active_turn_control_no_active_turn"
    assert not Turn.objects.exists()


def test_a_form_brings_files_for_generation_1(visitor: Visitor) -> None:
    response = visitor.submit(
        SimpleUploadedFile("data.csv", b"a,b\n1,2\n", "application/vnd.ms-excel"),
        SimpleUploadedFile("empty.txt", b""),
        SimpleUploadedFile("notes", b"a,b", "application/octet-stream"),
        message={"message": {"text": "Read these"}},
        attachment_meta=[{"filename": "notes", "mime": "text/csv"}],
    )
    assert response.status_code == 200, response.content
    kept = [(a.filename, a.mime, a.size) for a in Attachment.objects.order_by("id")]
    assert kept == [("data.csv", "text/csv", 8), ("notes", "text/csv", 3)]


@pytest.mark.parametrize(
    "document", [{"text": "Hello"}, {"message": "Hello"}, {"message": {"text": "Hello"}}]
)
def test_the_message_field_of_a_form_is_the_body_or_the_message(visitor: Visitor, document: Any) -> None:
    assert visitor.submit(message=document).status_code == 200
    assert Message.objects.get().content == "Hello"


def test_a_form_brings_files_for_generation_2(visitor: Visitor) -> None:
    attachment = {"type": "event.user.attachment.file", "payload": {"mime": "text/csv", "filename": "t"}}
    response = visitor.submit(
        SimpleUploadedFile("t", b"a,b"), event_submission={"external_events": [prompt(), attachment]}
    )
    assert response.status_code == 200, response.content
    assert set(response.json()) == GEN_2_KEYS
    assert Attachment.objects.get().mime == "text/csv"


def test_a_file_alone_is_a_message(visitor: Visitor) -> None:
    response = visitor.submit(SimpleUploadedFile("a.txt", b"Hello"), message={"message": {}, "text": ""})
    assert response.status_code == 200, response.content


def test_an_idempotency_key_starts_one_turn(visitor: Visitor) -> None:
    key = {"Idempotency-Key": "k-1"}
    first, second = (visitor.post({"message": {"text": "Hi"}}, **key) for _ in range(2))
    assert first.json() == second.json()
    assert Turn.objects.count() == 1


def test_a_user_is_known_by_name_in_what_is_stored(make_visitor: MakeVisitor) -> None:
    ada = make_visitor("ada")
    ack = ada.say().json()
    assert ack["user_type"] == "registered"
    assert Message.objects.get().author == "ada"
    assert Conversation.objects.get().owner == ada.session.user_id


def test_the_users_clock_travels_with_the_turn(visitor: Visitor) -> None:
    headers = {"X-User-Timezone": "Europe/Berlin", "X-User-UTC-Offset": "60"}
    visitor.post({"message": {"text": "Hi"}}, **headers)
    request = Turn.objects.get().request
    assert request["timezone"] == "Europe/Berlin"
    assert request["utc_offset_min"] == 60


@pytest.mark.parametrize("offset", ["", "abc", "9999", "-9999", "1e3"])
def test_an_offset_that_no_clock_has_is_none(visitor: Visitor, offset: str) -> None:
    assert visitor.post({"message": {"text": "Hi"}}, **{"X-User-UTC-Offset": offset}).status_code == 200
    assert Turn.objects.get().request["utc_offset_min"] is None


# --- who ------------------------------------------------------------------------------------------


def test_a_post_without_credentials_belongs_to_its_open_anonymous_stream(visitor: Visitor) -> None:
    visitor.headers = {}
    response = visitor.say()
    assert response.status_code == 200
    assert response["X-Session-ID"] == visitor.session.session_id


def test_a_post_without_credentials_or_stream_is_refused(visitor: Visitor) -> None:
    visitor.headers = {}
    visitor.close_stream()
    response = visitor.say()
    assert response.status_code == 401
    assert response.json()["detail"]["error_type"] == "session_required"
    assert "X-Session-ID" not in response
    assert visitor.told() == []


def test_the_stream_is_required(visitor: Visitor) -> None:
    visitor.stream_id = ""
    for body in ({"message": {"text": "Hi"}}, b"{"):
        response = visitor.post(body)
        assert response.status_code == 422
        assert response.json()["detail"]["error"].startswith("stream_id: ")
    visitor.stream_id = "x" * 201
    assert visitor.say().status_code == 422


def test_the_stream_may_be_named_by_a_header(visitor: Visitor) -> None:
    visitor.headers["KDC-Stream-ID"], visitor.stream_id = visitor.stream_id, ""
    assert visitor.say().status_code == 200


def test_sessions_and_tokens_that_are_not_ones_own(visitor: Visitor, make_visitor: MakeVisitor) -> None:
    visitor.headers = {"User-Session-ID": "no-such-session"}
    assert visitor.say().status_code == 401
    visitor.headers = {"User-Session-ID": make_visitor("ada").session.session_id}
    response = visitor.say()
    assert (response.status_code, response.json()["detail"]["error_type"]) == (403, "session_forbidden")
    visitor.headers = {"Authorization": "Bearer nobody-knows-it"}
    response = visitor.say()
    assert (response.status_code, response.json()["detail"]["error_type"]) == (401, "token_invalid")


def test_anonymous_messages_can_be_turned_off(visitor: Visitor, settings: Settings) -> None:
    settings.RELAY = {"REJECT_ANONYMOUS_SSE": True}
    response = visitor.say()
    assert (response.status_code, response.json()["detail"]["error_type"]) == (401, "anonymous_rejected")


def test_a_conversation_of_somebody_else_is_forbidden(visitor: Visitor, make_visitor: MakeVisitor) -> None:
    other = make_visitor()
    conversation_id = other.say().json()["conversation_id"]
    response = visitor.say("Let me in", conversation_id=conversation_id)
    assert response.status_code == 403
    detail = response.json()["detail"]
    assert detail["error_type"] == "conversation_forbidden"
    (told,) = visitor.told("chat.error")
    assert told.data["error_type"] == "conversation_forbidden"
    assert told.envelope["conversation"]["conversation_id"] == conversation_id
    assert other.told("chat.error") == []
    assert Turn.objects.count() == 1


# --- a login's cookie needs the page's token ------------------------------------------------------


def test_a_login_needs_the_csrf_token(make_visitor: MakeVisitor) -> None:
    ada = make_visitor("ada")
    login = ada.client.cookies["sessionid"].value
    ada.client = Client(enforce_csrf_checks=True)
    ada.client.cookies["sessionid"] = login
    refused(ada, ada.say(), 403, "csrf_failed")

    ada.client.cookies["csrftoken"] = token = "a" * 32
    ada.headers = {"X-CSRFToken": token}
    assert ada.say().status_code == 200
    ada.headers = {"X-CSRFToken": "b" * 32}
    assert ada.say().status_code == 403


def test_a_forms_own_csrf_token_will_do_and_a_broken_form_is_our_refusal(make_visitor: MakeVisitor) -> None:
    ada = make_visitor("ada")
    login = ada.client.cookies["sessionid"].value
    ada.client = Client(enforce_csrf_checks=True)
    ada.client.cookies["sessionid"] = login
    ada.client.cookies["csrftoken"] = token = "a" * 32
    response = ada.post(b"x", content_type="multipart/form-data; boundary=")
    refused(ada, response, 400, "bad_request", "body")
    assert ada.submit(message={"text": "Hello"}, csrfmiddlewaretoken=token).status_code == 200


def test_an_anonymous_visitor_needs_none(visitor: Visitor) -> None:
    visitor.client = Client(enforce_csrf_checks=True)
    assert visitor.say().status_code == 200


# --- what ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "message"),
        (b"{", "body"),
        (b"\xff", "body"),
        (b"[]", "body"),
        (b"{}", "message"),
        ({"message": {"text": 7}}, "message.text"),
        ({"message": {}}, "text"),
        ({"message": {"text": " \n"}}, "text"),
        ({"message": {"text": "x" * 32_001}}, "message.text"),
        ({"message": {"text": "a", "bundle_id": "no-such-bundle"}}, "bundle_id"),
        ({"external_events": []}, "external_events"),
        ({"external_events": [{"type": "event.user.prompt"}]}, "external_events[0].payload"),
        ({"external_events": [prompt("")]}, "text"),
    ],
)
def test_a_bad_body_is_refused_by_the_name_of_its_field(visitor: Visitor, body: Any, field: str) -> None:
    detail = refused(visitor, visitor.post(body), 400, "bad_request", field)
    assert detail["error"].startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "message or event_submission"),
        ({"other": "x"}, "message or event_submission"),
        ({"message": "Hello"}, "message"),
        ({"event_submission": "{"}, "event_submission"),
        ({"message": {"text": "a"}, "attachment_meta": "{"}, "attachment_meta"),
        ({"message": {"text": "a"}, "attachment_meta": {}}, "attachment_meta"),
        ({"message": {"text": "a"}, "attachment_meta": [{}]}, "attachment_meta[0].filename"),
    ],
)
def test_a_bad_form_is_refused_by_the_name_of_its_field(visitor: Visitor, fields: Any, field: str) -> None:
    refused(visitor, visitor.submit(**fields), 400, "bad_request", field)


def test_text_of_the_limit_is_taken(visitor: Visitor) -> None:
    assert visitor.say("ß" * 32_000).status_code == 200


FORM = "multipart/form-data; boundary=b"
FIELD = b'--b\r\nContent-Disposition: form-data; name="message"\r\n'


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"x", "multipart/form-data"),
        (b"x", "multipart/form-data; boundary="),
        (FIELD + b"\r\n", FORM),
        (b"--b\r\n\r\n\r\n" * 1000, FORM),
        (FIELD + b"Content-Transfer-Encoding: base64\r\n\r\n!\r\n--b--\r\n", FORM),
    ],
)
def test_a_broken_form_is_refused(visitor: Visitor, body: bytes, content_type: str) -> None:
    response = visitor.post(body, content_type=content_type)
    assert response.status_code == 400, response.content
    assert response.json()["detail"]["field"]


def test_too_many_files_are_refused(visitor: Visitor, settings: Settings) -> None:
    settings.DATA_UPLOAD_MAX_NUMBER_FILES = 2
    files = [SimpleUploadedFile(f"{i}.txt", b"x") for i in range(3)]
    refused(visitor, visitor.submit(*files, message={"text": "a"}), 400, "bad_request", "body")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "image/png"])
def test_other_media_types_are_refused(visitor: Visitor, content_type: str) -> None:
    response = visitor.post({"message": {"text": "a"}}, content_type=content_type)
    refused(visitor, response, 415, "media_type_unsupported")


def test_a_bad_attachment_refuses_the_message_and_is_announced(visitor: Visitor) -> None:
    response = visitor.submit(
        SimpleUploadedFile("good.txt", b"Hello"),
        SimpleUploadedFile("bad.png", b"Hello"),
        SimpleUploadedFile("big.pdf", b"%PDF-1.7" + b"\xff" * (10 * MIB)),
        message={"message": {"text": "Look"}},
    )
    detail = refused(visitor, response, 400, "attachment_refused", "files")
    assert [item["filename"] for item in detail["attachments"]] == ["bad.png", "big.pdf"]
    failures = visitor.told("rate_limit.attachment_failure")
    assert [told.data["attachment"] for told in failures] == detail["attachments"]
    assert {(told.route, told.target_sid) for told in failures} == {("chat_service", visitor.stream_id)}
    assert not Attachment.objects.exists()


def test_text_and_files_over_the_limit_are_refused(visitor: Visitor, settings: Settings) -> None:
    settings.RELAY = {"MESSAGE_BYTES": 1000}
    file = SimpleUploadedFile("a.txt", b"x" * 996)
    refused(visitor, visitor.submit(file, message={"text": "12345"}), 413, "message_too_large")
    file.seek(0)
    assert visitor.submit(file, message={"text": "1234"}).status_code == 200


def test_a_body_far_over_the_limit_is_refused_by_its_announced_length(visitor: Visitor) -> None:
    visitor.headers["Content-Length"] = str(body_limit() + 1)
    refused(visitor, visitor.say(), 413, "message_too_large")


def test_a_form_without_its_length_is_refused(visitor: Visitor) -> None:
    visitor.headers["Content-Length"] = ""
    refused(visitor, visitor.submit(message={"text": "a"}), 411, "length_required")


def test_a_long_idempotency_key_is_refused(visitor: Visitor) -> None:
    response = visitor.post({"message": {"text": "a"}}, **{"Idempotency-Key": "k" * 201})
    refused(visitor, response, 400, "bad_request", "Idempotency-Key")


def test_other_methods_are_refused(visitor: Visitor) -> None:
    response = visitor.get(f"/sse/chat?stream_id={visitor.stream_id}")
    assert response.status_code == 405
    assert response["Allow"] == "POST, OPTIONS"
    assert response.json()["detail"]["error_type"] == "method_not_allowed"
