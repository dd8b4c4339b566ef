"""The signal hook: the first signal drains, on its own."""

import asyncio
import contextvars
import os
import signal
from collections.abc import Iterator

import pytest

from comm.processes import SignalHook

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
