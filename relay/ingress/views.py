"""The HTTP endpoints beside the streams: parse, ask the service, answer."""

import asyncio
import logging
from typing import Any

from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_safe
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from comm.conf import comm_settings
from comm.publisher import at_home
from comm.turns.incoming import Caller
from relay import __version__, gateway, lifecycle
from relay.clocks import read_clock
from relay.cookies import remember_session
from relay.credentials import Credentials, identify, stream_id_of
from relay.exceptions import NotFound, SessionRequired, StreamIdRequired
from relay.history import history_layer
from relay.layers.base import HistoryChannelLayer
from relay.models import Session
from relay.sessions import Transport, profile_of, session_headers, session_of
from relay.tickets import TICKET_SECONDS, issue_ticket

from . import bodies, service
from .checking import check_storable, convert, identifier
from .csrf import check_csrf
from .refusals import announced

logger = logging.getLogger(__name__)

STREAM_ID_CHARACTERS = 200
LAG_TIMEOUT_SECONDS = 0.5
"""A probe of the health of this process must not wait for another one."""


class AlwaysJson(BaseContentNegotiation):
    """Answers in JSON whatever `Accept` says: a probe that accepts text/plain wants the status, not a 406."""

    def select_parser(self, request: Any, parsers: Any) -> Any:
        """Parsers are not used: bodies are read here, bounded."""
        return None

    def select_renderer(self, request: Any, renderers: Any, format_suffix: str | None = None) -> Any:
        """Return the JSON renderer."""
        return renderers[0], renderers[0].media_type


@method_decorator(never_cache, name="dispatch")
class JsonView(APIView):
    """An endpoint for programs."""

    content_negotiation_class = AlwaysJson


class Endpoint(JsonView):
    """An endpoint of somebody's session; its headers go on every reply once the session is known."""

    transport: Transport = "http"
    query_tokens = False
    http: HttpRequest
    session: Session | None = None
    _by_cookie = _origin_proves = False

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        """Keep Django's own request: we read bodies ourselves, bounded and in our words."""
        self.http = request
        return super().initialize_request(request, *args, **kwargs)

    def resolve(self, *, create: bool = False, stream_id: str = "", csrf: bool = True) -> Session:
        """Find the caller's session; with `csrf`, refuse a login that a page elsewhere could have used.

        Errors: 401 and 403 of relay.sessions, those of check_csrf.
        """
        credentials = Credentials.from_request(self.http, query_tokens=self.query_tokens)
        if stream_id and not credentials.stream_id:
            credentials = credentials.with_stream(stream_id)
        identity = identify(credentials)
        self.session = session_of(identity, credentials, create=create, transport=self.transport)
        if identity is not None:
            self._by_cookie, self._origin_proves = identity.by_cookie, identity.origin_proves
        if csrf:
            self.check_csrf()
        return self.session

    def check_csrf(self) -> None:
        """Demand the page's token of a login by cookie that wants to change something. Errors: CsrfFailed."""
        if self._by_cookie:
            check_csrf(self.http, origin_proves=self._origin_proves)

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        """Add X-Session-ID and X-User-Type, to errors as well."""
        response = super().finalize_response(request, response, *args, **kwargs)
        if self.session is not None:
            for name, value in session_headers(self.session).items():
                response[name] = value
        return response


class ProfileView(Endpoint):
    """GET /profile: who am I; makes an anonymous session where there is none."""

    def get(self, request: Request) -> Response:
        """Answer with the profile; an anonymous session also becomes a cookie."""
        session = self.resolve(create=True)
        response = Response(profile_of(session))
        if session.is_anonymous:
            remember_session(response, session)
        return response


class ChatView(Endpoint):
    """POST /sse/chat?stream_id=: a message."""

    transport: Transport = "sse"

    def post(self, request: Request) -> Response:
        """Answer with the acknowledgement, or with the refusal."""
        stream_id = _required_stream_id(self.http)
        try:
            session = self.resolve(csrf=False)
        except SessionRequired:
            # Draining has closed the stream that stood for the session: that is why there is none.
            gateway.refuse_when_draining()
            raise
        sender = service.sender_of(caller_from(self.http, session), stream_id)
        with announced(sender):
            self.check_csrf()
        key = self.http.headers.get("Idempotency-Key", "")
        return Response(service.submit(sender, self._read, key))

    def _read(self) -> bodies.RawSubmission:
        bodies.check_length(self.http)
        return bodies.read_submission(self.http)


class TicketView(Endpoint):
    """POST /sse/ticket: a ticket for the URL of one stream of the caller's session."""

    transport: Transport = "sse"

    def post(self, request: Request) -> Response:
        """Answer with the ticket and the seconds for which it is good."""
        session = self.resolve()
        return Response({"ticket": issue_ticket(session), "expires_in": TICKET_SECONDS})


class ConversationStateView(Endpoint):
    """POST /sse/conv_status.get {conversation_id?, bundle_id?, stream_id?}."""

    transport: Transport = "sse"

    def post(self, request: Request) -> Response:
        """Answer with the state, which the named stream gets as well."""
        bodies.check_length(self.http)
        document = convert(bodies.read_json(self.http), dict[str, Any], "body")
        check_storable(document)
        stream_id = stream_id_of(self.http) or identifier(
            document.get("stream_id"), "stream_id", STREAM_ID_CHARACTERS
        )
        session = self.resolve(stream_id=stream_id)
        sender = service.sender_of(caller_from(self.http, session), stream_id)
        sender.tenant = identifier(document.get("tenant"), "tenant") or sender.tenant
        sender.project = identifier(document.get("project"), "project") or sender.project
        conversation_id = identifier(document.get("conversation_id"), "conversation_id")
        bundle_id = identifier(document.get("bundle_id"), "bundle_id")
        return Response(service.state_of(sender, conversation_id, bundle_id))


class ConversationsView(Endpoint):
    """GET /api/cb/conversations/{tenant}/{project}?bundle_id=."""

    def get(self, request: Request, tenant: str, project: str) -> Response:
        """Answer with the caller's conversations, the latest first."""
        session = self.resolve()
        bundle_id = identifier(self.http.GET.get("bundle_id"), "bundle_id")
        return Response(service.conversations_of(session, path_part(tenant), path_part(project), bundle_id))


class ConversationView(Endpoint):
    """POST /api/cb/conversations/{tenant}/{project}/{conversation_id}/fetch."""

    def post(self, request: Request, tenant: str, project: str, conversation_id: str) -> Response:
        """Answer with the messages and turns of one of the caller's conversations."""
        session = self.resolve()
        return Response(
            service.conversation_of(
                session, path_part(tenant), path_part(project), path_part(conversation_id)
            )
        )


class HealthView(JsonView):
    """GET /health: 200 while this process takes work, 503 while it drains."""

    def get(self, request: Request) -> Response:
        """Answer with the state of this process; nothing in it is secret."""
        draining = lifecycle.is_draining()
        document = {
            "status": "draining" if draining else "healthy",
            "draining": draining,
            "version": __version__,
            **lifecycle.stats(),
            **_recording(),
        }
        headers = {"Retry-After": str(gateway.DRAINING_RETRY_SECONDS)} if draining else None
        return Response(document, 503 if draining else 200, headers=headers)


def _recording() -> dict[str, Any]:
    """How far the recorder is behind, in envelopes and seconds; None where that is not known in time.

    A server that records for itself has nothing to tell.
    """
    layer = history_layer()
    if not layer.shared:
        return {}
    try:
        lag = async_to_sync(_lag_of)(layer)
    except (OSError, RuntimeError) as error:
        logger.warning("Nobody can say how far the recorder is behind: %s", error)
        return {"recorder": None}
    return {} if lag is None else {"recorder": {"waiting": lag[0], "seconds": round(lag[1], 3)}}


async def _lag_of(layer: HistoryChannelLayer) -> tuple[int, float] | None:
    async with asyncio.timeout(LAG_TIMEOUT_SECONDS):
        return await at_home(layer.recorder_lag())


class UnknownView(JsonView):
    """Any other path below /sse/ and /api/: a 404 in JSON, also with DEBUG on."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Refuse whatever the method is."""
        raise NotFound("There is nothing here.")


@require_safe
@ensure_csrf_cookie
def chat_page(request: HttpRequest) -> HttpResponse:
    """The chat page; the CSRF cookie is for visitors who are logged in."""
    conf = comm_settings()
    context = {"tenant": conf.DEFAULT_TENANT, "project": conf.DEFAULT_PROJECT}
    return render(request, "chat.html", context)


def caller_from(request: HttpRequest, session: Session) -> Caller:
    """The caller with the clock that the request's headers name."""
    headers = request.headers
    clock = read_clock(headers.get("X-User-Timezone", ""), headers.get("X-User-UTC-Offset", ""))
    return service.caller_of(session, clock)


def _required_stream_id(request: HttpRequest) -> str:
    stream_id = stream_id_of(request)
    if not stream_id:
        raise StreamIdRequired("stream_id: is missing; name the stream that sends this message.")
    if len(stream_id) > STREAM_ID_CHARACTERS:
        raise StreamIdRequired(f"stream_id: has over {STREAM_ID_CHARACTERS} characters.")
    return stream_id


def path_part(part: str) -> str:
    """Check a part of the path: what could not be an id names nothing."""
    if len(part) > 100 or not part.isprintable():
        raise NotFound("There is nothing here.")
    return part
