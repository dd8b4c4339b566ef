"""Operations of bundles over HTTP: who may call them, where their events go, and how they fail."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import override_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comm.bundles import Bundle, operation
from comm.bundles.operations import operations_of
from comm.models import Message, Turn
from tests.relay.ingress.operating import Operating
from tests.relay.ingress.visitors import Visitor

MakeVisitor = Callable[..., Visitor]
BUNDLES = {"operating": "tests.relay.ingress.operating.Operating"}


@pytest.fixture(autouse=True)
def operating() -> Iterator[None]:
    with override_settings(
        COMM={"BUNDLES": BUNDLES, "DEFAULT_BUNDLE": "operating"}, RELAY={"OPERATION_SECONDS": 0.3}
    ):
        yield


def path(name: str, bundle: str = "operating", tenant: str = "acme", project: str = "web") -> str:
    return f"/api/integrations/bundles/{tenant}/{project}/{bundle}/operations/{name}"


def call(visitor: Visitor, name: str, body: Any = None, **headers: str) -> Any:
    return visitor.client.post(
        path(name),
        {"data": body or {}},
        content_type="application/json",
        headers={**visitor.headers, **headers},
    )


def refused(response: Any, status: int, error_type: str) -> str:
    assert response.status_code == status, response.content
    detail = response.json()["detail"]
    assert detail["error_type"] == error_type
    return str(detail["error"])


# --- answered -----------------------------------------------------------------------------------------------


def test_an_operation_answers_with_its_result(visitor: Visitor) -> None:
    response = call(visitor, "echo", {"rows": [1, 2]}, **{"X-User-UTC-Offset": "60"})
    assert response.status_code == 200
    document = response.json()
    assert (document["status"], document["bundle_id"], document["operation"]) == ("ok", "operating", "echo")
    assert document["result"]["data"] == {"rows": [1, 2]}
    assert (document["result"]["tenant"], document["result"]["project"]) == ("acme", "web")
    assert response["X-Session-ID"] == visitor.session.session_id


def test_a_get_s_query_is_the_data_without_what_says_who_asks(visitor: Visitor) -> None:
    session_id = visitor.session.session_id
    response = visitor.client.get(path("echo"), {"limit": "5", "user_session_id": session_id})
    assert response.status_code == 200, response.content
    assert response.json()["result"]["data"] == {"limit": "5"}


def test_a_synchronous_operation_may_use_the_database_and_emit(visitor: Visitor) -> None:
    assert call(visitor, "rows").json()["result"] == 0
    assert [told.envelope["event"]["title"] for told in visitor.told("chat.step")] == ["Counting"]


def test_events_go_to_the_named_peer_alone_unless_they_are_for_all(visitor: Visitor) -> None:
    assert call(visitor, "tell-me", **{"KDC-Stream-ID": visitor.stream_id}).json()["result"] == "told"
    assert [(t.type, t.target_sid) for t in visitor.told()] == [
        ("chat.step", visitor.stream_id),
        ("all.tabs", None),
    ]
    (step, _) = visitor.told()
    assert step.envelope["conversation"]["turn_id"] == ""


def test_events_go_to_the_session_without_a_peer(visitor: Visitor) -> None:
    call(visitor, "tell-me")
    assert [told.target_sid for told in visitor.told()] == [None, None]


def test_the_peer_of_another_session_gets_nothing(make_visitor: MakeVisitor) -> None:
    visitor, stranger = make_visitor(), make_visitor()
    response = call(visitor, "tell-me", **{"KDC-Stream-ID": stranger.stream_id})
    assert response.status_code == 200
    assert stranger.told() == []
    assert [told.type for told in visitor.told()] == ["chat.step", "all.tabs"]


def test_an_operation_may_speak_of_a_conversation_of_the_caller(make_visitor: MakeVisitor) -> None:
    visitor, stranger = make_visitor(), make_visitor()
    conversation_id = visitor.say().json()["conversation_id"]
    body = {"data": {}, "conversation_id": conversation_id}
    assert visitor.ask(path("echo"), body).json()["result"]["conversation_id"] == conversation_id
    assert refused(stranger.ask(path("echo"), body), 404, "not_found") == "There is no such conversation."


# --- refused ------------------------------------------------------------------------------------------------


def test_unknown_bundles_and_operations_are_named(visitor: Visitor) -> None:
    assert "'nothing'" in refused(visitor.ask(path("echo", bundle="nothing")), 404, "not_found")
    sentence = refused(call(visitor, "nothing"), 404, "not_found")
    assert "echo" in sentence
    assert refused(call(visitor, "_run"), 404, "not_found")
    assert refused(call(visitor, "run"), 404, "not_found")


def test_a_method_that_is_not_answered_is_405(visitor: Visitor) -> None:
    response = visitor.get(path("tell-me"))
    refused(response, 405, "method_not_allowed")
    assert response["Allow"] == "POST"
    assert visitor.told() == []


def test_an_operation_for_some_is_for_nobody_else(make_visitor: MakeVisitor) -> None:
    refused(call(make_visitor(), "secret"), 403, "operation_denied")
    User.objects.create(username="boss", is_staff=True)
    boss = make_visitor("boss")
    boss.client.handler.enforce_csrf_checks = False
    assert boss.get(path("secret")).json()["result"] == "the secret"


def test_nobody_is_asked_who_they_are(visitor: Visitor) -> None:
    visitor.client.cookies.clear()
    response = visitor.client.post(path("echo"), {}, content_type="application/json")
    refused(response, 401, "session_required")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b"[]", "body"),
        (b'{"data": [1]}', "data"),
        (b'{"data": {"a": "\\u0000"}}', "data.a"),
        (b'{"data": {}, "conversation_id": 5}', "conversation_id"),
    ],
)
def test_a_malformed_body_is_named(visitor: Visitor, body: bytes, field: str) -> None:
    response = visitor.client.post(
        path("echo"), body, content_type="application/json", headers=visitor.headers
    )
    refused(response, 400, "bad_request")
    assert response.json()["detail"]["field"] == field


def test_a_name_that_names_nothing_is_404(visitor: Visitor) -> None:
    refused(visitor.ask(path("echo", tenant="t" * 101)), 404, "not_found")
    refused(visitor.ask(path("echo", project="a%00b")), 404, "not_found")


def test_a_login_by_cookie_needs_the_page_s_token_to_post(make_visitor: MakeVisitor) -> None:
    visitor = make_visitor("ada")
    visitor.client.handler.enforce_csrf_checks = True
    refused(call(visitor, "echo"), 403, "csrf_failed")
    assert visitor.get(path("echo")).status_code == 200


def test_a_bundle_refuses_in_its_own_words(visitor: Visitor) -> None:
    assert refused(call(visitor, "refuse"), 409, "table_empty") == "The table has no rows."


@pytest.mark.parametrize("name", ["fail", "inner_timeout"])
def test_a_failing_operation_is_502_and_tells_no_secret(
    visitor: Visitor, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    response = call(visitor, name)
    refused(response, 502, "operation_failed")
    assert b"nobody should read" not in response.content
    assert "Operation " in caplog.text


def test_an_operation_that_takes_too_long_is_ended(visitor: Visitor) -> None:
    Operating.cancelled.clear()
    refused(call(visitor, "hang"), 504, "operation_timeout")
    assert Operating.cancelled.wait(5)
    assert call(visitor, "echo").status_code == 200


def test_a_result_that_json_cannot_hold_is_said(visitor: Visitor) -> None:
    assert "cannot be written as JSON" in refused(call(visitor, "unwritable"), 502, "operation_failed")


def test_calls_have_a_rate_of_their_own(visitor: Visitor) -> None:
    with override_settings(RELAY={"OPERATION_RATE": "2/minute", "MESSAGE_RATE": "1/minute"}):
        assert [call(visitor, "echo").status_code for _ in range(2)] == [200, 200]
        response = call(visitor, "echo")
        assert "operations" in refused(response, 429, "rate_limited")
        assert int(response["Retry-After"]) > 0
        assert visitor.say().status_code == 200


def test_nothing_is_stored_by_an_operation(visitor: Visitor) -> None:
    call(visitor, "tell-me")
    assert not Turn.objects.exists()
    assert not Message.objects.exists()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_no_body_is_a_server_error(visitor: Visitor, body: bytes) -> None:
    response = visitor.client.post(
        path("echo"), body, content_type="application/json", headers=visitor.headers
    )
    assert response.status_code in (200, 400)


# --- declaring ----------------------------------------------------------------------------------------------


def test_operations_are_inherited_and_may_be_withdrawn() -> None:
    class Parent(Bundle):
        @operation
        async def one(self, call: Any) -> None: ...

        @operation
        async def two(self, call: Any) -> None: ...

    class Child(Parent):
        async def two(self, call: Any) -> None: ...

    assert set(operations_of(Parent())) == {"one", "two"}
    assert set(operations_of(Child())) == {"one"}


def test_a_method_that_http_does_not_know_is_an_error_where_it_is_declared() -> None:
    with pytest.raises(ValueError, match="methods"):
        operation(methods=("DELETE",))  # type: ignore[arg-type]
