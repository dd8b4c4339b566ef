"""Opening a stream: what a connecting client asks for, checked, and the session that it gets."""

from dataclasses import dataclass

from django.http import HttpRequest

from comm.conf import comm_settings
from relay.credentials import Credentials
from relay.exceptions import BadRequest, StreamIdRequired
from relay.models import Session
from relay.sessions import Transport, resolve_session

STREAM_ID_CHARACTERS = 200
SCOPE_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Opening:
    """One admitted stream: whose it is, what it is called, and what it wants to see."""

    session: Session
    stream_id: str
    tenant: str
    project: str
    project_events: bool
    last_event_id: str | None


def open_stream(request: HttpRequest, transport: Transport) -> Opening:
    """Read the query of a stream request and find its session, made when there is none (ORM, synchronous).

    Errors: StreamIdRequired (422), BadRequest (400), and those of relay.sessions.resolve_session.
    """
    conf = comm_settings()
    stream_id = request.GET.get("stream_id", "").strip()
    if not stream_id:
        raise StreamIdRequired("stream_id: required; the client names its stream, best with a random UUID")
    if len(stream_id) > STREAM_ID_CHARACTERS or not stream_id.isprintable():
        raise StreamIdRequired(f"stream_id: at most {STREAM_ID_CHARACTERS} printable characters")
    return Opening(
        session=resolve_session(
            Credentials.from_request(request, query_tokens=True), create=True, transport=transport
        ),
        stream_id=stream_id,
        tenant=_scope(request, "tenant") or conf.DEFAULT_TENANT,
        project=_scope(request, "project") or conf.DEFAULT_PROJECT,
        project_events=request.GET.get("project_events", "").strip().lower() in ("1", "true", "yes", "on"),
        last_event_id=_last_event_id(request),
    )


def _scope(request: HttpRequest, name: str) -> str:
    value = request.GET.get(name, "").strip()
    if len(value) > SCOPE_CHARACTERS or not value.isprintable():
        raise BadRequest(name, f"at most {SCOPE_CHARACTERS} printable characters")
    return value


def _last_event_id(request: HttpRequest) -> str | None:
    # The header wins: a browser that reconnects by itself sends both, and the query is the older one.
    return request.headers.get("Last-Event-ID") or request.GET.get("last_event_id") or None
