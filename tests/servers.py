"""Real servers on real ports: Backchannel in a process of its own, with a database of its own."""

import contextlib
import os
import socket
import sqlite3
import sys
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.databases import ADMIN, manage, new_postgres, new_sqlite
from tests.processes import ROOT, TestedProcess

__all__ = ["ADMIN", "POSTGRES_URL", "ROOT", "SERVERS", "ServerProcess", "free_port"]

POSTGRES_URL = os.environ.get("DATABASE_URL", "")
"""Where the servers' databases are made when the tests run on PostgreSQL; else they are SQLite files."""
LARGE = "67108864"
SERVERS = ["uvicorn", pytest.param("daphne", marks=pytest.mark.wire)]
"""The servers that a test of transports runs on; what the second one adds has nothing to do with the database."""


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess(TestedProcess):
    """One Backchannel server, which is up when it answers /health.

    The port and the database stay the same from one start to the next.
    """

    def __init__(
        self,
        folder: Path,
        *,
        server: str = "uvicorn",
        port: int | None = None,
        database_url: str | None = None,
        env: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.server = server
        self.port = port or free_port()
        self.database_url = database_url or self._own_database()
        environment = {
            **os.environ,
            "DATA_DIR": str(folder),
            "DATABASE_URL": self.database_url,
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "default",
            **{key: str(value) for key, value in (env or {}).items()},
        }
        super().__init__(
            f"{server} on port {self.port}", self._command(), folder / "server.log", env=environment
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def manage(self, *arguments: str) -> str:
        """Run a management command on this server's database; return what it prints."""
        return manage(*arguments, env=self.env)

    def query(self, statement: str) -> list[Any]:
        """Run a SELECT on this server's database; return its rows."""
        if self.database_url.startswith("postgres"):
            with psycopg.connect(self.database_url) as connection:
                return list(connection.execute(statement.encode()).fetchall())
        with contextlib.closing(sqlite3.connect(self.database_url.removeprefix("sqlite:///"))) as database:
            return list(database.execute(statement).fetchall())

    def _own_database(self) -> str:
        return new_postgres(POSTGRES_URL) if POSTGRES_URL.startswith("postgres") else new_sqlite(self.folder)

    def _command(self) -> list[str]:
        if self.server == "daphne":
            return [
                sys.executable, "-m", "daphne", "-b", "127.0.0.1", "-p", str(self.port),
                "--websocket-max-message-size", LARGE, "--websocket-max-frame-size", LARGE,
                "project.asgi:application",
            ]  # fmt: skip
        return [
            sys.executable, "-m", "uvicorn", "project.asgi:application", "--host", "127.0.0.1",
            "--port", str(self.port), "--timeout-graceful-shutdown", "5",
            "--ws-max-size", LARGE, "--ws-per-message-deflate", "false",
        ]  # fmt: skip

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False
