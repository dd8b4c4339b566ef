"""A peer: one connected client, the frames waiting for it, its position, and its end."""

import asyncio
import enum
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from comm.history import Entry, Position

from . import stepping
from .conf import relay_settings
from .history import Lost, read_after
from .merging import merge_deltas
from .transports.frames import Encoder, Frame

logger = logging.getLogger(__name__)

KEEPALIVE_TICKS = 4
"""The hub's keepalive timer ticks so often in one `KEEPALIVE_SECONDS`: idle streams wait 1 to 1.25 of it."""


_TOLD: dict[str, Any] = {}
"""`resume` of a peer that has been told: thousands of idle peers share it."""


class Wire(Protocol):
    """What a transport lends its peer: how to write, how to word things, how to end."""

    @property
    def encode(self) -> Encoder:
        """How a frame is written on this wire."""

    @property
    def keepalive(self) -> bytes:
        """What keeps an idle connection open; empty where the protocol does so by itself."""

    def write(self, frames: Sequence[bytes]) -> Coroutine[Any, Any, None]:
        """Write frames to the client, in order; waits while its socket is full."""

    def ready(self, peer: "Peer", resume: dict[str, Any], position: Position) -> list[bytes]:
        """Return the frames that a stream begins with; `ready` tells where it starts."""

    def goodbye(self, peer: "Peer", retry_after_ms: int) -> bytes:
        """Return the frames that announce a drain."""

    def finish(self) -> Coroutine[Any, Any, None]:
        """End the stream after what was written; harmless when the client has gone."""


class State(enum.Enum):
    """A peer's life, in this order but for LIVE and PULLING, which alternate."""

    JOINING = "joined, its first frame not written yet"
    LIVE = "frames are written as the hub offers them"
    PULLING = "it reads the history from its own position"
    ENDING = "its last frames are on their way"
    CLOSED = "nothing is written any more"


class Peer:
    """One connected client of a session.

    It is offered every frame of its session in order, and writes those that are meant for it, once each.
    What piles up is written in one go, once per turn of the loop; there is no task while the socket takes
    it. Past `PEER_QUEUE_BYTES` the queue is dropped and the peer reads the history at its own pace, until it
    has caught up. The transport that opens a peer closes it; closing twice is harmless.
    """

    __slots__ = (
        "__weakref__",
        "_base",
        "_busy",
        "_flush_due",
        "_limit",
        "_on_end",
        "_queue",
        "_queued_bytes",
        "_tail",
        "_task",
        "_wire",
        "cursor",
        "project",
        "project_events",
        "quiet_ticks",
        "resume",
        "session_id",
        "sids",
        "state",
        "stream_id",
        "tenant",
        "user_type",
    )  # fmt: skip

    def __init__(
        self,
        wire: Wire,
        *,
        session_id: str,
        user_type: str,
        stream_id: str,
        tenant: str,
        project: str,
        project_events: bool = False,
        sids: tuple[str, ...] = (),
    ) -> None:
        self._wire = wire
        self.session_id = session_id
        self.user_type = user_type
        self.stream_id = stream_id
        self.tenant = tenant
        self.project = project
        self.project_events = project_events
        self.sids = (stream_id, *sids)
        self.state = State.JOINING
        self.cursor = Position(0, 0)
        self.resume = _TOLD
        self.quiet_ticks = 0
        self._tail: Callable[[], Position] = lambda: self.cursor
        self._limit = relay_settings().PEER_QUEUE_BYTES
        self._queue: list[bytes] = []
        self._queued_bytes = 0
        self._base = self.cursor
        self._flush_due = False
        self._busy = False
        self._task: asyncio.Task[None] | None = None

    # --- the transport's and the hub's side -------------------------------------------------------

    def begin(self, tail: Callable[[], Position]) -> None:
        """Write the `ready` frame, then what the peer missed, then go live.

        `tail` tells the position up to which the hub has delivered the session.
        """
        if self.state is not State.JOINING:
            return
        self._tail = tail
        self._base = self.cursor
        for data in self._wire.ready(self, self.resume, self.cursor):
            self._push(data)
        self.resume = _TOLD
        if self.cursor >= tail():
            self.state = State.LIVE
        else:
            self._pull(merge=False)

    def offer(self, frame: Frame, flushes: "list[Callable[[], None]] | None" = None) -> int:
        """Take the session's next frame without waiting; return the bytes that this put in the queue.

        It is written in this turn of the loop. Who offers many frames may collect what writes them, and call it.
        """
        if self.state is not State.LIVE:
            # A pulling peer finds it in the history; only what has no position it would find nowhere.
            return self._offer_transient(frame) if self.state is State.PULLING else 0
        if frame.position is not None and frame.position <= self.cursor:
            return 0
        handed = 0
        if frame.target_sid is None or frame.target_sid in self.sids:
            data = frame.encoded(self._wire.encode)
            if self._queued_bytes + len(data) > self._limit and not self._make_room():
                return 0
            self._push(data, flushes)
            handed = len(data)
        if frame.position is not None:
            self.cursor = frame.position
        return handed

    def fall_back(self) -> None:
        """Stop taking offers and read the history instead: the hub cannot say what came in between."""
        if self.state is State.LIVE:
            self._flush()
            self._drop_queue()
            self._pull(merge=False)

    def keep_alive(self) -> None:
        """Write a keepalive if nothing was written for `KEEPALIVE_TICKS` calls."""
        self.quiet_ticks += 1
        if self.quiet_ticks >= KEEPALIVE_TICKS and self.state is State.LIVE and not self._busy:
            self.say(self._wire.keepalive)

    def say(self, data: bytes) -> None:
        """Write a frame of the transport's own, that has no position, between those of the session."""
        if data and self.is_open:
            self._push(data)

    async def has_room(self) -> None:
        """Wait while more waits for the socket than a peer's queue should hold.

        Whoever answers a client's messages on its stream waits here first: a client that sends and does
        not read is then not read either.
        """
        while self._queued_bytes > self._limit and self._task is not None:
            await asyncio.wait([self._task])

    def say_goodbye(self, retry_after_ms: int) -> None:
        """Announce the drain and end the stream after what is already on its way."""
        if self.state not in (State.LIVE, State.PULLING):
            # One that is still joining is told by its transport.
            return
        if self.state is State.PULLING:
            # What it has not read yet it will read after it reconnects.
            self._cancel_task()
        self.state = State.ENDING
        self._queue.append(self._wire.goodbye(self, retry_after_ms))
        self._flush()

    def close(self) -> None:
        """Write nothing more; what was waiting stays in the session's log."""
        self.state = State.CLOSED
        self._queue.clear()
        self._cancel_task()

    async def retire(self) -> Position:
        """Take nothing more, let what is being written end, and return where a successor on this wire goes on."""
        pulling = self.state is State.PULLING
        self.state = State.CLOSED
        self._queue.clear()
        if self._task is not None:
            await asyncio.wait([self._task])
        return self.cursor if pulling else self._base

    async def aclose(self) -> None:
        """Close, and wait until nothing of this peer runs any more."""
        task = self._task
        self.close()
        if task is not None and task is not asyncio.current_task():
            await asyncio.gather(task, return_exceptions=True)

    @property
    def is_open(self) -> bool:
        """Whether frames are still written: it has begun, and neither ends nor is closed."""
        return self.state in (State.LIVE, State.PULLING)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes wait for the socket here."""
        return self._queued_bytes

    # --- live ---------------------------------------------------------------------------------------

    def _push(self, data: bytes, flushes: "list[Callable[[], None]] | None" = None) -> None:
        self._queue.append(data)
        self._queued_bytes += len(data)
        if not self._flush_due and not self._busy:
            self._flush_due = True
            if flushes is None:
                asyncio.get_running_loop().call_soon(self._flush)
            else:
                flushes.append(self._flush)

    def _make_room(self) -> bool:
        """Empty the queue: into the socket, or else by going to the history (False)."""
        self._flush()
        if not self._queue:
            return self.state is State.LIVE
        logger.info("Stream %s reads slowly: it goes on from the log", self.stream_id)
        self._drop_queue()
        self._pull(merge=True)
        return False

    def _drop_queue(self) -> None:
        self._queue.clear()
        self._queued_bytes = 0
        self.cursor = self._base

    def _flush(self) -> None:
        self._flush_due = False
        if self._busy or not self._queue:
            return
        self._base = self.cursor
        self._run(self._write(self._take_queue()))

    def _take_queue(self) -> list[bytes]:
        frames, self._queue = self._queue, []
        self._queued_bytes = 0
        self.quiet_ticks = 0
        return frames

    async def _write(self, frames: list[bytes]) -> None:
        await self._wire.write(frames)
        if self.state is State.ENDING and not self._queue:
            self.state = State.CLOSED
            await self._wire.finish()

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a write; only one that has to wait for the socket becomes a task."""
        try:
            task = stepping.start(coroutine)
        except (OSError, RuntimeError) as error:
            self._fail(error)
            return
        if task is not None:
            self._own(task)

    def _own(self, task: asyncio.Task[None]) -> None:
        self._busy = True
        self._task = task
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._task is not task:
            return
        self._task = None
        self._busy = False
        if error is not None:
            self._fail(error)
        else:
            self._flush()

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
            self._busy = False

    def _fail(self, error: BaseException) -> None:
        """End the stream: a client that is still there connects again and resumes."""
        if self.state is State.CLOSED:
            return
        if isinstance(error, OSError):
            logger.info("Stream %s cannot be written: %s", self.stream_id, error)
        else:
            logger.error("Stream %s failed and is ended", self.stream_id, exc_info=error)
        self.close()
        self._run(self._wire.finish())

    # --- pulling ------------------------------------------------------------------------------------

    def _offer_transient(self, frame: Frame) -> int:
        if frame.position is not None or self._queued_bytes + len(frame.body) > self._limit:
            return 0
        self._push(frame.encoded(self._wire.encode))
        return 0

    def _pull(self, *, merge: bool) -> None:
        self.state = State.PULLING
        self._own(asyncio.get_running_loop().create_task(self._catch_up(self._task, merge)))

    async def _catch_up(self, before: asyncio.Task[None] | None, merge: bool) -> None:
        """Write the history from the cursor on, as the socket takes it, until the hub's position is reached."""
        if before is not None:
            await before
        at_once = relay_settings().PULL_ENTRIES
        while self.state is State.PULLING:
            if self._queue:
                await self._wire.write(self._take_queue())
            replay = await read_after(self.session_id, self.cursor, at_once)
            if isinstance(replay, Lost):
                self._tell_reset(replay)
            elif replay.entries:
                # What is too much to wait for this socket is read again when its turn comes.
                frames = _up_to(self._limit, replay.entries)
                at_once = min(relay_settings().PULL_ENTRIES, 2 * len(frames))
                del replay
                await self._write_frames(frames, merge)
                self.cursor = frames[-1].position or self.cursor
            elif self.cursor >= self._tail():
                self._base = self.cursor
                self.state = State.LIVE
            else:
                # The hub delivered more while the log's answer was on its way.
                await asyncio.sleep(0)

    async def _write_frames(self, frames: list[Frame], merge: bool) -> None:
        meant = [frame for frame in frames if frame.target_sid is None or frame.target_sid in self.sids]
        if meant:
            written = merge_deltas(meant) if merge else meant
            self.quiet_ticks = 0
            await self._wire.write([frame.encoded(self._wire.encode) for frame in written])

    def _tell_reset(self, lost: Lost) -> None:
        logger.warning(
            "Stream %s: history after %s is gone; it goes on at %s", self.stream_id, self.cursor, lost.restart
        )
        self.cursor = lost.restart
        notice = reset_notice(self.cursor, self._tail())
        self._queue += self._wire.ready(self, notice, self.cursor)


def _up_to(size: int, entries: Sequence[Entry]) -> list[Frame]:
    """Return the first entries as frames: as many as fit into this many bytes, and at least one."""
    frames: list[Frame] = []
    for entry in entries:
        frame = Frame.of(entry.message, entry.position)
        size -= len(frame.body)
        if frames and size < 0:
            break
        frames.append(frame)
    return frames


def reset_notice(start: Position, tail: Position) -> dict[str, Any]:
    """Return `ready.resume` of a stream whose past could not be recovered; it goes on after `start`."""
    return {"outcome": "reset", "from": str(start), "to": str(tail), "source": None}
