"""Credentials to identity to session: the rules of who a request belongs to."""

import threading
import uuid
from collections.abc import Iterator
from datetime import timedelta

import pytest
from django.contrib.auth.models import AbstractUser, Group, User
from django.contrib.sessions.models import Session as LoginRow
from django.db import connection
from django.http import HttpRequest
from django.test import Client, RequestFactory
from django.utils import timezone
from pytest_django.fixtures import Settings

from relay.credentials import Credentials, Identity
from relay.exceptions import (
    AnonymousRejected,
    RelayError,
    SessionForbidden,
    SessionRequired,
    SessionUnknown,
    TokenInvalid,
)
from relay.models import Session
from relay.registry import StreamInfo, add_stream, remove_stream
from relay.sessions import profile_of, resolve_session

pytestmark = pytest.mark.django_db(transaction=True)

STREAM = "3e2f1bd0-0000-4000-8000-000000000001"


class TokenTable:
    """An authenticator for these tests: the token is the user's name."""

    def authenticate(self, credentials: Credentials) -> Identity | None:
        if not credentials.bearer_token.startswith("token-of-"):
            return None
        name = credentials.bearer_token.removeprefix("token-of-")
        return Identity(name, name, "registered", ("writer",), ("chat",))


@pytest.fixture
def tokens(settings: Settings) -> None:
    settings.RELAY = {"AUTHENTICATORS": [f"{__name__}.TokenTable", "relay.credentials.DjangoLogin"]}


@pytest.fixture
def anonymous() -> Session:
    return resolve_session(Credentials(), create=True)


@pytest.fixture
def open_stream(anonymous: Session) -> Iterator[StreamInfo]:
    info = StreamInfo(STREAM, anonymous.session_id, "default", "default", True)
    add_stream(info)
    yield info
    remove_stream(info)


def login_of(user: AbstractUser) -> Credentials:
    client = Client()
    client.force_login(user)
    return Credentials(login_key=client.cookies["sessionid"].value)


def make_user(name: str = "ada", **fields: bool) -> User:
    return User.objects.create_user(name, password="correct-horse", **fields)


def refusal(credentials: Credentials, error: type[RelayError], **options: bool) -> RelayError:
    before = Session.objects.count()
    with pytest.raises(error) as caught:
        resolve_session(credentials, create=options.get("create", True))
    assert Session.objects.count() == before
    return caught.value


# --- what a request presents ----------------------------------------------------------------------


def request_with(path: str = "/sse/stream", **options: object) -> HttpRequest:
    return RequestFactory().get(path, **options)  # type: ignore[arg-type]


def test_tokens_come_from_the_first_source_that_has_one() -> None:
    query = "/sse/stream?bearer_token=q-access&id_token=q-id&user_session_id=s-1"
    request = request_with(query, headers={"Authorization": "Bearer h-access"})
    request.COOKIES = {"__Secure-LATC": "c-access", "__Secure-LITC": "c-id"}
    found = Credentials.from_request(request, query_tokens=True)
    assert (found.bearer_token, found.id_token, found.session_id) == ("h-access", "", "s-1")

    request = request_with(query)
    request.COOKIES = {"__Secure-LATC": "c-access", "__Secure-LITC": "c-id"}
    found = Credentials.from_request(request, query_tokens=True)
    assert (found.bearer_token, found.id_token) == ("q-access", "q-id")
    found = Credentials.from_request(request)
    assert (found.bearer_token, found.id_token, found.session_id) == ("c-access", "c-id", "")


def test_names_of_headers_and_cookies_are_settings(settings: Settings) -> None:
    settings.RELAY = {"AUTH_TOKEN_COOKIE_NAME": "access", "ID_TOKEN_HEADER_NAME": "X-Who"}
    request = request_with(headers={"X-Who": "id"})
    assert Credentials.from_request(request).id_token == "id"
    request = request_with()
    request.COOKIES = {"access": "token"}
    assert Credentials.from_request(request).bearer_token == "token"


@pytest.mark.parametrize("value", ["", "  ", "a\0b", "a\nb", "x" * 9000])
def test_what_could_be_no_credential_is_none(value: str) -> None:
    request = request_with()
    request.COOKIES = {"backchannel_session": value, "sessionid": value, "__Secure-LATC": value}
    found = Credentials.from_request(request)
    assert (found.cookie_session_id, found.login_key, found.bearer_token) == ("", "", "")


def test_other_authorization_schemes_are_no_token() -> None:
    request = request_with(headers={"Authorization": "Basic dXNlcjpwYXNz"})
    assert Credentials.from_request(request).bearer_token == ""


def test_a_stream_may_stand_for_a_session_on_post_alone() -> None:
    path = f"/sse/chat?stream_id={STREAM}"
    assert Credentials.from_request(RequestFactory().post(path)).stream_id == STREAM
    assert Credentials.from_request(RequestFactory().get(path)).stream_id == ""


# --- anonymous ------------------------------------------------------------------------------------


def test_an_anonymous_session_is_made_once_and_found_by_its_id(anonymous: Session) -> None:
    assert uuid.UUID(anonymous.session_id).version == 4
    assert anonymous.is_anonymous
    assert anonymous.owner == anonymous.session_id
    for credentials in (
        Credentials(session_id=anonymous.session_id),
        Credentials(cookie_session_id=anonymous.session_id),
        Credentials(session_id=anonymous.session_id, cookie_session_id="other"),
    ):
        assert resolve_session(credentials, create=False) == anonymous


def test_an_unknown_named_session_is_refused_and_an_unknown_cookie_is_none() -> None:
    error = refusal(Credentials(session_id=str(uuid.uuid4())), SessionUnknown)
    assert (error.status, error.code) == (401, "session_unknown")
    session = resolve_session(Credentials(cookie_session_id="gone"), create=True)
    assert session.session_id != "gone"


def test_nothing_at_all_needs_a_session_where_none_is_made() -> None:
    error = refusal(Credentials(), SessionRequired, create=False)
    assert (error.status, error.code) == (401, "session_required")


def test_an_open_stream_stands_for_its_anonymous_session(anonymous: Session, open_stream: StreamInfo) -> None:
    assert resolve_session(Credentials(stream_id=STREAM), create=False) == anonymous
    remove_stream(open_stream)
    refusal(Credentials(stream_id=STREAM), SessionRequired, create=False)


def test_a_short_stream_id_stands_for_nothing(anonymous: Session) -> None:
    info = StreamInfo("tab-1", anonymous.session_id, "default", "default", True)
    add_stream(info)
    refusal(Credentials(stream_id="tab-1"), SessionRequired, create=False)
    remove_stream(info)


def test_a_stream_of_a_user_stands_for_nothing(anonymous: Session) -> None:
    session = resolve_session(login_of(make_user()), create=True)
    info = StreamInfo(STREAM, session.session_id, "default", "default", False)
    add_stream(info)
    refusal(Credentials(stream_id=STREAM), SessionRequired, create=False)
    remove_stream(info)


def test_a_stream_id_open_in_two_anonymous_sessions_stands_for_neither(open_stream: StreamInfo) -> None:
    other = resolve_session(Credentials(), create=True)
    info = StreamInfo(STREAM, other.session_id, "default", "default", True)
    add_stream(info)
    refusal(Credentials(stream_id=STREAM), SessionRequired, create=False)
    remove_stream(info)


def test_anonymous_sessions_can_be_kept_out_of_a_transport(anonymous: Session, settings: Settings) -> None:
    settings.RELAY = {"REJECT_ANONYMOUS_SSE": True}
    error = refusal(Credentials(), AnonymousRejected)
    assert error.status == 401
    refusal(Credentials(session_id=anonymous.session_id), AnonymousRejected)
    assert resolve_session(Credentials(), create=True, transport="ws").is_anonymous
    assert resolve_session(Credentials(), create=True, transport="http").is_anonymous
    settings.RELAY = {"REJECT_ANONYMOUS_WS": True}
    with pytest.raises(AnonymousRejected):
        resolve_session(Credentials(), create=True, transport="ws")
    assert resolve_session(Credentials(), create=True, transport="sse").is_anonymous


# --- users ----------------------------------------------------------------------------------------


def test_all_logins_of_a_user_share_one_session() -> None:
    user = make_user()
    first, second = (resolve_session(login_of(user), create=False) for _ in range(2))
    assert first == second
    assert (first.user_id, first.username, first.user_type) == (str(user.pk), "ada", "registered")
    assert first.owner == str(user.pk)
    assert resolve_session(login_of(make_user("bob")), create=False) != first


@pytest.mark.parametrize(
    ("fields", "group", "user_type"),
    [
        ({}, "", "registered"),
        ({}, "editors", "registered"),
        ({}, "paid", "paid"),
        ({"is_staff": True}, "paid", "privileged"),
        ({"is_superuser": True}, "", "privileged"),
    ],
)
def test_user_types_come_from_the_account(fields: dict[str, bool], group: str, user_type: str) -> None:
    user = make_user(**fields)
    if group:
        user.groups.add(Group.objects.create(name=group))
    session = resolve_session(login_of(user), create=False)
    assert session.user_type == user_type
    assert session.roles == ([group] if group else [])


def test_what_changed_about_a_user_changes_in_the_session() -> None:
    user = make_user()
    session = resolve_session(login_of(user), create=False)
    user.groups.add(Group.objects.create(name="paid"))
    assert resolve_session(login_of(user), create=False).user_type == "paid"
    session.refresh_from_db()
    assert (session.user_type, session.roles) == ("paid", ["paid"])


def test_a_login_that_ended_is_anonymous() -> None:
    user = make_user()
    credentials = login_of(user)
    user.set_password("another")
    user.save()
    refusal(credentials, SessionRequired, create=False)
    credentials = login_of(user)
    LoginRow.objects.all().delete()
    refusal(credentials, SessionRequired, create=False)
    inactive = login_of(user)
    User.objects.update(is_active=False)
    refusal(inactive, SessionRequired, create=False)


def test_a_login_signed_by_an_older_key_goes_on_and_keeps_its_cookie(settings: Settings) -> None:
    user = make_user()
    credentials = login_of(user)
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "a new key, of course much longer than this in production"
    for _ in range(2):
        assert resolve_session(credentials, create=False).user_id == str(user.pk)


def test_a_session_of_another_user_is_forbidden(anonymous: Session) -> None:
    ada, bob = (resolve_session(login_of(make_user(name)), create=False) for name in ("ada", "bob"))
    mine = login_of(User.objects.get(username="bob"))
    named = Credentials(login_key=mine.login_key, session_id=ada.session_id)
    assert refusal(named, SessionForbidden).status == 403
    assert refusal(Credentials(session_id=ada.session_id), SessionForbidden).status == 403
    own = Credentials(login_key=mine.login_key, session_id=bob.session_id)
    assert resolve_session(own, create=False) == bob


def test_a_users_session_is_not_reached_by_the_anonymous_cookie() -> None:
    ada = resolve_session(login_of(make_user()), create=False)
    refusal(Credentials(cookie_session_id=ada.session_id), SessionRequired, create=False)


def test_an_anonymous_session_is_left_behind_at_login(anonymous: Session) -> None:
    login = login_of(make_user())
    named = Credentials(login_key=login.login_key, session_id=anonymous.session_id)
    session = resolve_session(named, create=False)
    assert session != anonymous
    anonymous.refresh_from_db()
    assert anonymous.is_anonymous


def test_a_users_first_requests_at_once_make_one_session(tokens: None) -> None:
    start = threading.Barrier(6)
    found: list[str] = []

    def first_request() -> None:
        try:
            start.wait(10)
            found.append(resolve_session(Credentials(bearer_token="token-of-eve"), create=False).session_id)
        finally:
            connection.close()

    threads = [threading.Thread(target=first_request) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 6
    assert len(set(found)) == 1


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("credentials", [Credentials(bearer_token="x"), Credentials(id_token="x")])
def test_a_token_that_nobody_knows_is_refused(credentials: Credentials) -> None:
    error = refusal(credentials, TokenInvalid)
    assert (error.status, error.code) == (401, "token_invalid")


def test_a_token_says_who_it_is_and_a_login_beside_it_does_not(tokens: None) -> None:
    login = login_of(make_user()).login_key
    session = resolve_session(Credentials(bearer_token="token-of-eve", login_key=login), create=False)
    assert (session.user_id, session.roles, session.permissions) == ("eve", ["writer"], ["chat"])
    refusal(Credentials(bearer_token="expired", login_key=login), TokenInvalid)
    assert resolve_session(Credentials(login_key=login), create=False).username == "ada"


# --- what is kept ---------------------------------------------------------------------------------


def test_last_seen_is_kept_without_a_write_for_every_request(
    anonymous: Session, django_assert_num_queries: object
) -> None:
    credentials = Credentials(session_id=anonymous.session_id)
    with django_assert_num_queries(1):  # type: ignore[operator]
        resolve_session(credentials, create=False)
    long_ago = timezone.now() - timedelta(days=2)
    Session.objects.update(last_seen_at=long_ago)
    resolve_session(credentials, create=False)
    anonymous.refresh_from_db()
    assert anonymous.last_seen_at > long_ago


def test_profiles_say_what_the_contract_says(anonymous: Session) -> None:
    assert profile_of(anonymous) == {
        "session_id": anonymous.session_id,
        "user_type": "ANONYMOUS",
        "fingerprint": "",
        "created_at": anonymous.created_at.isoformat(),
    }
    user = make_user(is_staff=True)
    session = resolve_session(login_of(user), create=False)
    assert profile_of(session) == {
        "session_id": session.session_id,
        "user_type": "PRIVILEGED",
        "user_id": str(user.pk),
        "username": "ada",
        "roles": [],
        "permissions": [],
        "created_at": session.created_at.isoformat(),
    }
