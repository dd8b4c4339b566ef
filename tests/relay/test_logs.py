"""Secrets and log lines."""

import logging

from relay.logs import QueryTokenFilter


def test_query_tokens_never_reach_a_log_line() -> None:
    record = logging.LogRecord(
        "uvicorn.access", logging.INFO, "", 0, '%s - "%s %s" %d',
        ("1.2.3.4", "GET", "/sse/stream?stream_id=a&bearer_token=s3cret&id_token=s3cret2&ticket=t0p", 200), None,
    )  # fmt: skip
    assert QueryTokenFilter().filter(record)
    line = record.getMessage()
    assert "s3cret" not in line
    assert "t0p" not in line
    assert "stream_id=a&bearer_token=[hidden]&id_token=[hidden]" in line
