"""Child processes in the foreground: their output behind a prefix, a new start when they die, an end in good order."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

RESTART_SECONDS = 0.5
RESTART_SECONDS_MAX = 15.0
LONG_LIFE_SECONDS = 30.0
"""A process that lived for so long starts at once again; one that dies sooner waits longer each time."""
LINE_BYTES = 1024 * 1024
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Program:
    """What one child runs. `stop_seconds`: how long it may take to end after SIGTERM, before it is killed."""

    role: str
    name: str
    command: Sequence[str]
    env: dict[str, str]
    port: int | None = None
    stop_seconds: float = 30.0


@dataclass
class Child:
    """A program, and the process that runs it at present."""

    program: Program
    process: asyncio.subprocess.Process | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def pid(self) -> int | None:
        """The process that runs it; None between two."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None


class Supervisor:
    """Keeps programs running. `changed` is called with all children whenever a process was started or has ended.

    Processes are sessions of their own: Ctrl-C reaches the supervisor alone, which ends them in order. Should it be
    killed, the kernel (Linux) sends them SIGTERM. Whoever starts any calls `stop`.
    """

    def __init__(self, changed: Callable[[Sequence[Child]], None]) -> None:
        self.children: list[Child] = []
        self._changed = changed
        self._stopping = False
        self._width = 0

    async def start(self, program: Program) -> Child:
        """Start a program, and start it again whenever it ends, until `stop`."""
        child = Child(program)
        self.children.append(child)
        self._width = max(self._width, len(program.name))
        await self._spawn(child)
        child.tasks.append(asyncio.create_task(self._keep(child)))
        return child

    async def run(self, program: Program) -> int:
        """Run a program to its end; return its exit code."""
        child = Child(program)
        await self._spawn(child)
        process = child.process
        assert process is not None
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            raise
        await asyncio.gather(*child.tasks)
        return code

    def say(self, text: str, name: str = "fleet") -> None:
        """Print a line."""
        # Who read it may have gone; the processes run on.
        with contextlib.suppress(BrokenPipeError):
            print(f"{name:<{self._width}} | {text}", flush=True)

    async def stop(self, *stages: Sequence[str]) -> bool:
        """End the children, role after role, each once those before it have ended; True when none had to be killed."""
        self._stopping = True
        clean = True
        for roles in stages:
            leaving = [child for child in self.children if child.program.role in roles]
            ended = await asyncio.gather(*map(self._end, leaving))
            clean = clean and all(ended)
        for child in self.children:
            for task in child.tasks:
                task.cancel()
            await asyncio.gather(*child.tasks, return_exceptions=True)
        return clean

    def hurry(self) -> None:
        """End every child at once."""
        for child in self.children:
            self._signal(child, signal.SIGKILL)

    # --- one child --------------------------------------------------------------------------------------

    async def _spawn(self, child: Child) -> None:
        program = child.program
        child.process = await asyncio.create_subprocess_exec(
            *program.command,
            env=program.env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LINE_BYTES,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        child.tasks = [task for task in child.tasks if not task.done()]
        child.tasks.append(asyncio.create_task(self._repeat(child.process, program.name)))
        self._changed(self.children)

    async def _keep(self, child: Child) -> None:
        program = child.program
        pauses = _pauses()
        while True:
            began = time.monotonic()
            assert child.process is not None
            pid, code = child.process.pid, await child.process.wait()
            self._changed(self.children)
            if self._stopping:
                return
            if time.monotonic() - began > LONG_LIFE_SECONDS:
                pauses = _pauses()
            pause = next(pauses)
            self.say(f"{program.role} (process {pid}) ended with {_worded(code)}; again in {pause:g} s")
            await asyncio.sleep(pause)
            if self._stopping:
                return
            await self._spawn(child)
            self.say(f"{program.role} runs again (process {child.pid})")

    async def _end(self, child: Child) -> bool:
        process = child.process
        if process is None or process.returncode is not None:
            return True
        self._signal(child, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), child.program.stop_seconds)
        except TimeoutError:
            self.say(f"{child.program.name} has not ended in {child.program.stop_seconds:g} s and is killed")
            self._signal(child, signal.SIGKILL)
            await process.wait()
            return False
        self.say(f"{child.program.name} has ended ({_worded(process.returncode)})")
        return True

    @staticmethod
    def _signal(child: Child, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if child.pid is not None:
                os.kill(child.pid, number)

    async def _repeat(self, process: asyncio.subprocess.Process, name: str) -> None:
        """Print what a process says, line by line."""
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:
                line = b"(a line that is too long)"
            if not line:
                return
            self.say(line.decode("utf-8", "replace").rstrip("\n"), name)


def _pauses() -> Iterator[float]:
    pause = RESTART_SECONDS
    while True:
        yield pause
        pause = min(pause * 2, RESTART_SECONDS_MAX)


def _worded(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def _end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the supervisor dies without a word; runs in the child, before its program."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
