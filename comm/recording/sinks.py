"""Event sinks: whoever takes the batches of a recording, called so that nobody waits for it too long."""

import asyncio
import contextvars
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypedDict

from django.db import connections

from comm.publisher import home_loop

from .items import Item

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 3.0
"""What a live sink has for the last events of a turn: less than a turn's observers have, more than a request takes."""
LEFT_BEHIND = 4
"""Threads of sinks that hang, for one communicator."""
BATCH_SECONDS = 0.1
"""Between two batches of a live sink: what is said meanwhile goes out as one."""
RETRY_SECONDS = 1.0
"""Before a live sink that failed is tried again; doubled each time up to RETRY_MAX_SECONDS."""
RETRY_MAX_SECONDS = 30.0

EventSink = Callable[..., Awaitable[Mapping[str, Any] | None] | Mapping[str, Any] | None]
"""Called with the batch, and by keyword `comm` and `filter`; may say how many it took: `{"sent": n}`, or `accepted`."""


class SendResult(TypedDict, total=False):
    """What became of a batch: `disabled` without a sink, `error` when the sink failed; the events were kept then."""

    ok: bool
    sent: int
    skipped: int
    disabled: bool
    sink_result: Any
    error: str


class SinkBusy(Exception):
    """The sink has not come back from an earlier batch yet."""


class SinkCall:
    """Calls the sinks of one communicator: an async one on the event loop, any other on a thread.

    A thread cannot be ended from outside: one that does not come back in time is left behind. Until it comes back
    its sink is not called again, and past LEFT_BEHIND of them none is: a sink that hangs costs few threads.
    """

    def __init__(self) -> None:
        self._left_behind: list[tuple[EventSink, threading.Thread]] = []

    async def __call__(self, sink: EventSink, batch: list[Item], seconds: float, **keywords: Any) -> Any:
        """Return the sink's answer. Errors: TimeoutError, SinkBusy, and whatever the sink raises."""
        try:
            async with asyncio.timeout(seconds) as within:
                if _is_async(sink):
                    answer: Any = sink(batch, **keywords)
                else:
                    answer = await self._on_a_thread(sink, partial(sink, batch, **keywords))
                return await answer if inspect.isawaitable(answer) else answer
        except TimeoutError:
            if within.expired():
                raise TimeoutError(f"the event sink did not answer in {seconds:g} s") from None
            raise

    async def _on_a_thread(self, sink: EventSink, work: Callable[[], Any]) -> Any:
        self._left_behind = [(held, thread) for held, thread in self._left_behind if thread.is_alive()]
        if len(self._left_behind) >= LEFT_BEHIND or any(held == sink for held, _ in self._left_behind):
            raise SinkBusy("the event sink has not come back from an earlier batch")
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # Neither the executor that everything shares, which one sink could fill, nor this task's context.
        context = contextvars.Context()
        thread = threading.Thread(
            target=context.run, args=(_work_off, work, outcome), name="event sink", daemon=True
        )
        thread.start()
        try:
            answer, error = await outcome
        except asyncio.CancelledError:
            self._left_behind.append((sink, thread))
            raise
        if error is not None:
            raise error
        return answer


class LiveSink:
    """Hands events on while the turn goes on: one batch at a time, by a task that lives while there is something.

    `send` hands over what is there and says what became of it; None: nothing is to be handed over any more. After a
    failure it waits, longer each time, and tries again; what piles up meanwhile is bounded by the recording.
    Whoever made it closes it.
    """

    def __init__(self, send: Callable[[], Awaitable[SendResult]]) -> None:
        self.send: Callable[[], Awaitable[SendResult]] | None = send
        self._task: asyncio.Task[None] | None = None
        self._due = False
        self._closing = asyncio.Event()

    def stir(self) -> None:
        """Say that there is something to hand over; from a coroutine on any event loop."""
        running = asyncio.get_running_loop()
        loop = home_loop() or running
        if loop is running:
            self._begin()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(self._begin)

    async def aclose(self) -> None:
        """Hand over what is left, as far as the time goes, and stop."""
        self._closing.set()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._task is not None and self._task.get_loop() is asyncio.get_running_loop():
                    await asyncio.shield(self._task)
                if self.send is not None:
                    await self.send()
        except TimeoutError:
            logger.warning("An event sink did not take the last events of its turn in time")
        finally:
            await self._end()

    async def _end(self) -> None:
        task, self._task = self._task, None
        if task is None or task.done():
            return
        loop = task.get_loop()
        if loop is asyncio.get_running_loop():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif not loop.is_closed():
            # Without a serving process a task is on the loop of whoever spoke; only that loop can await it.
            loop.call_soon_threadsafe(task.cancel)

    def _begin(self) -> None:
        self._due = True
        if self.send is not None and not self._closing.is_set() and (self._task is None or self._task.done()):
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._run(), name="live sink", context=contextvars.Context())

    async def _run(self) -> None:
        pause = RETRY_SECONDS
        while self._due and self.send is not None and not self._closing.is_set():
            self._due = False
            result = await self.send()
            if result["ok"] and not result["skipped"]:
                pause = RETRY_SECONDS
                await self._wait(BATCH_SECONDS)
            elif not result["disabled"]:
                self._due = True
                await self._wait(pause)
                pause = min(2 * pause, RETRY_MAX_SECONDS)

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except TimeoutError:
            return


def sent_of(answer: Any, whole: int) -> int:
    """Return how many events of a batch a sink says it took; all where it does not say."""
    if isinstance(answer, Mapping):
        for name in ("sent", "accepted"):
            number = answer.get(name)
            if isinstance(number, int) and not isinstance(number, bool):
                return max(0, min(number, whole))
    return whole


def _is_async(sink: EventSink) -> bool:
    return inspect.iscoroutinefunction(sink) or inspect.iscoroutinefunction(type(sink).__call__)


def _work_off(work: Callable[[], Any], outcome: asyncio.Future[Any]) -> None:
    """Do a sink's work on this thread, and tell the loop that waits for it."""
    answer, error = None, None
    try:
        answer = work()
    except Exception as raised:  # noqa: BLE001 - handed to whoever waits for this thread
        error = raised
    except BaseException as raised:  # noqa: BLE001 - SystemExit would end the server there
        error = RuntimeError(f"the event sink raised {type(raised).__name__}")
    finally:
        connections.close_all()
    try:
        outcome.get_loop().call_soon_threadsafe(_tell, outcome, (answer, error))
    except RuntimeError:
        logger.warning("An event sink came back after its event loop had ended")


def _tell(outcome: asyncio.Future[Any], result: tuple[Any, Exception | None]) -> None:
    if not outcome.done():
        outcome.set_result(result)
