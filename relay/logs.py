"""Keeping secrets out of log lines: tokens travel in query strings, and servers log those."""

import logging
import re

SECRET_PARAMETERS = ("bearer_token", "id_token", "ticket", "user_session_id")
LOGGERS = ("uvicorn.access", "uvicorn.error", "daphne.server", "daphne.http_protocol", "django.request", "django.server")

_secret = re.compile(rf"\b({'|'.join(SECRET_PARAMETERS)})=[^&\s\"']*")


class QueryTokenFilter(logging.Filter):
    """Replaces the values of secret query parameters in whatever is logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; it is always kept."""
        record.msg = _redacted(record.msg)
        if isinstance(record.args, tuple):
            record.args = tuple(_redacted(part) for part in record.args)
        return True


def redact_query_tokens() -> None:
    """Put the filter on the loggers of the servers and of Django; harmless when it is there."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(existing, QueryTokenFilter) for existing in logger.filters):
            logger.addFilter(QueryTokenFilter())


def _redacted(part: object) -> object:
    return _secret.sub(r"\1=[hidden]", part) if isinstance(part, str) else part
