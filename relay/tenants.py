"""For which tenant a request works, where its path says so; what a message names, comm's services go by."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import FileResponse, HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase

from comm.tenants import EVERYBODY, NOBODY, Sight, current_sight, each_within, nobody, see

AUDIT = "comm.audit_every_tenant"
"""Whoever has this permission sees every tenant's rows in the admin."""
TENANT_CHARACTERS = 100


class TenantMiddleware:
    """Lets a request begin with nobody's rows, and see those of the tenant in its path; an auditor's sees all.

    An auditor is who may enter the admin and has the permission `comm.audit_every_tenant`, as superusers have.
    Nothing of it is left when the request ends; rows that are streamed after that are read under its sight.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Answer a request, in the way of the server that asks."""
        if self._is_async:
            return self._answer(request)
        with nobody():
            response: HttpResponseBase = self.get_response(request)
            return _streaming_within_sight(response)

    async def _answer(self, request: HttpRequest) -> HttpResponseBase:
        with nobody():
            return _streaming_within_sight(await self.get_response(request))

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """See what the request may, from here on."""
        match = request.resolver_match
        assert match is not None, "a view was found"
        if match.app_name == "admin":
            see(EVERYBODY if _is_auditor(request) else NOBODY)
        else:
            see(_sight_of(kwargs.get("tenant", "")))


def _is_auditor(request: HttpRequest) -> bool:
    return request.user.is_active and request.user.is_staff and request.user.has_perm(AUDIT)


def _sight_of(tenant: str) -> Sight:
    """Return the sight of a tenant as a path spells it; what could not be one sees nothing, as its view will tell."""
    return Sight(tenant) if len(tenant) <= TENANT_CHARACTERS and tenant.isprintable() else NOBODY


def _streaming_within_sight(response: HttpResponseBase) -> HttpResponseBase:
    if isinstance(response, StreamingHttpResponse) and not isinstance(response, FileResponse):
        content = response.streaming_content
        assert isinstance(content, Iterator), "no view here streams asynchronously"
        response.streaming_content = each_within(current_sight(), content)
    return response
