"""Draining, breaker, backlog and rate: who is refused when, and how that is told on every channel."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from pytest_django.fixtures import Settings

from comm.models import Turn
from comm.turns.incoming import Caller
from relay.gateway import zone_of
from tests.relay.ingress.visitors import Visitor


def refused(visitor: Visitor, response: Any, status: int, error_type: str, *notices: str) -> dict[str, Any]:
    """Check that reply, Retry-After, chat_error and the chat_service notices all say the same."""
    assert response.status_code == status, response.content
    detail: dict[str, Any] = response.json()["detail"]
    assert detail["error_type"] == error_type
    assert int(response["Retry-After"]) == detail["retry_after"] > 0
    assert response["X-Session-ID"] == visitor.session.session_id
    error = visitor.told("chat.error")[-1]
    assert (error.route, error.target_sid) == ("chat_error", visitor.stream_id)
    assert error.data == {**detail, "status": status}
    told = visitor.told(*notices) if notices else []
    assert [notice.type for notice in told] == list(notices)
    for notice in told:
        assert (notice.route, notice.target_sid) == ("chat_service", visitor.stream_id)
        limit = notice.data["rate_limit"]
        assert limit["retry_after_sec"] == detail["retry_after"]
        assert limit["user_message"] == detail["error"]
        assert limit["reset_text"]
    return detail


def test_draining_refuses_messages(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.lifecycle.is_draining", lambda: True)
    response = visitor.say()
    refused(visitor, response, 503, "draining")
    assert response.json()["status"] == "draining"
    assert not Turn.objects.exists()


def test_a_client_whose_stream_was_drained_hears_of_the_drain_and_not_of_a_lost_session(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor.headers = {}
    visitor.close_stream()
    assert visitor.say().status_code == 401
    monkeypatch.setattr("relay.lifecycle.is_draining", lambda: True)
    response = visitor.say()
    assert (response.status_code, response.json()["status"]) == (503, "draining")


def test_a_rate_is_counted_per_session(visitor: Visitor, make_visitor: Any, settings: Settings) -> None:
    settings.RELAY = {"MESSAGE_RATE": "2/minute", "MESSAGE_RATE_WARNING": 2.0}
    for _ in range(2):
        assert visitor.say().status_code == 200
    detail = refused(visitor, visitor.say(), 429, "rate_limited", "gateway.rate_limit", "rate_limit.denied")
    assert 0 < detail["retry_after"] <= 60
    limit = detail["rate_limit"]
    assert (limit["remaining"], limit["limit"], limit["window_sec"]) == (0, 2, 60)
    assert limit["user_message"].startswith("You have sent 2 messages per minute, which is the limit.")
    assert make_visitor().say().status_code == 200
    assert Turn.objects.count() == 3


def test_a_warning_comes_before_the_limit(visitor: Visitor, settings: Settings) -> None:
    settings.RELAY = {"MESSAGE_RATE": "5/hour", "MESSAGE_RATE_WARNING": 0.6}
    for _ in range(2):
        assert visitor.say().status_code == 200
    assert visitor.told("rate_limit.warning") == []
    for _ in range(3):
        assert visitor.say().status_code == 200
    warnings = visitor.told("rate_limit.warning")
    assert [told.data["rate_limit"]["remaining"] for told in warnings] == [2, 1, 0]
    assert {(told.route, told.target_sid) for told in warnings} == {("chat_service", visitor.stream_id)}
    assert visitor.told("rate_limit.denied") == []


def test_no_rate_is_no_limit(visitor: Visitor, settings: Settings) -> None:
    settings.RELAY = {"MESSAGE_RATE": ""}
    assert [visitor.say().status_code for _ in range(3)] == [200] * 3


@pytest.mark.parametrize(
    ("headers", "zone"),
    [
        ({"X-User-Timezone": "Asia/Kathmandu", "X-User-UTC-Offset": "60"}, ZoneInfo("Asia/Kathmandu")),
        ({"X-User-Timezone": "Mars/Olympus", "X-User-UTC-Offset": "-210"}, timedelta(minutes=-210)),
        ({"X-User-Timezone": "../../etc/passwd"}, UTC),
        ({}, UTC),
    ],
)
def test_the_reset_is_told_on_the_users_clock(
    visitor: Visitor, settings: Settings, headers: dict[str, str], zone: Any
) -> None:
    settings.RELAY = {"MESSAGE_RATE": "1/minute", "MESSAGE_RATE_WARNING": 2.0}
    visitor.headers |= headers
    visitor.say()
    limit = visitor.say().json()["detail"]["rate_limit"]
    reset_at = datetime.fromisoformat(limit["reset_at"])
    local = reset_at + zone if isinstance(zone, timedelta) else reset_at.astimezone(zone)
    assert limit["reset_text"].startswith(f"{local:%H:%M:%S}")
    assert limit["reset_text"] in limit["user_message"]


@pytest.mark.parametrize("name", ["", "a\0b", "/etc/passwd", "..", "x" * 300, "Europe", "ünbekannt"])
def test_any_name_of_a_time_zone_gives_one(name: str) -> None:
    caller = Caller("s", "s", timezone=name, utc_offset_min=90)
    assert zone_of(caller).utcoffset(None) == timedelta(minutes=90)


def test_a_backlog_refuses_messages(visitor: Visitor, settings: Settings) -> None:
    settings.RELAY = {"BACKLOG_TURNS": 2}
    for _ in range(2):
        assert visitor.say().status_code == 200
    refused(visitor, visitor.say(), 503, "backpressure", "gateway.backpressure")
    assert Turn.objects.count() == 2
    Turn.objects.update(status=Turn.Status.COMPLETED)
    assert visitor.say().status_code == 200


def test_failures_in_a_row_open_the_breaker(visitor: Visitor, settings: Settings, tmp_path: Path) -> None:
    settings.RELAY = {"BREAKER_FAILURES": 2, "BREAKER_RESET_SECONDS": 60}
    full = tmp_path / "full"
    full.touch()
    storage = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": str(full)}}
    settings.STORAGES = {**settings.STORAGES, "attachments": storage}
    for _ in range(2):
        response = visitor.submit(SimpleUploadedFile("a.txt", b"Hello"), message={"text": "Look"})
        refused(visitor, response, 503, "unavailable")
    assert not Turn.objects.exists()

    refused(visitor, visitor.say(), 503, "circuit_open", "gateway.circuit_breaker")
    settings.RELAY = {"BREAKER_FAILURES": 2}
    assert visitor.say().status_code == 200


def test_refusals_that_are_the_clients_own_do_not_open_the_breaker(
    visitor: Visitor, settings: Settings
) -> None:
    settings.RELAY = {"BREAKER_FAILURES": 1}
    assert visitor.say(bundle_id="no-such-bundle").status_code == 400
    assert visitor.say().status_code == 200


def test_a_refused_message_is_not_read(visitor: Visitor, settings: Settings) -> None:
    settings.RELAY = {"BACKLOG_TURNS": 0}
    assert visitor.post(b"{").status_code == 503


def test_a_session_that_was_told_much_hears_its_own_refusals_alone(
    visitor: Visitor, make_visitor: Callable[..., Visitor], settings: Settings
) -> None:
    other = make_visitor()
    settings.RELAY = {"BACKLOG_TURNS": 0}
    visitor.say()
    assert len(visitor.told("chat.error")) == 1
    assert other.told() == []
