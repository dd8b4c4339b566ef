"""Keeping secrets out of log lines: tokens travel in query strings, and servers log those."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from daphne.access import AccessLogGenerator

SECRET_PARAMETERS = ("bearer_token", "id_token", "ticket", "user_session_id")
LOGGERS = (
    "uvicorn.access",
    "uvicorn.error",
    "daphne.server",
    "daphne.http_protocol",
    "django.channels.server",
    "django.request",
    "django.server",
)

_secret = re.compile(rf"\b({'|'.join(SECRET_PARAMETERS)})=[^&\s\"']*")


class QueryTokenFilter(logging.Filter):
    """Replaces the values of secret query parameters in whatever is logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; it is always kept."""
        record.msg = _redacted(record.msg)
        if isinstance(record.args, tuple):
            record.args = tuple(_redacted(part) for part in record.args)
        elif isinstance(record.args, Mapping):
            record.args = {name: _redacted(part) for name, part in record.args.items()}
        return True


def redact_query_tokens() -> None:
    """Put the filter on the loggers of the servers and of Django; harmless when it is there."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(existing, QueryTokenFilter) for existing in logger.filters):
            logger.addFilter(QueryTokenFilter())
    # daphne writes its access log to a stream, past all loggers; this method is the only door to it.
    AccessLogGenerator.write_entry = _write_redacted_entry


_write_entry = AccessLogGenerator.write_entry


def _write_redacted_entry(self: Any, host: Any, date: Any, request: Any, *rest: Any, **more: Any) -> None:
    _write_entry(self, host, date, _redacted(request), *rest, **more)


def _redacted(part: object) -> object:
    return _secret.sub(r"\1=[hidden]", part) if isinstance(part, str) else part
