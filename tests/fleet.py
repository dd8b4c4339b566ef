"""A fleet of a test's own: Valkey, a PostgreSQL database, web processes, workers and recorders, all of them real."""

import os
import shutil
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import psycopg
import redis

from tests.databases import drop_postgres, manage, new_postgres, postgres_or_skip
from tests.processes import TestedProcess
from tests.proxy import TcpProxy
from tests.servers import ServerProcess
from tests.valkey import ValkeyProcess
from tests.waiting import eventually

WORKER_READY = r"Working; up to"
RECORDER_READY = r"Recording"
DRAINED = (0, -signal.SIGTERM)
"""Exit codes of one that SIGTERM has stopped: uvicorn drains, and then lets the signal end it after all."""
OUTPUT_CHARACTERS = 6000
"""How much of each process's output a failure shows."""


class Fleet:
    """`web`, `workers` and `recorders` are lists of processes, `valkey` is their Valkey; each can be started, stopped,
    killed, frozen and restarted on its own.

    `proxied` puts a TcpProxy, `postgres`, between the processes and the database, to cut them off from it. `env` is
    for all processes. They share one folder for attachments. Leaving the context ends everything and drops the
    database. `server` is the URL of a PostgreSQL; without one the test is skipped, and fails in CI.
    """

    def __init__(
        self,
        folder: Path,
        *,
        web: int = 2,
        workers: int = 2,
        recorders: int = 1,
        durable: bool = True,
        proxied: bool = False,
        server: str = "",
        env: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self._server = server or postgres_or_skip()
        self.database_url = new_postgres(self._server)
        self.valkey = ValkeyProcess(durable=durable)
        self.postgres = _proxy_to(self.database_url) if proxied else None
        self.env = {
            "DATABASE_URL": _through(self.postgres, self.database_url)
            if self.postgres
            else self.database_url,
            "REDIS_URL": self.valkey.url,
            "DATA_DIR": str(folder / "data"),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "default",
            **{key: str(value) for key, value in (env or {}).items()},
        }
        self.web = [self._web(number) for number in range(web)]
        self.workers: list[TestedProcess] = []
        for _ in range(workers):
            self.add_worker()
        self.recorders = [
            self._command("recorder", n, "runrecorder", RECORDER_READY) for n in range(recorders)
        ]

    @property
    def processes(self) -> list[TestedProcess]:
        """All of them, in the order in which they stop."""
        return [*self.web, *self.workers, *self.recorders]

    @property
    def urls(self) -> list[str]:
        """Where the web processes serve."""
        return [server.url for server in self.web]

    # --- all at once ------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start everything; return when everything is up."""
        self.valkey.start()
        if self.postgres is not None:
            self.postgres.start()
        for process in self.processes:
            process.start(wait=False)
        for process in self.processes:
            process.wait_until_up()
        return self

    def stop(self) -> dict[str, int | None]:
        """Stop every process in good order, as `make fleet` does; return the exit codes. Valkey goes on."""
        return {process.name: process.stop() for process in self.processes}

    def close(self) -> None:
        """End everything at once, and drop the database."""
        for process in self.processes:
            process.close()
        self.valkey.close()
        if self.postgres is not None:
            self.postgres.close()
        drop_postgres(self._server, self.database_url)
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def rolling_restart(self) -> None:
        """Restart the web processes, one after the other: each is up before the next one goes."""
        for server in self.web:
            assert server.restart() in DRAINED, self.output()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(self.output())
        self.close()

    def add_worker(self, env: dict[str, Any] | None = None) -> TestedProcess:
        """Return one more worker, which is not started; `env` is for it alone."""
        worker = self._command("worker", len(self.workers), "runturns", WORKER_READY)
        worker.env.update(env or {})
        self.workers.append(worker)
        return worker

    # --- looking ----------------------------------------------------------------------------------------

    def query(self, statement: str) -> list[Any]:
        """Run a SELECT on the fleet's database, past the proxy; return its rows."""
        with psycopg.connect(self.database_url) as connection:
            return list(connection.execute(statement.encode()).fetchall())

    def manage(self, *arguments: str) -> str:
        """Run a management command in the fleet's environment; return what it prints."""
        return manage(*arguments, env={**os.environ, **self.env})

    def redis(self) -> "redis.Redis[bytes]":
        """Return a connection to the fleet's Valkey, for `with`."""
        return redis.Redis.from_url(self.valkey.url, socket_timeout=10)

    def subscriptions(self) -> dict[str, int]:
        """Return every channel that somebody is subscribed to, with how many are."""
        with self.redis() as client:
            channels = [*client.pubsub_channels(), *client.pubsub_shardchannels()]
            counted = (
                [*client.pubsub_numsub(*channels), *client.pubsub_shardnumsub(*channels)] if channels else []
            )
        counts: dict[str, int] = {}
        for name, count in counted:
            text = name.decode() if isinstance(name, bytes) else str(name)
            counts[text] = counts.get(text, 0) + int(count)
        return {name: count for name, count in counts.items() if count}

    def subscriptions_of(self, process: TestedProcess) -> int:
        """Return how many channels one process is subscribed to."""
        ports = _local_ports(process.pid)
        with self.redis() as client:
            listed = client.client_list()
        return sum(
            sum(int(one.get(kind, 0)) for kind in ("sub", "psub", "ssub"))
            for one in listed
            if int(one["addr"].rpartition(":")[2]) in ports
        )

    def rss_mib(self) -> dict[str, float]:
        """Return the resident memory of every living process."""
        return {process.name: process.rss_mib for process in self.processes if process.alive}

    def recorder_lag(self, prefix: str = "backchannel") -> int:
        """Return how many entries of the recorder stream are not recorded yet."""
        with self.redis() as client:
            return int(client.xlen(f"{prefix}:recorder"))

    def until_recorded(self, timeout: float = 60) -> None:
        """Wait until the recorders have recorded everything."""
        eventually(lambda: self.recorder_lag() == 0, timeout=timeout, what="everything's recording")

    def output(self) -> str:
        """Return the last of what each process has said."""
        parts = []
        for process in self.processes:
            state = "alive" if process.alive else "not running"
            parts.append(f"--- {process.name} ({state}) ---\n{process.output()[-OUTPUT_CHARACTERS:]}")
        return "\n".join(parts)

    # --- making -----------------------------------------------------------------------------------------

    def _web(self, number: int) -> ServerProcess:
        server = ServerProcess(
            self._own_folder(f"web-{number}"), database_url=self.database_url, env=self.env
        )
        server.name = f"web-{number}"
        return server

    def _command(self, role: str, number: int, command: str, ready: str) -> TestedProcess:
        name = f"{role}-{number}"
        return TestedProcess(
            name,
            [sys.executable, "manage.py", command],
            self._own_folder(name) / f"{role}.log",
            env={**os.environ, **self.env},
            ready=ready,
        )

    def _own_folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True)
        return folder


def _proxy_to(url: str) -> TcpProxy:
    where = urlsplit(url)
    return TcpProxy(where.port or 5432, where.hostname or "127.0.0.1")


def _through(proxy: TcpProxy, url: str) -> str:
    where = urlsplit(url)
    credentials, at, _ = where.netloc.rpartition("@")
    return urlunsplit(where._replace(netloc=f"{credentials}{at}127.0.0.1:{proxy.port}"))


def _local_ports(pid: int) -> set[int]:
    """Return the local ports of a process's TCP sockets, from the kernel's tables."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    ports = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[9] in inodes:
            ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports
