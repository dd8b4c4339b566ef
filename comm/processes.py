"""What every process of the house needs around its work: a hook for signals, and a sign of life."""

import asyncio
import contextlib
import contextvars
import json
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)

BEAT_SECONDS = 1.0
DEAD_SECONDS = 15.0
"""A process whose last beat is older hangs, or is gone."""


class SignalHook:
    """Comes before the server's own signal handlers: the first signal drains, the second stops at once."""

    def __init__(self, begin: Callable[[Callable[[], None]], None]) -> None:
        self._begin = begin
        self._previous: dict[int, Any] = {}
        self._signalled = False

    def install(self) -> None:
        """Put the hook before the present handlers; off the main thread (autoreload) there is none."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._loop = asyncio.get_running_loop()
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:
            self._pass_on(number)
            return
        self._signalled = True
        # A context of its own: that of the task which the signal interrupted may say that its thread is in use.
        context = contextvars.Context()
        self._loop.call_soon_threadsafe(self._begin, lambda: self._pass_on(number), context=context)

    def _pass_on(self, number: int) -> None:
        previous = self._previous.get(number)
        if callable(previous):
            previous(number, None)
        elif previous != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


class Heartbeat:
    """A file that says each second that a process's event loop runs: `<folder>/<role>-<host>-<pid>.json`.

    It holds what `told()` returns. Whoever starts it closes it, which removes the file.
    """

    def __init__(self, folder: Path, role: str, told: Callable[[], dict[str, Any]]) -> None:
        self._stem = _stem(role)
        self._path = folder / f"{self._stem}{os.getpid()}.json"
        self._told = told
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Beat, from now on."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._bury()
        self._write()
        self._task = asyncio.create_task(self._beat(), name="heartbeat")

    async def aclose(self) -> None:
        """Stop, and leave no sign of life."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                self._write()
            except OSError:
                logger.warning("The sign of life could not be written", exc_info=True)

    def _bury(self) -> None:
        """Remove what killed processes have left."""
        for path in self._path.parent.glob(f"{self._stem}*.json"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > DEAD_SECONDS:
                    path.unlink()

    def _write(self) -> None:
        # Written beside and moved, so that a reader never sees half of it.
        beat = {"pid": os.getpid(), "at": time.time(), **self._told()}
        with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False) as file:
            json.dump(beat, file)
        Path(file.name).replace(self._path)


def living(folder: Path, role: str) -> list[dict[str, Any]]:
    """Return the last beats of the processes of a role that live on this host."""
    beats = [_read(path) for path in folder.glob(f"{_stem(role)}*.json")]
    return [beat for beat in beats if beat is not None and time.time() - beat["at"] < DEAD_SECONDS]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        beat: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return beat


def _stem(role: str) -> str:
    return f"{role}-{socket.gethostname()}-"
