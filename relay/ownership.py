"""Sole ownership of a database: the embedded channel layer allows one server process, and says so."""

import fcntl
import hashlib
import logging
from pathlib import Path
from typing import IO, Any

from django.db import connections

logger = logging.getLogger(__name__)


class AlreadyServed(RuntimeError):
    """Another server process runs on this database, and the two would not hear each other."""


class Ownership:
    """Holds a lock on the default database for as long as the process lives.

    The operating system (SQLite: a lock file) or the server (PostgreSQL: an advisory lock) lets go of it
    when the process ends, however it ends.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None
        self._connection: Any = None

    def take(self) -> None:
        """Take the lock; AlreadyServed when another process has it."""
        connection = connections["default"]
        taken = self._take_file() if connection.vendor == "sqlite" else self._take_advisory()
        if not taken:
            raise AlreadyServed(
                "Another server process uses this database, and without REDIS_URL the two would not hear each "
                "other: events would reach only some of the clients. Stop the other one, or set REDIS_URL."
            )

    def release(self) -> None:
        """Let go of the lock; harmless when it was never taken."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _take_file(self) -> bool:
        name = str(connections["default"].settings_dict["NAME"])
        if ":memory:" in name or name.startswith("file:"):
            return True
        lock = Path(f"{name}.lock").open("a", encoding="ascii")  # noqa: SIM115 - held until release
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._file = lock
        return True

    def _take_advisory(self) -> bool:
        connection = connections["default"].copy("ownership")
        name = f"backchannel:{connection.settings_dict['NAME']}".encode()
        key = int.from_bytes(hashlib.sha256(name).digest()[:8], "big", signed=True)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", [key])
            taken = bool(cursor.fetchone()[0])
        if not taken:
            connection.close()
            return False
        # The thread that lets go of it may be another one.
        connection.inc_thread_sharing()
        self._connection = connection
        return True
