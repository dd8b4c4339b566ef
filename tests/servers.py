"""Real servers on real ports: Backchannel in a process of its own, with a database of its own."""

import atexit
import contextlib
import functools
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import psycopg

from tests.waiting import eventually

ROOT = Path(__file__).resolve().parent.parent
ADMIN = {"ADMIN_USERNAME": "admin", "ADMIN_PASSWORD": "correct-horse-battery"}


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _manage(*arguments: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


POSTGRES_URL = os.environ.get("DATABASE_URL", "")
"""Where the servers' databases are made when the tests run on PostgreSQL; else they are SQLite files."""


def _on_postgres(statement: str) -> None:
    with psycopg.connect(POSTGRES_URL, autocommit=True) as connection:
        connection.execute(statement)


def _beside(name: str) -> str:
    return urlunsplit(urlsplit(POSTGRES_URL)._replace(path=f"/{name}"))


@functools.cache
def _template_postgres() -> str:
    """Return the name of a migrated PostgreSQL database with the admin account, made once per test run."""
    name = f"backchannel_template_{uuid.uuid4().hex[:12]}"
    _on_postgres(f'CREATE DATABASE "{name}"')
    atexit.register(_on_postgres, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    _prepare(Path(tempfile.mkdtemp(prefix="backchannel-template-")), _beside(name))
    return name


def _prepare(folder: Path, database_url: str) -> None:
    env = {**os.environ, "DATA_DIR": str(folder), "DATABASE_URL": database_url, **ADMIN}
    _manage("migrate", "--verbosity", "0", env=env)
    _manage("ensure_admin", env=env)


@functools.cache
def _template_sqlite() -> Path:
    """Return a migrated SQLite database with the admin account, made once per test run."""
    folder = Path(tempfile.mkdtemp(prefix="backchannel-template-"))
    _prepare(folder, f"sqlite:///{folder}/template.sqlite3")
    with contextlib.closing(sqlite3.connect(folder / "template.sqlite3")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder / "template.sqlite3"


class ServerProcess:
    """One Backchannel server; `start`, `stop` (SIGTERM) and `kill` (SIGKILL) as often as one likes.

    The port and the database stay the same from one start to the next. Its output is in `log`.
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
        self.env = {
            **os.environ,
            "DATA_DIR": str(folder),
            "DATABASE_URL": self.database_url,
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "default",
            **{key: str(value) for key, value in (env or {}).items()},
        }
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, wait: bool = True) -> "ServerProcess":
        """Start the server; return when it answers /health."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command(), cwd=ROOT, env=self.env, stdout=log, stderr=log)
        if wait:
            eventually(self._answers, timeout=40, what=f"{self.server} on port {self.port}")
        return self

    def terminate(self) -> None:
        """Send SIGTERM and return at once."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = 40) -> int:
        """Wait for the process to end; return its exit code."""
        assert self.process is not None
        return self.process.wait(timeout)

    def stop(self) -> int | None:
        """Stop it as an orchestrator would; return its exit code."""
        if self.process is None or self.process.poll() is not None:
            return None
        self.terminate()
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """End it without any warning."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def manage(self, *arguments: str) -> str:
        """Run a management command on this server's database; return what it prints."""
        return _manage(*arguments, env=self.env)

    def query(self, statement: str) -> list[Any]:
        """Run a SELECT on this server's database; return its rows."""
        if self.database_url.startswith("postgres"):
            with psycopg.connect(self.database_url) as connection:
                return list(connection.execute(statement.encode()).fetchall())
        with contextlib.closing(sqlite3.connect(self.database_url.removeprefix("sqlite:///"))) as database:
            return list(database.execute(statement).fetchall())

    def output(self) -> str:
        """Return what the server has logged so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def _own_database(self) -> str:
        if POSTGRES_URL.startswith("postgres"):
            name = f"backchannel_{uuid.uuid4().hex[:12]}"
            _on_postgres(f'CREATE DATABASE "{name}" TEMPLATE "{_template_postgres()}"')
            atexit.register(_on_postgres, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            return _beside(name)
        path = self.folder / "server.sqlite3"
        shutil.copy(_template_sqlite(), path)
        return f"sqlite:///{path}"

    def _command(self) -> list[str]:
        if self.server == "daphne":
            return [
                sys.executable,
                "-m",
                "daphne",
                "-b",
                "127.0.0.1",
                "-p",
                str(self.port),
                "--websocket-max-message-size",
                "67108864",
                "--websocket-max-frame-size",
                "67108864",
                "project.asgi:application",
            ]
        return [
            sys.executable, "-m", "uvicorn", "project.asgi:application", "--host", "127.0.0.1",
            "--port", str(self.port), "--timeout-graceful-shutdown", "5",
            "--ws-max-size", "67108864", "--ws-per-message-deflate", "false",
        ]  # fmt: skip

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.output()[-4000:]}")
        try:
            return httpx.get(f"{self.url}/health", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False
