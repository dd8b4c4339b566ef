"""What the recorder process's connection to PostgreSQL has beside what every process's has."""

from typing import Any

from django.db import connection

from .conf import recorder_settings


def bound_connection() -> None:
    """Name the recorder's connections and bound their pauses, from the next one on. SQLite needs neither.

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
            **present,
            "options": " ".join([*told, f"-c idle_in_transaction_session_timeout={idle_ms}"]),
        },
    }
