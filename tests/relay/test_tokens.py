"""Bearer tokens: whose they are, and what is wrong with those that are nobody's."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from django.core.checks import run_checks
from django.test import RequestFactory
from pytest_django.fixtures import Settings

from relay import tokens
from relay.credentials import Credentials, Identity, identify
from relay.exceptions import CsrfFailed, RelayError, TokenInvalid, Unavailable
from relay.ingress.csrf import check_csrf
from tests.relay.issuer import AUDIENCE, CLIENT, ISSUER, Issuer, serving
from tests.waiting import eventually

SECRET = "a-secret-that-is-shared-by-both-sides-of-it"


@pytest.fixture(scope="module")
def served() -> Iterator[Issuer]:
    with serving(Issuer()) as issuer:
        yield issuer


@pytest.fixture
def issuer(served: Issuer, settings: Settings) -> Issuer:
    settings.RELAY = relay_with(TOKEN_JWKS_URL=served.url)
    served.asked, served.status = 0, 200
    return served


def relay_with(**more: Any) -> dict[str, Any]:
    return {
        "AUTHENTICATORS": ["relay.tokens.BearerToken", "relay.credentials.DjangoLogin"],
        "TOKEN_ISSUER": ISSUER,
        "TOKEN_AUDIENCES": [AUDIENCE],
        "ID_TOKEN_AUDIENCES": [CLIENT],
        **more,
    }


def who(bearer: str, id_token: str = "") -> Identity:
    identity = identify(Credentials(bearer_token=bearer, id_token=id_token))
    assert identity is not None
    return identity


def refused(bearer: str, id_token: str = "", error: type[RelayError] = TokenInvalid) -> str:
    with pytest.raises(error) as caught:
        who(bearer, id_token)
    return str(caught.value)


# --- whose it is ------------------------------------------------------------------------------------------


def test_a_token_says_who_it_is_and_what_they_may(issuer: Issuer) -> None:
    token = issuer.token(roles=["paid", "writer"], scope="chat read", preferred_username="Ada")
    assert who(token) == Identity(
        "user-ada", "Ada", "paid", ("paid", "writer"), ("chat", "read"), origin_proves=True
    )
    assert who(issuer.token()) == Identity("user-ada", "user-ada", "registered", origin_proves=True)


@pytest.mark.parametrize(
    ("roles", "user_type"),
    [(["paid", "admin"], "privileged"), ("paid", "paid"), (["other"], "registered"), (7, "registered")],
)  # fmt: skip
def test_the_highest_role_makes_the_type(issuer: Issuer, roles: Any, user_type: str) -> None:
    assert who(issuer.token(roles=roles)).user_type == user_type


def test_roles_may_stand_deeper_or_under_a_name_with_colons(issuer: Issuer, settings: Settings) -> None:
    token = issuer.token(**{"realm_access": {"roles": ["staff"]}, "cognito:groups": ["vip"]})
    for path, role in (("realm_access.roles", "staff"), ("cognito:groups", "vip")):
        settings.RELAY = relay_with(
            TOKEN_JWKS_URL=issuer.url, TOKEN_ROLES_CLAIM=path, TOKEN_ROLES={role: "privileged"}
        )
        assert who(token).user_type == "privileged"


def test_the_id_token_names_the_user(issuer: Issuer) -> None:
    named = issuer.token(aud=CLIENT, email="ada@example.com")
    assert who(issuer.token(), named).username == "ada@example.com"
    assert who(issuer.token(), issuer.token(aud=CLIENT, name="x" * 300)).username == "x" * 150
    assert "another user's" in refused(issuer.token(), issuer.token(aud=CLIENT, sub="user-eve"))
    assert "id token is for another service" in refused(issuer.token(), issuer.token())
    assert "send the access token" in refused("", named)


def test_a_token_in_a_cookie_needs_the_proof_of_the_page(issuer: Issuer, settings: Settings) -> None:
    settings.CORS_ALLOWED_ORIGINS = ["https://app.example.com"]
    factory = RequestFactory()
    factory.cookies["__Secure-LATC"] = issuer.token()

    def posted(**headers: str) -> None:
        request = factory.post("/sse/chat", "{}", content_type="application/json", headers=headers)
        identity = identify(Credentials.from_request(request))
        assert identity is not None
        assert identity.by_cookie
        check_csrf(request, origin_proves=identity.origin_proves)

    posted(Origin="https://app.example.com")
    posted(Origin="http://testserver")
    for headers in ({}, {"Origin": "https://evil.example.com"}, {"Origin": "null"}):
        with pytest.raises(CsrfFailed):
            posted(**headers)
    request = factory.post("/sse/chat", headers={"Authorization": f"Bearer {issuer.token()}"})
    sent = identify(Credentials.from_request(request))
    assert sent is not None
    assert not sent.by_cookie


# --- what is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "sentence"),
    [
        ({"exp": 1_000_000_000}, "has expired"),
        ({"exp": None}, "has no claim 'exp'"),
        ({"sub": None}, "has no claim 'sub'"),
        ({"nbf": 9_000_000_000}, "is not valid yet"),
        ({"aud": "other-api"}, "is for another service"),
        ({"aud": None}, "has no claim 'aud'"),
        ({"iss": "https://evil.example.com/"}, "an issuer that is not trusted"),
        ({"iss": None}, "has no claim 'iss'"),
        ({"sub": ""}, "cannot be a user's id"),
        ({"sub": "x" * 151}, "cannot be a user's id"),
        ({"sub": "a\nb"}, "cannot be a user's id"),
        ({"sub": "17"}, "another account of this site"),
        ({"sub": "webchat:6f1c"}, "another account of this site"),
    ],
)
def test_what_is_wrong_with_a_token_is_said(issuer: Issuer, claims: dict[str, Any], sentence: str) -> None:
    assert sentence in refused(issuer.token(**claims))


def test_the_clocks_may_differ_a_little(issuer: Issuer) -> None:
    assert who(issuer.token(exp=time.time() - 10, nbf=time.time() + 10)).user_id == "user-ada"


def test_a_prefix_makes_subjects_that_are_numbers_ones_own(issuer: Issuer, settings: Settings) -> None:
    settings.RELAY = relay_with(TOKEN_JWKS_URL=issuer.url, TOKEN_USER_PREFIX="sso:")
    assert who(issuer.token(sub="17")).user_id == "sso:17"


@pytest.mark.parametrize("token", ["x", "a.b.c", "e30.e30.", "....", "é.ü.ö", "x" * 8000])
def test_what_is_no_token_is_refused(issuer: Issuer, token: str) -> None:
    assert "cannot be read" in refused(token) or "does not name the key" in refused(token)


def test_forged_tokens_are_refused(issuer: Issuer) -> None:
    stranger = Issuer()
    assert "signature that is wrong" in refused(stranger.token(kid=issuer.kid))
    assert "not known here" in refused(stranger.token(kid="key-of-mine"))
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "user-ada", "exp": time.time() + 60}
    unsigned = jwt.encode(claims, None, "none", headers={"kid": issuer.kid})
    assert "signed in a way that is not accepted" in refused(unsigned)
    # The public key, taken for a shared secret.
    secret = issuer.keys[issuer.kid].public_key().public_numbers().n.to_bytes(256, "big")
    confused = jwt.encode(claims, secret, "HS256", headers={"kid": issuer.kid})
    assert "signed in a way that is not accepted" in refused(confused)


# --- keys ---------------------------------------------------------------------------------------------------


def test_keys_are_fetched_once_and_again_for_a_new_one(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        who(issuer.token())
    assert issuer.asked == 1
    issuer.rotate()
    # Within half a minute nobody looks again: anybody could name keys that there are not.
    assert "not known here" in refused(issuer.token())
    assert issuer.asked == 1
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 40)
    assert who(issuer.token()).user_id == "user-ada"
    assert issuer.asked == 2


def test_while_the_keys_cannot_be_fetched_the_known_ones_serve(
    issuer: Issuer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.RELAY = relay_with(TOKEN_JWKS_URL=issuer.url, TOKEN_JWKS_SECONDS=5.0)
    who(issuer.token())
    issuer.status = 500
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 1000)
    for _ in range(5):
        assert who(issuer.token()).user_id == "user-ada"
    # It was tried once, and is not for a while.
    assert issuer.asked == 2
    assert "right now" in refused(issuer.token(kid="new-one"), error=Unavailable)


@pytest.mark.parametrize("lifespan", [5.0, 5000.0])
def test_whose_key_is_known_waits_for_nobodys_fetch(
    issuer: Issuer, settings: Settings, monkeypatch: pytest.MonkeyPatch, lifespan: float
) -> None:
    settings.RELAY = relay_with(
        TOKEN_JWKS_URL=issuer.url, TOKEN_JWKS_SECONDS=lifespan, TOKEN_JWKS_TIMEOUT_SECONDS=60.0
    )
    who(issuer.token())
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 1000)
    known, unknown = issuer.token(), issuer.token(kid="new-one")
    issuer.answers.clear()
    refusals: list[str] = []
    asking = threading.Thread(target=lambda: refusals.append(refused(unknown)))
    asking.start()
    try:
        eventually(lambda: issuer.asked == 2, what="a look for the new key")
        assert who(known).user_id == "user-ada"
        assert not refusals, "the other one still waits"
    finally:
        issuer.answers.set()
        asking.join()
    assert "not known here" in refusals[0]


def test_without_any_key_so_far_the_answer_is_503(issuer: Issuer) -> None:
    issuer.status = 500
    assert "right now" in refused(issuer.token(), error=Unavailable)


def test_a_key_of_the_settings_serves_as_well(issuer: Issuer, settings: Settings) -> None:
    public = issuer.keys[issuer.kid].public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = public.public_bytes(serialization.Encoding.PEM, form).decode()
    settings.RELAY = relay_with(TOKEN_KEY=pem)
    assert who(issuer.token()).user_id == "user-ada"
    settings.RELAY = relay_with(TOKEN_KEY=SECRET)
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "user-ada", "exp": time.time() + 60}
    assert who(jwt.encode(claims, SECRET, "HS256")).user_id == "user-ada"
    assert "not accepted" in refused(issuer.token())
    assert issuer.asked == 0


# --- checks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"TOKEN_KEY": SECRET}, []),
        ({}, ["relay.E005"]),
        ({"TOKEN_KEY": SECRET, "TOKEN_JWKS_URL": "https://x/"}, ["relay.E005"]),
        ({"TOKEN_JWKS_URL": "file:///etc/passwd"}, ["relay.E006"]),
        ({"TOKEN_KEY": SECRET, "TOKEN_ALGORITHMS": ["RS256"]}, ["relay.E007"]),
        ({"TOKEN_JWKS_URL": "https://x/", "TOKEN_ALGORITHMS": ["HS256"]}, ["relay.E007"]),
        ({"TOKEN_JWKS_URL": "http://x/"}, ["relay.W003"]),
        ({"TOKEN_KEY": SECRET, "TOKEN_ISSUER": ""}, ["relay.W002"]),
        ({"TOKEN_KEY": SECRET, "TOKEN_ROLES": {"boss": "king"}}, ["relay.E004"]),
    ],
)  # fmt: skip
def test_wrong_settings_are_told(settings: Settings, options: dict[str, Any], found: list[str]) -> None:
    settings.RELAY = relay_with(**options)
    told = [message.id for message in run_checks(include_deployment_checks=True)]
    assert [id for id in told if id and id.startswith("relay.")] == found


def test_algorithms_are_never_the_tokens_choice(settings: Settings) -> None:
    for options, expected in (
        ({"TOKEN_KEY": SECRET}, tokens.SYMMETRIC),
        ({"TOKEN_KEY": "-----BEGIN PUBLIC KEY-----"}, tokens.ASYMMETRIC),
        ({"TOKEN_JWKS_URL": "https://x/"}, tokens.ASYMMETRIC),
        ({"TOKEN_JWKS_URL": "https://x/", "TOKEN_ALGORITHMS": ["ES256"]}, ("ES256",)),
    ):
        settings.RELAY = relay_with(**options)
        assert tokens.algorithms_of(tokens.relay_settings()) == expected
