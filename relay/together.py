"""What is asked of the database at the same time, answered in one visit: a storm of connects is cheap so."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from channels.db import database_sync_to_async

Q = TypeVar("Q")
A = TypeVar("A")

QUESTIONS_AT_ONCE = 64
"""Questions in one visit: some 10 ms, which others on that thread wait for."""


class Together(Generic[Q, A]):
    """Asks on the thread of the database, in the order of the questions; what comes meanwhile goes together.

    A visit there costs a switch of threads, a query, and where connections are not kept a new connection: for each
    client that connects, more than all the rest. `answer` is called there with some questions, and returns as many
    answers; one that is an exception is raised for whoever asked that question. An asker that is cancelled waits no
    longer. Whoever owns it closes it.
    """

    def __init__(self, answer: Callable[[list[Q]], Sequence[A | Exception]]) -> None:
        self._answer = answer
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        """Return the answer, or raise it."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # What waited on a loop that has ended has ended with it.
            self._loop, self._task = loop, None
            self._waiting.clear()
        answered: asyncio.Future[A] = loop.create_future()
        self._waiting.append((question, answered))
        if self._task is None:
            self._task = loop.create_task(self._visit(), name="questions to the database")
        return await answered

    async def aclose(self) -> None:
        """Ask no more; whoever waits is cancelled."""
        if self._task is not None and self._loop is asyncio.get_running_loop():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _visit(self) -> None:
        asked: list[tuple[Q, asyncio.Future[A]]] = []
        try:
            while asked := self._next():
                try:
                    answers = await database_sync_to_async(self._answer)([question for question, _ in asked])
                except Exception as error:  # noqa: BLE001 - it is for those who asked
                    answers = [error] * len(asked)
                for (_, answered), answer in zip(asked, answers, strict=True):
                    _tell(answered, answer)
        finally:
            self._task = None
            for _, answered in (*asked, *self._waiting):
                answered.cancel()
            self._waiting.clear()

    def _next(self) -> list[tuple[Q, "asyncio.Future[A]"]]:
        """Take the next questions, without those that nobody waits for any more."""
        asked: list[tuple[Q, asyncio.Future[A]]] = []
        while self._waiting and len(asked) < QUESTIONS_AT_ONCE:
            question, answered = self._waiting.popleft()
            if not answered.done():
                asked.append((question, answered))
        return asked


def _tell(answered: "asyncio.Future[A]", answer: A | Exception) -> None:
    if answered.done():
        return
    if isinstance(answer, Exception):
        answered.set_exception(answer)
    else:
        answered.set_result(answer)
