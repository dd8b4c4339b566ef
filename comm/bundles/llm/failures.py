"""What can go wrong with a model server, and what its user is told: no secrets, nobody's contents."""

import math
import re
import time
from collections.abc import Mapping
from email.utils import mktime_tz, parsedate_tz
from typing import Any, NamedTuple

import openai

from .conf import llm_settings

LONGEST_RETRY_SECONDS = 7 * 24 * 3600
"""A retry time beyond is a server's mistake."""


class Kind(NamedTuple):
    """One kind of failure: its `error_type`, what to do about it, whether it may pass by itself."""

    error_type: str
    message: str
    passing: bool = False


AUTH = Kind(
    "provider_auth",
    "The model server does not accept the API key. Set LLM_API_KEY to a valid one and restart.",
)
FORBIDDEN = Kind(
    "provider_forbidden",
    "The model server forbids this: the API key has no access to the model. Ask for access, or set LLM_MODEL "
    "to a model that the key may use.",
)
MODEL_UNKNOWN = Kind(
    "provider_model_unknown",
    "The model server does not know the model. Set LLM_MODEL to one that it lists, and restart.",
)
NOT_FOUND = Kind(
    "provider_not_found",
    "There is no chat-completions service at this address. Check LLM_BASE_URL: it usually ends with /v1.",
)
RATE_LIMITED = Kind("provider_rate_limited", "The model server has too many requests.", passing=True)
QUOTA = Kind(
    "provider_quota", "The account at the model server has used up its quota. Add credit, or use another key."
)
TOO_LONG = Kind(
    "provider_too_long",
    "This is longer than the model can read. Start a new conversation, send less, or lower "
    "LLM_HISTORY_TOKENS and LLM_ATTACHMENT_TOKENS.",
)
NO_IMAGES = Kind(
    "provider_no_images",
    "The model cannot read images. Send the message without them, or set LLM_MODEL to a model that can.",
)
REFUSED = Kind(
    "provider_refused",
    "The model server refused the request. Its log names the reason; rephrase the message, or start a new "
    "conversation.",
)
UNAVAILABLE = Kind("provider_unavailable", "The model server has an internal problem.", passing=True)
UNREACHABLE = Kind(
    "provider_unreachable",
    "The model server cannot be reached. Start it, or correct LLM_BASE_URL; then send the message again.",
    passing=True,
)
TIMEOUT = Kind(
    "provider_timeout",
    "The model server did not answer in time. Send the message again; raise LLM_TIMEOUT_SECONDS for a slow "
    "model.",
)
CUT = Kind(
    "provider_stream_cut",
    "The model server broke off in the middle of the answer. What had arrived is kept; send the message "
    "again for a whole one.",
)
GARBAGE = Kind(
    "provider_bad_response",
    "The model server sent something that is no chat completion. Check that LLM_BASE_URL names an "
    "OpenAI-compatible server.",
)
EMPTY = Kind(
    "provider_empty_answer", "The model ended without an answer. Send the message again, or rephrase it."
)
FILTERED = Kind(
    "provider_content_filter",
    "The model server withheld the answer by its content filter. Rephrase the message.",
)
ENDLESS = Kind(
    "provider_endless_answer",
    "The answer was stopped because it did not come to an end. Ask for a shorter one.",
)

_STATUS = {
    400: REFUSED, 401: AUTH, 402: QUOTA, 403: FORBIDDEN, 404: NOT_FOUND, 408: TIMEOUT, 413: TOO_LONG,
    422: REFUSED, 429: RATE_LIMITED,
}  # fmt: skip
_CODES = {
    "invalid_api_key": AUTH,
    "insufficient_quota": QUOTA,
    "rate_limit_exceeded": RATE_LIMITED,
    "model_not_found": MODEL_UNKNOWN,
    "context_length_exceeded": TOO_LONG,
    "exceed_context_size_error": TOO_LONG,
    "string_above_max_length": TOO_LONG,
    "content_filter": FILTERED,
    "content_policy_violation": FILTERED,
}
_ABOUT_LENGTH = re.compile(r"context (length|size|window)|too long|too many tokens")
_ABOUT_IMAGES = re.compile(r"image|vision|multimodal|mmproj")
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


class ProviderFailure(Exception):
    """A request that failed; its text and `data` are for the user.

    `reason` is a short identifier, of the server where it sent one; `retry_after` counts seconds.
    """

    def __init__(self, kind: Kind, reason: str, retry_after: int | None = None) -> None:
        super().__init__(kind.message + _when(kind, retry_after))
        self.kind = kind
        self.reason = reason
        self.retry_after = retry_after

    @property
    def data(self) -> dict[str, Any]:
        """What `chat_error` carries beside the sentence."""
        data: dict[str, Any] = {"error_type": self.kind.error_type, "reason": self.reason}
        return data if self.retry_after is None else {**data, "retry_after": self.retry_after}


def failure_of(error: Exception, *, streaming: bool = False) -> ProviderFailure:
    """Name the failure behind an exception of the SDK; `streaming` says that the answer had begun."""
    if isinstance(error, openai.APIStatusError):
        return _of_status(error.status_code, error, error.response.headers)
    if isinstance(error, (openai.APITimeoutError, TimeoutError)):
        return ProviderFailure(TIMEOUT, "silent" if streaming else "no_response")
    if isinstance(error, openai.APIConnectionError):
        return ProviderFailure(*((CUT, "connection_lost") if streaming else (UNREACHABLE, "no_connection")))
    if isinstance(error, openai.APIResponseValidationError) or not isinstance(error, openai.APIError):
        return ProviderFailure(GARBAGE, "not_readable")
    # An error object inside the stream: the status was sent before anything went wrong.
    status = _number(_entry(error, "code")) or _number(_entry(error, "status"))
    return _of_status(status if status and 400 <= status < 600 else 500, error, {})


def _of_status(status: int, error: openai.APIError, headers: Mapping[str, str]) -> ProviderFailure:
    kind = _STATUS.get(status) or (UNAVAILABLE if status >= 500 else REFUSED)
    code = next((name for name in (error.code, error.type) if _is_identifier(name)), None) or ""
    said = said_by(error)
    if kind is NOT_FOUND and "model" in said:
        kind = MODEL_UNKNOWN
    elif kind in (REFUSED, UNAVAILABLE) and _ABOUT_LENGTH.search(said):
        kind = TOO_LONG
    elif kind in (REFUSED, UNAVAILABLE) and _ABOUT_IMAGES.search(said):
        kind = NO_IMAGES
    kind = _CODES.get(code, kind)
    retry_after = retry_seconds(headers) if kind.passing else None
    return ProviderFailure(kind, code or f"http_{status}", retry_after)


def said_by(error: openai.APIError) -> str:
    """Return what the server said, in lower case, to look for words in it; never to be shown or logged."""
    body = error.body
    text = body.get("message", "") if isinstance(body, Mapping) else body
    return f"{text} {error.param or ''}"[:4000].lower()


def retry_seconds(headers: Mapping[str, str]) -> int | None:
    """Read `Retry-After` (seconds or a date) or `Retry-After-Ms` as whole seconds, rounded up."""
    seconds = _float(headers.get("retry-after-ms"), 1000)
    if seconds is None:
        seconds = _float(headers.get("retry-after"), 1)
    if seconds is None:
        date = parsedate_tz(headers.get("retry-after") or "")
        try:
            seconds = None if date is None else mktime_tz(date) - time.time()
        except (ValueError, OverflowError):
            return None
    if seconds is None or not 0 <= seconds <= LONGEST_RETRY_SECONDS:
        return None
    return max(1, math.ceil(seconds))


def _is_identifier(name: object) -> bool:
    """Tell a name such as `rate_limit_exceeded` from a sentence, and from a key that a server echoes."""
    key = llm_settings().API_KEY
    return isinstance(name, str) and bool(_IDENTIFIER.fullmatch(name)) and not (key and key in name)


def _when(kind: Kind, retry_after: int | None) -> str:
    if not kind.passing or kind is UNREACHABLE:
        return ""
    if retry_after is None:
        return " Send the message again in a moment."
    return f" Send the message again in {retry_after:,} second{'' if retry_after == 1 else 's'}."


def _entry(error: openai.APIError, name: str) -> Any:
    return error.body.get(name) if isinstance(error.body, Mapping) else None


def _number(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, str)) and re.fullmatch(r"\d{3}", str(value)) else None


def _float(value: str | None, divisor: int) -> float | None:
    try:
        return None if value is None else float(value) / divisor
    except ValueError:
        return None
