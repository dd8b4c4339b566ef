"""What Django itself refuses, and what fails below the views: JSON for programs, pages for people."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory

from relay.exceptions import RelayError
from relay.ingress import errors

HANDLERS: list[tuple[Callable[[HttpRequest], HttpResponse], int, str]] = [
    (lambda request: errors.bad_request(request, SuspiciousOperation()), 400, "bad_request"),
    (lambda request: errors.permission_denied(request, PermissionError()), 403, "forbidden"),
    (lambda request: errors.csrf_failure(request, "no cookie"), 403, "csrf_failed"),
    (lambda request: errors.not_found(request, FileNotFoundError()), 404, "not_found"),
    (errors.server_error, 500, "internal_error"),
]


@pytest.mark.parametrize(("handler", "status", "error_type"), HANDLERS)
def test_programs_get_json_and_people_get_pages(
    handler: Callable[[HttpRequest], HttpResponse], status: int, error_type: str
) -> None:
    for path in ("/sse/chat", "/api/cb/x", "/profile", "/health"):
        response = handler(RequestFactory().get(path))
        assert (response.status_code, response["Content-Type"]) == (status, "application/json")
        assert json.loads(response.content)["detail"]["error_type"] == error_type
    page = handler(RequestFactory().get("/admin/"))
    assert page.status_code == status
    assert page["Content-Type"].startswith("text/html")


@pytest.mark.parametrize("failure", [OperationalError("gone"), InterfaceError("closed")])
def test_a_database_that_does_not_answer_is_a_503(failure: Exception) -> None:
    response: Any = errors.exception_handler(failure, {})
    assert response.status_code == 503
    assert response.data["detail"]["error_type"] == "unavailable"
    assert "gone" not in str(response.data)
    assert response["Retry-After"] == str(response.data["detail"]["retry_after"])


def test_a_fault_of_ours_is_left_to_django_and_its_log() -> None:
    assert errors.exception_handler(KeyError("fault"), {}) is None


def test_an_error_renders_as_a_whole_reply() -> None:
    error = RelayError("It did not work.", reason="because", retry_after=3, data={"field": "x"})
    status, headers, body = error.render()
    assert (status, headers["Retry-After"], headers["Content-Type"]) == (500, "3", "application/json")
    assert json.loads(body) == {
        "detail": {
            "error": "It did not work.",
            "error_type": "relay_error",
            "reason": "because",
            "retry_after": 3,
            "field": "x",
        }
    }
