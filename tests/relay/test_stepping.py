"""Starting coroutines without a task."""

import asyncio

import pytest

from relay import stepping


async def test_a_coroutine_that_never_waits_is_done_at_once() -> None:
    done = []

    async def work() -> None:
        done.append(1)

    assert stepping.start(work()) is None
    assert done == [1]


async def test_a_coroutine_that_waits_is_finished_by_the_task() -> None:
    gate, done = asyncio.Event(), []

    async def work() -> None:
        await gate.wait()
        await asyncio.sleep(0)
        done.append(1)

    task = stepping.start(work())
    assert task is not None
    assert done == []
    gate.set()
    await task
    assert done == [1]


async def test_an_event_that_is_set_before_the_task_runs_is_not_missed() -> None:
    gate = asyncio.Event()
    task = stepping.start(_wait(gate))
    gate.set()
    assert task is not None
    await asyncio.wait_for(task, 1)


async def _wait(gate: asyncio.Event) -> None:
    await gate.wait()


async def test_what_it_raises_at_once_is_raised_to_the_caller() -> None:
    async def work() -> None:
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        stepping.start(work())


async def test_what_it_raises_later_is_raised_by_the_task() -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise ConnectionResetError("gone")

    task = stepping.start(work())
    assert task is not None
    with pytest.raises(ConnectionResetError):
        await task


async def test_cancelling_the_task_reaches_the_coroutine() -> None:
    seen = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    task = stepping.start(work())
    assert task is not None
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]
