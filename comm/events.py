"""The event manager: streams of events for any feature, by context (a workflow, a document, a task)."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import cache
from typing import Any

from channels.layers import get_channel_layer

from .event_bodies import Event, checked_context, encode_event, event_of
from .exceptions import CommError, PublishFailed
from .groups import context_group
from .history import Position
from .publisher import at_home, run_after_commit
from .services import Service

logger = logging.getLogger(__name__)

MESSAGE_TYPE = "comm.event"
CLEANUP_SECONDS = 60.0
READ_AT_ONCE = 256
AWAY_SECONDS = 0.5
"""How soon a reader looks again after the channel layer did not answer; that has waited itself."""
CHECK_SECONDS = 2.0
"""How soon a reader finds what no doorbell told it of."""
RINGS_LOST_FROM = 90
"""Messages that wait at once; a channel takes 100."""
LINGER_SECONDS = 2.0
"""What readers of a context that was cleaned up have to read their last events."""


class EventsLost(CommError):
    """A reader was slower than what is kept of a context: some events were never seen. Reading can go on."""

    code = "events_lost"


class ContextEnded(CommError):
    """The context was cleaned up: nothing more will come."""

    code = "context_ended"


class EventQueue:
    """One reader of a context: every event since the context began, in order, once, like an asyncio.Queue's `get`.

    Each reader has all events for itself. It reads at its own pace, from the log, so it needs no bound.
    Errors of `get`: EventsLost when events were dropped before they were read, ContextEnded after the last one.
    """

    def __init__(
        self, manager: "StreamingEventManager", context_id: str, after: Position | None = None
    ) -> None:
        self.context_id = context_id
        self._manager = manager
        self._after = after
        self._read: deque[Event] = deque()
        self._ended = False

    async def get(self) -> Event:
        """Wait for the next event, also while the channel layer is away. A cancelled `get` takes none along."""
        while not self._read:
            if self._ended:
                raise ContextEnded(f"context {self.context_id} was cleaned up")
            rung = self._manager.doorbell(self.context_id)
            try:
                if not await self._fill():
                    await self._manager.wait(self.context_id, rung)
            except OSError:
                # The layer says that it is away; what is emitted when it is back stands in the log.
                await asyncio.sleep(AWAY_SECONDS)
        return self._read.popleft()

    def get_nowait(self) -> Event:
        """Return an event that was read already. Errors: asyncio.QueueEmpty."""
        if not self._read:
            raise asyncio.QueueEmpty
        return self._read.popleft()

    def empty(self) -> bool:
        """Whether nothing is here that was read and not yet taken."""
        return not self._read

    def qsize(self) -> int:
        """How many events were read and not yet taken."""
        return len(self._read)

    async def _fill(self) -> bool:
        """Read on; tell whether there was anything."""
        group = context_group(self.context_id)
        after = self._after or Position(0, 0)
        log = await _layer().group_read(group, after, READ_AT_ONCE)
        if self._after is None:
            # The first look: everything that is kept is new.
            self._after = after = log.start
            if log.start.seq:
                raise EventsLost(
                    f"context {self.context_id}: its first {log.start.seq} events are not kept any more"
                )
        elif not log.reaches(after):
            self._after = log.start
            raise EventsLost(f"context {self.context_id}: events after {after} are not kept any more")
        for entry in log.entries:
            self._after = entry.position
            if "end" not in entry.message:
                self._read.append(event_of(entry.position, entry.message["body"]))
            elif entry.position == log.tail:
                self._ended = True
        return bool(log.entries)


class StreamingEventManager:
    """Streams of events, by context. One for a process: `get_event_manager()`.

    Events travel through the channel layer, so readers and emitters may be in any process where the layer is
    shared. `emit_event` may be awaited from any thread or loop; everything else belongs to the loop that
    serves. What was emitted before a reader came is read first, as far as the layer's log reaches.
    """

    def __init__(self) -> None:
        self._contexts: set[str] = set()
        self._doorbells: dict[str, asyncio.Event] = {}
        self._waiting: Counter[str] = Counter()
        self._joined: dict[str, str] = {}
        """Group → context, of those whose doorbell rings here."""
        self._tails: dict[str, Position] = {}
        self._cleanups: dict[str, asyncio.TimerHandle] = {}
        self._cleaning: set[asyncio.Task[None]] = set()
        self._jobs: list[asyncio.Task[None]] = []
        self._channel = ""

    # --- contexts -------------------------------------------------------------------------------------

    def create_queue(self, context_id: str) -> EventQueue:
        """Return a new reader of a context, which begins to be where it is new; a cleanup that is due is put off."""
        self._contexts.add(checked_context(context_id))
        pending = self._cleanups.pop(context_id, None)
        if pending is not None:
            pending.cancel()
        return EventQueue(self, context_id)

    def get_queue(self, context_id: str) -> EventQueue | None:
        """Return a new reader of a context that this process knows, else None."""
        return EventQueue(self, context_id) if self.has_queue(context_id) else None

    def has_queue(self, context_id: str) -> bool:
        """Whether this process knows the context: made or emitted to here, and not cleaned up."""
        return context_id in self._contexts

    async def queue_from_now(self, context_id: str) -> EventQueue:
        """Return a reader of what is emitted from now on."""
        self.create_queue(context_id)
        return EventQueue(self, context_id, await _layer().group_tail(context_group(context_id)))

    async def cleanup(self, context_id: str, delay: float = CLEANUP_SECONDS) -> None:
        """Forget a context after some seconds: its readers end, and nothing of it is kept.

        One that is emitted to meanwhile is in use, also by another process: its cleanup begins anew.
        """
        await at_home(self._schedule(checked_context(context_id), delay))

    # --- emitting -------------------------------------------------------------------------------------

    async def emit_event(
        self,
        context_id: str,
        event_type: str,
        data: Mapping[str, Any],
        event_category: str = "default",
        message: str | None = None,
        step: str | None = None,
    ) -> Position:
        """Emit an event to every reader of a context; return its place when the layer has taken it.

        Errors: EnvelopeInvalid names what cannot be sent, PublishFailed when the layer did not take it.
        """
        body = encode_event(context_id, event_type, data, event_category, message, step)
        return await at_home(self._send(context_id, body))

    def emit_event_sync(
        self,
        context_id: str,
        event_type: str,
        data: Mapping[str, Any],
        event_category: str = "default",
        message: str | None = None,
        step: str | None = None,
    ) -> None:
        """Emit from synchronous code: when the open transaction commits, at once without one."""
        body = encode_event(context_id, event_type, data, event_category, message, step)
        run_after_commit(lambda: self._send(context_id, body))

    async def _send(self, context_id: str, body: bytes) -> Position:
        self._contexts.add(context_id)
        return await _group_send(context_id, {"type": MESSAGE_TYPE, "body": body})

    # --- reading --------------------------------------------------------------------------------------

    async def stream_events(
        self, context_id: str, event_categories: Sequence[str] | None = None, timeout: float | None = None
    ) -> AsyncIterator[Event]:
        """Yield the events of a context, of some categories or of all, until it is cleaned up.

        With a timeout it also ends when none of them came for so many seconds. Errors: EventsLost.
        """
        queue = self.create_queue(context_id)
        loop = asyncio.get_running_loop()
        quiet_since = loop.time()
        while True:
            left = None if timeout is None else quiet_since + timeout - loop.time()
            try:
                event = await asyncio.wait_for(queue.get(), left)
            except (TimeoutError, ContextEnded):
                return
            if event_categories is None or event["category"] in event_categories:
                yield event
                quiet_since = loop.time()

    def doorbell(self, context_id: str) -> asyncio.Event:
        """Return what is set when a context has something new; taken before reading, so that no ring is missed."""
        return self._doorbells.setdefault(context_id, asyncio.Event())

    async def wait(self, context_id: str, rung: asyncio.Event) -> None:
        """Wait for a doorbell; returns at once where none was connected before."""
        group = context_group(context_id)
        if group not in self._joined:
            await self._begin_to_listen()
            await _layer().group_add(group, self._channel)
            self._joined[group] = context_id
            # What came before the group was joined rang for nobody.
            return
        self._waiting[context_id] += 1
        try:
            await rung.wait()
        finally:
            self._waiting[context_id] -= 1
            if not self._waiting[context_id]:
                del self._waiting[context_id]

    def _ring(self, context_id: str) -> None:
        doorbell = self._doorbells.pop(context_id, None)
        if doorbell is not None:
            doorbell.set()

    async def _begin_to_listen(self) -> None:
        if not self._jobs:
            loop = asyncio.get_running_loop()
            self._jobs = [loop.create_task(self._keep_running(job)) for job in (self._listen, self._check)]
        if not self._channel:
            self._channel = await _layer().new_channel("events")

    async def _listen(self) -> None:
        while not self._channel:
            await asyncio.sleep(0)
        while True:
            messages = await _layer().receive_many(self._channel)
            groups = {message["group"] for message in messages}
            # A channel that was full has dropped rings: then all may have something.
            for group in self._joined if len(messages) >= RINGS_LOST_FROM else groups:
                if group in self._joined:
                    self._ring(self._joined[group])

    async def _check(self) -> None:
        """Find what no doorbell told of, in one round trip for all; leave the groups that nobody waits for."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for group, context_id in list(self._joined.items()):
                if context_id not in self._waiting:
                    await self._leave(group)
            groups = list(self._joined)
            tails = await _layer().group_tails(groups)
            for group, tail in zip(groups, tails, strict=True):
                if self._tails.get(group) != tail and group in self._joined:
                    self._tails[group] = tail
                    self._ring(self._joined[group])

    async def _leave(self, group: str) -> None:
        context_id = self._joined.pop(group, None)
        self._tails.pop(group, None)
        if context_id is not None:
            await _layer().group_discard(group, self._channel)
            # Whoever came meanwhile joins again.
            self._ring(context_id)

    async def _keep_running(self, job: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await job()
            except Exception:
                # Readers would wait for ever.
                logger.exception("The event manager's listening failed; it starts again")
                await asyncio.sleep(1)

    # --- the end of contexts ----------------------------------------------------------------------------

    async def _schedule(self, context_id: str, delay: float) -> None:
        tail = await _layer().group_tail(context_group(context_id))
        pending = self._cleanups.pop(context_id, None)
        if pending is not None:
            pending.cancel()
        loop = asyncio.get_running_loop()
        self._cleanups[context_id] = loop.call_later(
            max(0.0, delay), self._begin_cleanup, context_id, delay, tail
        )

    def _begin_cleanup(self, context_id: str, delay: float, tail: Position) -> None:
        self._cleanups.pop(context_id, None)
        task = asyncio.get_running_loop().create_task(self._clean_up(context_id, delay, tail))
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)

    async def _clean_up(self, context_id: str, delay: float, tail: Position) -> None:
        group, layer = context_group(context_id), _layer()
        if await layer.group_tail(group) != tail:
            # Somebody has emitted meanwhile, here or elsewhere.
            await self._schedule(context_id, max(delay, 1.0))
            return
        if group in self._joined or layer.shared:
            end = await _group_send(context_id, {"type": MESSAGE_TYPE, "end": True})
            await asyncio.sleep(LINGER_SECONDS)
            if await layer.group_tail(group) != end:
                await self._schedule(context_id, max(delay, 1.0))
                return
        self._contexts.discard(context_id)
        await self._leave(group)
        self._doorbells.pop(context_id, None)
        await layer.group_forget(group)

    async def aclose(self) -> None:
        """Stop what runs here; contexts end with their logs."""
        for handle in self._cleanups.values():
            handle.cancel()
        tasks = [*self._cleaning, *self._jobs]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._jobs.clear()
        self._channel = ""
        for known in (
            self._contexts,
            self._doorbells,
            self._waiting,
            self._joined,
            self._tails,
            self._cleanups,
        ):
            known.clear()


@cache
def get_event_manager() -> StreamingEventManager:
    """Return the process's event manager."""
    return StreamingEventManager()


class EventManagerService(Service):
    """Ends the event manager with the process."""

    async def aclose(self) -> None:
        """Stop what runs for its readers."""
        await get_event_manager().aclose()


def _layer() -> Any:
    layer = get_channel_layer()
    if layer is None:
        raise PublishFailed("no channel layer is configured")
    return layer


async def _group_send(context_id: str, message: dict[str, Any]) -> Position:
    try:
        position: Position = await _layer().group_send(context_group(context_id), message)
    except OSError as error:
        raise PublishFailed(f"the channel layer did not take an event: {error}") from error
    return position
