"""The signal hook, whose first signal drains on its own; and the sign of life of a process."""

import asyncio
import contextvars
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from comm.processes import Heartbeat, SignalHook, living
from tests.waiting import aeventually

interrupted = contextvars.ContextVar("interrupted", default="nothing")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Leave the process's signal handlers as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_a_drain_knows_nothing_of_the_task_that_its_signal_interrupted() -> None:
    begun = asyncio.Event()
    seen: list[str] = []

    def begin(pass_on: object) -> None:
        seen.append(interrupted.get())
        begun.set()

    SignalHook(begin).install()
    interrupted.set("a task")
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(begun.wait(), 10)
    assert seen == ["nothing"]


# --- signs of life ------------------------------------------------------------------------------------------------


async def test_a_process_is_seen_to_live_until_it_ends(tmp_path: Path) -> None:
    turns = 1
    beat = Heartbeat(tmp_path, "worker", lambda: {"turns": turns})
    beat.start()
    try:
        assert [(b["pid"], b["turns"]) for b in living(tmp_path, "worker")] == [(os.getpid(), 1)]
        assert living(tmp_path, "web") == []
        turns = 2
        await aeventually(lambda: [b["turns"] for b in living(tmp_path, "worker")] == [2])
    finally:
        await beat.aclose()
    assert living(tmp_path, "worker") == []
    assert list(tmp_path.iterdir()) == []


async def test_a_killed_process_is_dead_and_the_next_one_buries_it(tmp_path: Path) -> None:
    left = tmp_path / f"worker-{socket.gethostname()}-1.json"
    left.write_text(json.dumps({"pid": 1, "at": time.time() - 60}))
    os.utime(left, (time.time() - 60, time.time() - 60))
    assert living(tmp_path, "worker") == []
    beat = Heartbeat(tmp_path, "worker", dict)
    beat.start()
    await beat.aclose()
    assert not left.exists()


def test_there_is_no_life_where_there_is_no_folder(tmp_path: Path) -> None:
    assert living(tmp_path / "none", "worker") == []
