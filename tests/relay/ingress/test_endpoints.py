"""The endpoints beside /sse/chat: profile, conversation state, conversations, health, the page."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from pytest_django.fixtures import Settings

from relay.models import Session
from tests.relay.ingress.visitors import Home, Visitor

MakeVisitor = Callable[..., Visitor]
pytestmark = pytest.mark.django_db(transaction=True)


def error_type(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["detail"]["error_type"]


# --- /profile -------------------------------------------------------------------------------------


def test_a_profile_makes_an_anonymous_session_and_its_cookie(client: Client) -> None:
    response = client.get("/profile")
    assert response.status_code == 200
    profile = response.json()
    assert set(profile) == {"session_id", "user_type", "fingerprint", "created_at"}
    assert profile["user_type"] == "ANONYMOUS"
    assert response["X-Session-ID"] == profile["session_id"]
    assert response["X-User-Type"] == "anonymous"
    assert "no-store" in response["Cache-Control"]
    cookie = response.cookies["backchannel_session"]
    assert cookie.value == profile["session_id"]
    assert (cookie["httponly"], cookie["samesite"]) == (True, "Lax")
    assert client.get("/profile").json() == profile
    assert Session.objects.count() == 1


def test_a_profile_of_a_user(client: Client) -> None:
    client.force_login(User.objects.create_superuser("root"))
    response = client.get("/profile")
    profile = response.json()
    assert set(profile) == {
        "session_id", "user_type", "user_id", "username", "roles", "permissions", "created_at"
    }  # fmt: skip
    assert (profile["user_type"], profile["username"]) == ("PRIVILEGED", "root")
    assert response["X-User-Type"] == "privileged"
    assert "backchannel_session" not in response.cookies


def test_a_profile_of_an_unknown_session_is_refused(client: Client) -> None:
    response = client.get("/profile", headers={"User-Session-ID": "no-such-session"})
    assert error_type(response) == (401, "session_unknown")
    assert not Session.objects.exists()


def test_a_profile_is_there_where_anonymous_streams_are_not(client: Client, settings: Settings) -> None:
    settings.RELAY = {"REJECT_ANONYMOUS_SSE": True}
    assert client.get("/profile").status_code == 200


# --- /sse/conv_status.get -------------------------------------------------------------------------

STATE = "/sse/conv_status.get"


def test_the_state_of_a_conversation_is_answered_and_told_to_the_stream(visitor: Visitor) -> None:
    ack = visitor.say().json()
    conversation = {"conversation_id": ack["conversation_id"]}
    response = visitor.ask(STATE, {**conversation, "stream_id": visitor.stream_id})
    assert response.status_code == 200, response.content
    state = response.json()
    assert set(state) == {"conversation_id", "state", "updated_at", "current_turn_id"}
    assert state["conversation_id"] == ack["conversation_id"]
    told = visitor.told("conv.status")[-1]
    assert (told.route, told.target_sid, told.data) == ("conv_status", visitor.stream_id, state)
    assert told.envelope["event"]["status"] == state["state"]
    assert told.envelope["conversation"]["conversation_id"] == ack["conversation_id"]


def test_the_state_is_told_to_nobody_without_a_stream(visitor: Visitor) -> None:
    visitor.say(tenant="default", project="default", conversation_id="c-1")
    before = len(visitor.told("conv.status"))
    assert visitor.ask(STATE, {"conversation_id": "c-1"}).status_code == 200
    assert len(visitor.told("conv.status")) == before


def test_the_state_of_the_latest_conversation_needs_no_id(visitor: Visitor) -> None:
    conversation_id = visitor.say().json()["conversation_id"]
    response = visitor.ask(f"{STATE}?stream_id={visitor.stream_id}")
    assert response.json()["conversation_id"] == conversation_id


@pytest.mark.parametrize("body", [{}, {"conversation_id": "no-such-conversation"}])
def test_an_unknown_conversation_has_no_state(visitor: Visitor, body: dict[str, str]) -> None:
    response = visitor.ask(STATE, body)
    assert error_type(response) == (404, "not_found")
    assert response["X-Session-ID"] == visitor.session.session_id


def test_a_conversation_of_somebody_else_has_no_state(visitor: Visitor, make_visitor: MakeVisitor) -> None:
    visitor.say(conversation_id="c-1")
    response = make_visitor().ask(STATE, {"conversation_id": "c-1", "tenant": "acme", "project": "web"})
    assert response.status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "body"),
        ({"conversation_id": 7}, "conversation_id"),
        ({"conversation_id": "a\0"}, "conversation_id"),
        ({"bundle_id": []}, "bundle_id"),
        ({"stream_id": {}}, "stream_id"),
        ({"stream_id": "s" * 201}, "stream_id"),
    ],
)
def test_a_bad_question_is_refused_by_the_name_of_its_field(visitor: Visitor, body: Any, field: str) -> None:
    response = visitor.ask(STATE, body)
    assert response.status_code == 400
    assert response.json()["detail"]["field"] == field


def test_the_stream_in_the_body_stands_for_its_anonymous_session(visitor: Visitor) -> None:
    visitor.say(conversation_id="c-1")
    visitor.headers = {}
    assert visitor.ask(STATE, {"conversation_id": "c-1", "stream_id": visitor.stream_id}).status_code == 200
    assert error_type(visitor.ask(STATE, {"conversation_id": "c-1"})) == (401, "session_required")


# --- /api/cb/conversations ------------------------------------------------------------------------

LIST = "/api/cb/conversations/acme/web"


def test_conversations_are_the_callers_own_in_scope(visitor: Visitor, make_visitor: MakeVisitor) -> None:
    ack = visitor.say("What is a turn?").json()
    visitor.say(tenant="other")
    make_visitor().say("Somebody else's")
    response = visitor.get(LIST)
    assert response.status_code == 200
    (item,) = response.json()["items"]
    assert set(item) >= {"conversation_id", "title", "started_at", "last_activity_at"}
    assert (item["conversation_id"], item["title"]) == (ack["conversation_id"], "What is a turn?")
    assert visitor.get(f"{LIST}?bundle_id=demo").json()["items"] == [item]
    assert visitor.get(f"{LIST}?bundle_id=other").json()["items"] == []
    assert visitor.get("/api/cb/conversations/acme/app").json() == {"items": []}


def test_a_conversation_is_fetched_with_its_messages_and_turns(visitor: Visitor) -> None:
    ack = visitor.say("What is a turn?").json()
    response = visitor.ask(f"{LIST}/{ack['conversation_id']}/fetch")
    assert response.status_code == 200, response.content
    found = response.json()
    assert found["conversation_id"] == ack["conversation_id"]
    assert [(m["role"], m["content"]) for m in found["messages"]] == [("user", "What is a turn?")]
    assert [(t["turn_id"], t["status"]) for t in found["turns"]] == [(ack["turn_id"], "accepted")]


def test_all_logins_of_a_user_see_the_same_conversations(make_visitor: MakeVisitor) -> None:
    conversation_id = make_visitor("ada").say().json()["conversation_id"]
    elsewhere = make_visitor("ada")
    assert [item["conversation_id"] for item in elsewhere.get(LIST).json()["items"]] == [conversation_id]
    assert elsewhere.ask(f"{LIST}/{conversation_id}/fetch").status_code == 200


def test_a_conversation_of_somebody_else_is_not_found(visitor: Visitor, make_visitor: MakeVisitor) -> None:
    conversation_id = visitor.say().json()["conversation_id"]
    for path in (f"{LIST}/{conversation_id}/fetch", f"{LIST}/unknown/fetch", f"{LIST}/a%00b/fetch"):
        assert error_type(make_visitor().ask(path)) == (404, "not_found")
    wrong_scope = f"/api/cb/conversations/acme/app/{conversation_id}/fetch"
    assert visitor.ask(wrong_scope).status_code == 404


def test_conversations_need_a_session(client: Client) -> None:
    assert error_type(client.get(LIST)) == (401, "session_required")
    assert error_type(client.post(f"{LIST}/c-1/fetch")) == (401, "session_required")


# --- /health, the page, and everything else -------------------------------------------------------


def test_health_says_what_this_process_does(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    response = client.get("/health")
    assert response.status_code == 200
    health = response.json()
    assert (health["status"], health["draining"]) == ("healthy", False)
    assert {"streams", "turns", "version"} <= set(health)
    monkeypatch.setattr("relay.lifecycle.is_draining", lambda: True)
    response = client.get("/health")
    assert response.status_code == 503
    assert response["Retry-After"]
    assert (response.json()["status"], response.json()["draining"]) == ("draining", True)


@pytest.mark.parametrize("accept", ["text/plain", "text/event-stream", "nonsense"])
def test_answers_are_json_whatever_is_accepted(client: Client, accept: str) -> None:
    for path in ("/health", "/profile?format=xml"):
        response = client.get(path, headers={"Accept": accept})
        assert (response.status_code, response["Content-Type"]) == (200, "application/json")


def test_the_page_brings_the_csrf_token_and_may_not_be_posted_to(client: Client, settings: Settings) -> None:
    page = {"chat.html": "{{ tenant }}/{{ project }}"}
    loaders = [("django.template.loaders.locmem.Loader", page)]
    engine = {**settings.TEMPLATES[0], "DIRS": [], "APP_DIRS": False}
    settings.TEMPLATES = [{**engine, "OPTIONS": {**engine["OPTIONS"], "loaders": loaders}}]
    response = client.get("/")
    assert response.content.decode() == f"{settings.DEFAULT_TENANT}/{settings.DEFAULT_PROJECT}"
    assert response.cookies["csrftoken"].value
    assert client.post("/").status_code == 405


@pytest.mark.parametrize("path", ["/sse/nothing", "/api/nothing", "/sse/", "/api/cb/conversations/acme"])
@pytest.mark.parametrize("debug", [True, False])
def test_an_unknown_path_is_a_404_in_json(client: Client, settings: Settings, path: str, debug: bool) -> None:
    settings.DEBUG = debug
    assert error_type(client.get(path)) == (404, "not_found")
    assert error_type(client.post(path)) == (404, "not_found")


def test_replies_may_be_read_by_the_origins_of_the_settings(client: Client, settings: Settings) -> None:
    settings.CORS_ALLOWED_ORIGINS = ["https://app.example.com"]
    origin = {"Origin": "https://app.example.com"}
    for response in (client.get("/profile", headers=origin), client.get("/api/nothing", headers=origin)):
        assert response["Access-Control-Allow-Origin"] == "https://app.example.com"
        assert response["Access-Control-Allow-Credentials"] == "true"
        exposed = {name.strip() for name in response["Access-Control-Expose-Headers"].split(",")}
        assert exposed == {"X-Session-ID", "X-User-Type", "Retry-After"}
    preflight = client.options(
        "/sse/chat?stream_id=s",
        headers={
            **origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "kdc-stream-id, x-id-token, user-session-id",
        },
    )
    allowed = preflight["Access-Control-Allow-Headers"]
    for name in ("authorization", "kdc-stream-id", "x-id-token", "user-session-id"):
        assert name in allowed
    stranger = client.get("/profile", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in stranger


def test_a_login_by_cookie_fetches_only_with_the_pages_token(make_visitor: MakeVisitor, home: Home) -> None:
    ada = make_visitor("ada")
    login = ada.client.cookies["sessionid"].value
    ada.client = Client(enforce_csrf_checks=True)
    ada.client.cookies["sessionid"] = login
    assert error_type(ada.ask(f"{LIST}/c-1/fetch")) == (403, "csrf_failed")
    assert error_type(ada.ask(STATE, {})) == (403, "csrf_failed")
    assert ada.get(LIST).status_code == 200
