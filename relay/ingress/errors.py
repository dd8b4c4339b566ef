"""Every error as JSON: for the REST framework, and for what Django itself refuses before a view is asked."""

import logging
from typing import Any

from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.views import defaults
from django.views.csrf import csrf_failure as django_csrf_failure
from rest_framework.exceptions import APIException
from rest_framework.response import Response

from relay.exceptions import BadRequest, CsrfFailed, MessageTooLarge, NotFound, RelayError, Unavailable

logger = logging.getLogger(__name__)

JSON_PATHS = ("/sse/", "/api/", "/profile", "/health")
"""Where clients are programs; elsewhere Django's pages are for people."""
UNAVAILABLE_RETRY_SECONDS = 5


class Internal(RelayError):
    """Something failed that should not; what, is in the log."""

    status, code = 500, "internal_error"


class Refused(RelayError):
    """Django refused the request before a view was asked."""

    status, code = 403, "forbidden"


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """Answer what a view raised; None leaves it to Django, which logs it and answers 500."""
    known = _known(error)
    if known is not None:
        return Response(known.document(), known.status, headers=known.headers())
    if isinstance(error, APIException):
        detail = {"error": str(error.detail), "error_type": error.default_code}
        return Response({"detail": detail}, error.status_code)
    return None


def _known(error: Exception) -> RelayError | None:
    if isinstance(error, RelayError):
        return error
    if isinstance(error, Http404):
        return NotFound("There is nothing here.")
    if isinstance(error, RequestDataTooBig):
        return MessageTooLarge("The body is too large.")
    if isinstance(error, SuspiciousOperation):
        return BadRequest("request", "is not well-formed")
    if isinstance(error, (OperationalError, InterfaceError)):
        logger.error("The database does not answer", exc_info=error)
        return Unavailable("The database does not answer.", retry_after=UNAVAILABLE_RETRY_SECONDS)
    return None


def _wants_json(request: HttpRequest) -> bool:
    return request.path.startswith(JSON_PATHS)


def _reply(error: RelayError) -> HttpResponse:
    status, headers, body = error.render()
    return HttpResponse(body, status=status, headers=headers)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """`handler400` of the project."""
    if _wants_json(request):
        return _reply(BadRequest("request", "is not well-formed"))
    return defaults.bad_request(request, exception)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """`handler403` of the project."""
    if _wants_json(request):
        return _reply(Refused("This is not allowed."))
    return defaults.permission_denied(request, exception)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """`handler404` of the project."""
    if _wants_json(request):
        return _reply(NotFound("There is nothing here."))
    return defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """`handler500` of the project."""
    if _wants_json(request):
        return _reply(Internal("Something failed on the server; it is in the log."))
    return defaults.server_error(request)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """`CSRF_FAILURE_VIEW` of the project."""
    if _wants_json(request):
        return _reply(CsrfFailed("The CSRF token is missing or wrong; reload the page.", reason=reason))
    return django_csrf_failure(request, reason=reason)
