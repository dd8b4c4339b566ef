"""Starting a coroutine without a task: most sends of a server finish without waiting."""

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any


class _Rest:
    """Awaits what is left of a coroutine that has been started and now waits for `first`."""

    __slots__ = ("_coroutine", "_first")

    def __init__(self, coroutine: Coroutine[Any, Any, None], first: Any) -> None:
        self._coroutine = coroutine
        self._first = first

    def __await__(self) -> Generator[Any, Any, None]:
        waiting_for = self._first
        try:
            while True:
                try:
                    value = yield waiting_for
                except BaseException as error:  # noqa: BLE001 - whatever it is, it is handed on
                    # A cancel reaches us here; it is meant for the coroutine.
                    waiting_for = self._coroutine.throw(error)
                else:
                    waiting_for = self._coroutine.send(value)
        except StopIteration:
            return


async def _finish(rest: _Rest) -> None:
    await rest


def start(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
    """Run a coroutine until it first waits; return None when it is done, else a task with the rest of it.

    What the coroutine raises before it waits is raised here. The caller owns the task. The part that runs
    here has no current task, so the coroutine must not need one (asyncio.timeout does) before it waits.
    """
    try:
        first = coroutine.send(None)
    except StopIteration:
        return None
    return asyncio.get_running_loop().create_task(_finish(_Rest(coroutine, first)))
