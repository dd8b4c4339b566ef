"""What is measured, and how one is set up: its server, its producer, the streams that a client asks for."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import httpx

from benchmarks.load import Dialect, sse
from benchmarks.processes import (
    LOAD_CORE,
    ROOT,
    SERVER_CORE,
    Measured,
    Producer,
    Valkey,
    free_port,
    uvicorn,
)

T = TypeVar("T")


def stream_path(session: int, stream: int = 0) -> str:
    """The stream of one session, as Backchannel's clients ask for it, and those of most peers."""
    return f"/sse/stream?stream_id=bench-{session}-{stream}&user_session_id=bench-{session}"


def serve(subject: "Subject", port: int, env: dict[str, str], core: int) -> Measured:
    """Start the server of a subject that is an ASGI application."""
    return uvicorn(subject.server, port, env, core)


Start = Callable[["Subject", int, dict[str, str], int], Measured]
"""Starts a server: subject, port, environment, core."""


@dataclass
class Subject:
    """One measured system, and how much of the load it can be given."""

    name: str
    server: str
    producer: str = ""
    env: dict[str, str] = field(default_factory=dict)
    dialect: Dialect = field(default_factory=sse)
    path: Callable[[int, int], str] = stream_path
    events: int = 30_000
    broadcast_events: int = 100
    is_backchannel: bool = False
    start: Start = serve
    publishes_through: Start | None = None
    """A server of its own that takes what is published, at PUBLISH_PORT."""


class Bench(Protocol):
    """A subject that runs: what the workloads need of it."""

    port: int
    server: Measured

    def begin(self, sessions: list[str], events: int, rate: float) -> None:
        """Have events published; returns at once."""

    def finish(self) -> dict[str, float]:
        """Wait until they are, and return what it took the producer; nothing where it is the server itself."""

    def store_cpu_seconds(self) -> float:
        """The CPU time that Redis has used."""


BenchMaker = Callable[["Subject", int], AbstractContextManager[Bench]]


class _Prepared:
    """The folder, the database and the port of one run of a subject."""

    def __init__(self, subject: Subject, sessions: int) -> None:
        self.subject = subject
        self.port = free_port()
        self.folder = tempfile.mkdtemp(prefix="backchannel-bench-")
        self.env = {**os.environ, **subject.env, "LOG_LEVEL": "WARNING", "FOLDER": self.folder}
        if subject.is_backchannel:
            self.env |= {
                "DATA_DIR": self.folder,
                "DATABASE_URL": f"sqlite:///{self.folder}/bench.sqlite3",
                "DEBUG": "False",
                "SECRET_KEY": "benchmark-benchmark-benchmark-benchmark-benchmark",
                "ALLOWED_HOSTS": "*",
                "MESSAGE_RATE": "",
            }
            self._make_sessions(sessions)

    def _make_sessions(self, sessions: int) -> None:
        script = (
            "from relay.models import Session; Session.objects.bulk_create("
            f"Session(session_id=f'bench-{{n}}') for n in range({sessions}))"
        )
        for arguments in (["migrate", "--verbosity", "0"], ["shell", "--verbosity", "0", "-c", script]):
            subprocess.run([sys.executable, "manage.py", *arguments], cwd=ROOT, env=self.env, check=True)

    def remove(self) -> None:
        """Delete what was made."""
        shutil.rmtree(self.folder, ignore_errors=True)


class OneProcess:
    """A subject whose producer is inside the server's process."""

    def __init__(self, subject: Subject, sessions: int) -> None:
        self._prepared = _Prepared(subject, sessions)
        self.port = self._prepared.port

    def __enter__(self) -> "OneProcess":
        self.server = uvicorn(self._prepared.subject.server, self.port, self._prepared.env, SERVER_CORE)
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.end()
        self._prepared.remove()

    def begin(self, sessions: list[str], events: int, rate: float) -> None:
        """Ask the server to publish."""
        url = f"http://127.0.0.1:{self.port}/bench/emit?events={events}&rate={rate}"
        httpx.post(url, json=sessions, timeout=60).raise_for_status()

    def finish(self) -> dict[str, float]:
        """The server's CPU has it all."""
        return {}

    def store_cpu_seconds(self) -> float:
        """There is no Redis."""
        return 0.0


class Joined:
    """A subject whose server and producer are processes of their own, joined by Redis.

    Server on one core; producer, Redis and the load on the other. Without a server the producer has its core.
    """

    def __init__(self, subject: Subject, sessions: int, *, serves: bool = True) -> None:
        self.subject = subject
        self.store = Valkey()
        self._sessions = sessions
        self._serves = serves
        self._parts: list[Any] = []

    def __enter__(self) -> "Joined":
        self.store.__enter__()
        self.subject.env["REDIS_URL"] = self.store.url
        self._prepared = _Prepared(self.subject, self._sessions if self._serves else 0)
        self.port = self._prepared.port
        try:
            self._start(self._prepared.env)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, env: dict[str, str]) -> None:
        if self._serves:
            self.server = self._started(self.subject.start(self.subject, self.port, env, SERVER_CORE))
        if self.subject.publishes_through is not None:
            env["PUBLISH_PORT"] = str(free_port())
            core = LOAD_CORE if self._serves else SERVER_CORE
            self._started(self.subject.publishes_through(self.subject, int(env["PUBLISH_PORT"]), env, core))
        self.producer = self._started(
            Producer(self.subject.producer, env, LOAD_CORE if self._serves else SERVER_CORE)
        )

    def _started(self, part: T) -> T:
        self._parts.append(part)
        return part

    def __exit__(self, *exc: object) -> None:
        for part in reversed(self._parts):
            part.end()
        self._prepared.remove()
        self.store.__exit__()

    def begin(self, sessions: list[str], events: int, rate: float) -> None:
        """Have the producer publish."""
        self.producer.begin(do="emit", sessions=sessions, events=events, rate=rate)

    def finish(self) -> dict[str, float]:
        """Wait for the producer."""
        return self.producer.answer()

    def store_cpu_seconds(self) -> float:
        """The CPU time of Redis."""
        return self.store.cpu_seconds()
