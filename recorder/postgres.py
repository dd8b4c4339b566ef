"""Bounds on the recorder process's connection to PostgreSQL: nothing there waits for ever, nor makes others wait."""

from typing import Any

from django.db import connection

from .conf import recorder_settings

SILENCE_SECONDS = 15
"""A server that acknowledges nothing for so long is not there any more."""


def bound_connection() -> None:
    """Set the bounds, for every connection that this thread makes from now on. SQLite needs none.

    A recorder that stands still in mid-transaction holds the keys of its rows, for which whoever takes its
    entries over must wait: the server ends such a transaction.
    """
    if connection.vendor != "postgresql":
        return
    idle_ms = round(recorder_settings().TRANSACTION_IDLE_SECONDS * 1000)
    present: dict[str, Any] = connection.settings_dict.get("OPTIONS", {})
    told = [present["options"]] if present.get("options") else []
    connection.close()
    connection.settings_dict = {
        **connection.settings_dict,
        "OPTIONS": {
            "application_name": "backchannel-recorder",
            "connect_timeout": 5,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": SILENCE_SECONDS * 1000,
            **present,
            "options": " ".join([*told, f"-c idle_in_transaction_session_timeout={idle_ms}"]),
        },
    }
