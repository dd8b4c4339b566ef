"""Processes that tests start, signal, freeze and kill, with their output in a file."""

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Self

from tests.waiting import eventually

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 120.0
END_SECONDS = 90.0
"""Generous: a machine that runs many of them at once may be very slow."""


def rss_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class TestedProcess:
    """A process of a test; `start`, `stop` (SIGTERM) and `kill` (SIGKILL) as often as one likes.

    It is up when a line of its output matches `ready` (a regular expression); one without is up at once. What it
    says, over all its lives, is in `log`. Whoever starts it stops or kills it.
    """

    __test__ = False

    def __init__(
        self,
        name: str,
        command: list[str],
        log: Path,
        *,
        env: dict[str, str],
        ready: str = "",
        cwd: Path = ROOT,
    ) -> None:
        self.name = name
        self.command = command
        self.log = log
        self.env = env
        self.ready = ready
        self.cwd = cwd
        self.process: subprocess.Popen[bytes] | None = None
        self._said_before = 0

    def start(self, *, wait: bool = True) -> Self:
        """Start it; return when it is up."""
        self._said_before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, cwd=self.cwd, env=self.env, stdout=log, stderr=log)
        if wait:
            self.wait_until_up()
        return self

    def wait_until_up(self) -> None:
        """Return when it is up; fail when it ends before."""
        eventually(self._is_up, timeout=START_SECONDS, what=f"the start of {self.name}")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs (or stands still)."""
        return self.process is not None and self.process.poll() is None

    @property
    def rss_mib(self) -> float:
        """Its resident memory."""
        return rss_mib(self.pid)

    def terminate(self) -> None:
        """Send SIGTERM and return at once."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = END_SECONDS) -> int:
        """Wait for the process to end; return its exit code."""
        assert self.process is not None
        return self.process.wait(timeout)

    def stop(self) -> int | None:
        """Stop it as an orchestrator would; return its exit code."""
        if not self.alive:
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

    def freeze(self) -> None:
        """Let it stand still, with its connections open."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> int | None:
        """Stop it as an orchestrator would, and start it again; return the exit code of the one that went."""
        code = self.stop()
        self.start()
        return code

    def close(self) -> None:
        """End it, whatever its state."""
        if self.alive:
            self.thaw()
            self.kill()

    def output(self) -> str:
        """Return what it has logged so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def _is_up(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(
                f"{self.name} ended with {self.process.returncode}:\n{self.output()[-4000:]}"
            )
        return self._answers()

    def _answers(self) -> bool:
        said = self.log.read_bytes()[self._said_before :].decode("utf-8", "replace")
        return re.search(self.ready, said) is not None
