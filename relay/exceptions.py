"""Errors of relay: one root, children named for the fact, and the one rendering of them as HTTP."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec


class Notice(NamedTuple):
    """A `chat_service` event that the sending stream gets beside the `chat_error` of a refusal."""

    type: str
    title: str
    data: dict[str, Any]


class Rendered(NamedTuple):
    """An error as an HTTP reply: status, headers, and the JSON body as bytes."""

    status: int
    headers: dict[str, str]
    body: bytes


class RelayError(Exception):
    """Root of the errors that relay raises.

    `code` is stable and reaches clients as `error_type`; the text is a sentence for people. `status` is the
    HTTP status, `retry_after` the whole seconds to wait where trying again makes sense, `reason` says
    why in more detail, `data` is added to the detail, `notices` go to the sending stream.
    """

    status = 500
    code = "relay_error"
    envelope: Mapping[str, Any] = {}
    """Keys that stand beside `detail` in the HTTP body."""

    def __init__(
        self,
        detail: str,
        *,
        reason: str = "",
        retry_after: int | None = None,
        data: Mapping[str, Any] | None = None,
        notices: Sequence[Notice] = (),
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.retry_after = retry_after
        self.data = dict(data or {})
        self.notices = tuple(notices)

    def detail(self) -> dict[str, Any]:
        """The wire contract's detail: `error`, `error_type`, and what else is known."""
        detail: dict[str, Any] = {"error": str(self), "error_type": self.code}
        if self.reason:
            detail["reason"] = self.reason
        if self.retry_after is not None:
            detail["retry_after"] = self.retry_after
        return {**detail, **self.data}

    def document(self) -> dict[str, Any]:
        """The HTTP body as a JSON object."""
        return {**self.envelope, "detail": self.detail()}

    def headers(self) -> dict[str, str]:
        """The HTTP headers that this error adds."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    def render(self) -> Rendered:
        """Return the whole HTTP reply, for transports that write it themselves."""
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store", **self.headers()}
        return Rendered(self.status, headers, msgspec.json.encode(self.document()))


# --- who is it ------------------------------------------------------------------------------------


class TokenInvalid(RelayError):
    """A token was presented that no authenticator knows."""

    status, code = 401, "token_invalid"


class TicketInvalid(RelayError):
    """A ticket was presented that is used up, too old, or was never given out."""

    status, code = 401, "ticket_invalid"


class SessionUnknown(RelayError):
    """A session was named that does not exist."""

    status, code = 401, "session_unknown"


class SessionRequired(RelayError):
    """Nothing in the request says whose it is."""

    status, code = 401, "session_required"


class AnonymousRejected(RelayError):
    """This transport is closed to anonymous sessions."""

    status, code = 401, "anonymous_rejected"


class SessionForbidden(RelayError):
    """A session was named that belongs to another user."""

    status, code = 403, "session_forbidden"


class CsrfFailed(RelayError):
    """A request with a login cookie came without the token that proves its page."""

    status, code = 403, "csrf_failed"


class ConversationForbidden(RelayError):
    """The conversation belongs to somebody else."""

    status, code = 403, "conversation_forbidden"


# --- what do they send ----------------------------------------------------------------------------


class BadRequest(RelayError):
    """A field is missing or wrong; the sentence begins with its name, which is also `detail.field`."""

    status, code = 400, "bad_request"

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(f"{field}: {sentence}", data={"field": field})
        self.field = field


class AttachmentRefused(RelayError):
    """At least one attachment cannot be taken, so the message as a whole is not."""

    status, code = 400, "attachment_refused"


class OperationDenied(RelayError):
    """The operation is not for users of this type."""

    status, code = 403, "operation_denied"


class Refusal(RelayError):
    """A bundle refused an operation, in its own words and with its own status."""

    def __init__(self, detail: str, *, status: int, code: str) -> None:
        super().__init__(detail)
        self.status, self.code = status, code


class MethodNotAllowed(RelayError):
    """The operation does not answer this method."""

    status, code = 405, "method_not_allowed"

    def __init__(self, detail: str, allowed: Sequence[str]) -> None:
        super().__init__(detail)
        self._allowed = ", ".join(allowed)

    def headers(self) -> dict[str, str]:
        """Name the methods that it answers."""
        return {"Allow": self._allowed}


class BadGateway(RelayError):
    """A bundle's operation failed, or returned what JSON cannot hold."""

    status, code = 502, "operation_failed"


class GatewayTimeout(RelayError):
    """A bundle's operation took too long."""

    status, code = 504, "operation_timeout"


class NotFound(RelayError):
    """What was asked for does not exist for this caller."""

    status, code = 404, "not_found"


class LengthRequired(RelayError):
    """A form came without a Content-Length, so it cannot be read."""

    status, code = 411, "length_required"


class MessageTooLarge(RelayError):
    """Text and files together are over the limit."""

    status, code = 413, "message_too_large"


class MediaTypeUnsupported(RelayError):
    """The body is neither JSON nor a multipart form."""

    status, code = 415, "media_type_unsupported"


class StreamIdRequired(RelayError):
    """`stream_id` is missing or unusable."""

    status, code = 422, "stream_id_required"


# --- may they, now --------------------------------------------------------------------------------


class RateLimited(RelayError):
    """The session sent more messages than its rate allows."""

    status, code = 429, "rate_limited"


class Backpressure(RelayError):
    """Too many turns wait already."""

    status, code = 503, "backpressure"


class CircuitOpen(RelayError):
    """Accepting messages failed too often; it is tried again in a moment."""

    status, code = 503, "circuit_open"


class Unavailable(RelayError):
    """Something that the request needs, such as the database, does not answer."""

    status, code = 503, "unavailable"


class Draining(RelayError):
    """This process is about to stop; another one, or its successor, will answer."""

    status, code = 503, "draining"
    envelope = {"status": "draining"}
