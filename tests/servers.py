"""Real servers on real ports: Backchannel in a process of its own, with a database of its own."""

import contextlib
import itertools
import os
import random
import socket
import sqlite3
import sys
from collections.abc import Iterator
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


PORTS = range(11_000, 32_000)
"""Below those that Linux gives to clients: such a port may be taken while its server starts, or starts again."""
PORTS_A_WORKER = 2_000


def _ports() -> Iterator[int]:
    """Every second port of this test process's share, for ever: whoever has one may use the next as well."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = PORTS[worker * PORTS_A_WORKER % len(PORTS) :][:PORTS_A_WORKER:2]
    begin = random.randrange(len(share))
    return itertools.cycle([*share[begin:], *share[:begin]])


_next_ports = _ports()


def free_port() -> int:
    """Return a port that was free a moment ago, and is given to nobody else of this test run."""
    while True:
        port = next(_next_ports)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


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
