"""Reading the body of a message: JSON or a multipart form, and never more of it than a message may have."""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, cast

from asgiref.typing import ASGI3Application, ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, Scope
from django.core.exceptions import RequestDataTooBig, TooManyFieldsSent, TooManyFilesSent
from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, UnreadablePostError
from django.http.multipartparser import MultiPartParserError

from relay.conf import MIB, relay_settings
from relay.exceptions import BadRequest, LengthRequired, MediaTypeUnsupported, MessageTooLarge

from .checking import decode_json

FORM_BYTES = MIB
"""What a message may have beside its text and files: boundaries, names, history, payload."""
CUT = "relay.body_cut"
"""Key of the ASGI scope that says a body went on beyond the limit and was not read to its end."""

FORM_FIELDS = ("message", "event_submission")
FORM, JSON = "multipart/form-data", "application/json"


@dataclass(frozen=True, slots=True)
class RawSubmission:
    """A message as it came, whichever transport brought it: the decoded document and the files beside it."""

    document: Any
    attachment_meta: Any = None
    files: "list[UploadedFile[Any]]" = field(default_factory=list)
    idempotency_key: Any = None
    """Where the transport has no header for it."""


def body_limit() -> int:
    """How many bytes a request's body may have."""
    return relay_settings().MESSAGE_BYTES + FORM_BYTES


def check_length(request: HttpRequest) -> None:
    """Raise MessageTooLarge for a body over the limit, by its Content-Length or because it was cut."""
    cut = bool(getattr(request, "scope", {}).get(CUT))
    if cut or _content_length(request.META.get("CONTENT_LENGTH")) > body_limit():
        limit = relay_settings().MESSAGE_BYTES // MIB
        raise MessageTooLarge(f"The message is too large; text and files may have {limit} MiB together.")


def read_submission(request: HttpRequest) -> RawSubmission:
    """Read a message from a request; the caller has checked its length.

    Errors: BadRequest, LengthRequired (411), MessageTooLarge (413), MediaTypeUnsupported (415).
    """
    if request.content_type == FORM:
        return _read_form(request)
    return RawSubmission(read_json(request))


def read_json(request: HttpRequest) -> Any:
    """Decode a JSON body; none at all is an empty object."""
    media_type = request.content_type or JSON
    if media_type != JSON and not media_type.endswith("+json"):
        raise MediaTypeUnsupported(f"Send the body as {JSON} or {FORM}, not as {media_type}.")
    try:
        body = request.body
    except RequestDataTooBig:
        raise MessageTooLarge("The body is too large.") from None
    except UnreadablePostError:
        raise BadRequest("body", "broke off before its end") from None
    if len(body) > body_limit():
        # It came in chunks, without saying how long it is, past a server that does not bound them.
        raise MessageTooLarge("The body is too large.")
    return decode_json(body, "body") if body.strip() else {}


def read_form(request: HttpRequest) -> None:
    """Parse a multipart form, so that `POST` and `FILES` can be used; errors as for read_submission."""
    if not request.META.get("CONTENT_LENGTH"):
        raise LengthRequired("Send a form with its Content-Length.")
    try:
        request.POST, request.FILES  # noqa: B018 - reading them is what parses the form
    except MultiPartParserError as error:
        raise BadRequest("body", f"is not a valid form ({error})") from None
    except (TooManyFilesSent, TooManyFieldsSent) as error:
        raise BadRequest("body", f"has too many parts ({error})") from None
    except RequestDataTooBig:
        raise MessageTooLarge("The form's fields are too large.") from None
    except UnreadablePostError:
        raise BadRequest("body", "broke off before its end") from None


def _read_form(request: HttpRequest) -> RawSubmission:
    read_form(request)
    name = next((name for name in FORM_FIELDS if name in request.POST), None)
    if name is None:
        raise BadRequest(" or ".join(FORM_FIELDS), "is missing; it holds the message as JSON")
    document = decode_json(request.POST[name], name)
    meta = request.POST.get("attachment_meta", "").strip()
    files = [upload for _, uploads in request.FILES.lists() for upload in uploads]
    return RawSubmission(document, decode_json(meta, "attachment_meta") if meta else None, files)


def _content_length(value: str | None) -> int:
    return int(value) if value and value.isascii() and value.isdigit() else 0


class BodyLimit:
    """ASGI wrapper: a body over the limit is not read, and the application sees an empty one instead.

    Django spools a whole body to disk before any view is asked. The view finds the same Content-Length, or
    the mark in the scope, and refuses in the same words, with the same headers, as any other refusal.
    """

    def __init__(self, app: ASGI3Application, limit: Callable[[], int] = body_limit) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Pass everything but the bodies of HTTP requests on as it is."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit()
        length = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"content-length"), None)
        announced = _content_length(length)
        left = limit
        state = cast(MutableMapping[str, Any], scope)
        end: ASGIReceiveEvent = {"type": "http.request", "body": b"", "more_body": False}

        async def bounded() -> ASGIReceiveEvent:
            nonlocal left
            if announced > limit and not state.get(CUT):
                state[CUT] = True
                return end
            event = await receive()
            while state.get(CUT) and event["type"] == "http.request":
                # Thrown away: the rest is only read so that the client comes to read our answer.
                event = await receive()
            if event["type"] == "http.request":
                left -= len(event.get("body", b""))
                if left < 0:
                    state[CUT] = True
                    return end
            return event

        await self._app(scope, bounded, send)
