"""The hub: which peers of this process belong to which session, and what is next for each."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator

from comm.groups import HUBS, project_group, session_group
from comm.history import Position
from comm.publisher import TRANSIENT_TYPE

from .conf import relay_settings
from .exceptions import Unavailable
from .history import Lost, history_layer, read_after
from .layers.base import HistoryChannelLayer, Message
from .peers import KEEPALIVE_TICKS, Peer, reset_notice
from .registry import StreamInfo, StreamTeller, add_stream, remove_stream
from .transports.frames import Frame

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2
"""When a stream that could not be opened is worth another try."""


class Room:
    """The peers of one group in this process, and the position up to which they were served.

    `last` is None until the group is joined. `seen` is the newest position that the layer rang for while
    the room could not deliver it.
    """

    __slots__ = ("closed", "fill", "group", "last", "lock", "peers", "seen")

    def __init__(self, group: str) -> None:
        self.group = group
        self.peers: set[Peer] = set()
        self.last: Position | None = None
        self.seen = Position(0, 0)
        self.fill: asyncio.Task[None] | None = None
        self.lock = asyncio.Lock()
        self.closed = False

    def tail(self) -> Position:
        """The position up to which the room has been served."""
        return self.last or Position(0, 0)


class Hub:
    """Delivers each session's envelopes to its peers in this process: in order, once, without a gap.

    One process channel listens to the groups that have peers here; a group is joined with its first peer
    and left with its last. A position that is not the next one shows a hole, which is read from the log.
    Whoever starts the hub closes it.
    """

    def __init__(self) -> None:
        self._rooms: dict[str, Room] = {}
        self._joined: set[Peer] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self.channel = ""
        self.delivered = 0
        """Messages that the layer handed to this hub so far."""
        self._behind = False
        self._budget = 0
        self._flushes: list[Callable[[], None]] = []
        """What writes to the sockets, of peers that were offered something just now."""
        self._layer: HistoryChannelLayer
        self._teller: StreamTeller | None = None

    async def start(self) -> None:
        """Take a process channel and listen to it."""
        self._layer = history_layer()
        self.channel = await self._layer.new_channel("hub")
        await self._layer.group_add(HUBS, self.channel)
        self._budget = relay_settings().TURN_BUDGET_BYTES
        self._layer.listen(self.channel, self._hear)
        self._teller = StreamTeller(self._layer)
        for job in (self._check_tails, self._look_after_outages, self._keep_alive):
            self._tasks.append(asyncio.create_task(self._keep_running(job), name=f"hub {job.__name__}"))

    async def aclose(self) -> None:
        """Close every peer, leave every group and stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if self.channel:
            self._layer.stop_listening(self.channel)
            await self._layer.group_discard(HUBS, self.channel)
        for peer in list(self.peers()):
            await self.leave(peer)
        if self._teller is not None:
            await self._teller.aclose()
            self._teller = None

    def peers(self) -> Iterator[Peer]:
        """Every peer of this process, once."""
        return iter(self._joined)

    @property
    def groups(self) -> list[str]:
        """The groups that this process has joined."""
        return list(self._rooms)

    # --- joining ------------------------------------------------------------------------------------

    async def join(self, peer: Peer, last_event_id: str | None) -> Callable[[], Position]:
        """Register a peer and find where its stream starts; return what `Peer.begin` asks for.

        `peer.cursor` and `peer.resume` are set. Whoever joins a peer leaves it, also when this raises.
        Errors: Unavailable (503) while the layer's store is away.
        """
        self._joined.add(peer)
        infos = _infos(peer)
        for info in infos:
            add_stream(info)
        try:
            room = await self._enter(session_group(peer.session_id), peer)
            if peer.project_events:
                await self._enter(project_group(peer.tenant, peer.project), peer)
            await self._plan(peer, room.tail(), last_event_id)
        except OSError as error:
            logger.warning("A stream of session %s could not be opened: %s", peer.session_id, error)
            raise Unavailable("The stream cannot be opened right now.", retry_after=RETRY_SECONDS) from error
        if self._teller is not None:
            await self._teller.opened(infos)
        return room.tail

    async def leave(self, peer: Peer) -> None:
        """Forget a peer and close it; harmless when it never joined."""
        if peer not in self._joined:
            await peer.aclose()
            return
        self._joined.discard(peer)
        infos = _infos(peer)
        for info in infos:
            remove_stream(info)
        if self._teller is not None:
            self._teller.closed(infos)
        try:
            await self._exit(session_group(peer.session_id), peer)
            if peer.project_events:
                await self._exit(project_group(peer.tenant, peer.project), peer)
        finally:
            await peer.aclose()

    async def _enter(self, group: str, peer: Peer) -> Room:
        while True:
            room = self._rooms.setdefault(group, Room(group))
            async with room.lock:
                if room.closed:
                    continue
                room.peers.add(peer)
                if room.last is None:
                    await self._layer.group_add(group, self.channel)
                    room.last = await self._position_of(group)
                    self._fill_if_behind(room)
                return room

    async def _exit(self, group: str, peer: Peer) -> None:
        room = self._rooms.get(group)
        if room is None:
            return
        room.peers.discard(peer)
        async with room.lock:
            if room.peers or room.closed:
                return
            room.closed = True
            del self._rooms[group]
            if room.fill is not None:
                room.fill.cancel()
            await self._layer.group_discard(group, self.channel)

    async def _position_of(self, group: str) -> Position:
        return await self._layer.group_tail(group) if self._layer.has_history(group) else Position(0, 0)

    async def _plan(self, peer: Peer, tail: Position, last_event_id: str | None) -> None:
        peer.cursor = tail
        peer.resume = {"outcome": "live", "from": str(tail), "to": str(tail), "source": "log"}
        if last_event_id is None:
            return
        try:
            after = Position.parse(last_event_id)
        except ValueError:
            peer.resume = reset_notice(tail, tail)
            return
        replay = await read_after(peer.session_id, after, 1)
        if isinstance(replay, Lost):
            # What is newer than the loss is still worth having.
            peer.cursor = min(replay.restart, tail)
            peer.resume = reset_notice(peer.cursor, tail)
        else:
            peer.cursor = after
            peer.resume = {
                "outcome": "replayed",
                "from": str(after),
                "to": str(tail),
                "source": replay.source,
            }

    # --- delivering ---------------------------------------------------------------------------------

    def _hear(self) -> None:
        """Messages have come: deliver them, unless that is under way."""
        if not self._behind:
            self._work_off()

    def _work_off(self) -> None:
        """Deliver what waits, and have it written; past the budget of a turn of the loop, go on in the next one."""
        self._behind = False
        spent = 0
        while spent <= self._budget:
            try:
                if (message := self._layer.take(self.channel)) is None:
                    break
                self.delivered += 1
                spent += self._take(message)
            except Exception:
                # A hub that stopped listening would silence every stream of the process.
                logger.exception("The hub could not deliver a message")
        else:
            # Let the sockets take it before more is buffered.
            self._behind = True
            asyncio.get_running_loop().call_soon(self._work_off)
        self._write_offered()

    def _write_offered(self) -> None:
        flushes, self._flushes = self._flushes, []
        for flush in flushes:
            try:
                flush()
            except Exception:
                # The streams of the others go on.
                logger.exception("A stream could not be written")

    def _take(self, message: Message) -> int:
        """Deliver a message if it is the next of its group; return the bytes handed to peers."""
        if message["type"] == TRANSIENT_TYPE and message["group"] is None:
            return self._show(Frame.of(message, None))
        room = self._rooms.get(message["group"])
        if room is None:
            return 0
        position: Position | None = message.get("position")
        if position is None:
            return self._deliver(room, Frame.of(message, None), self._flushes)
        last = room.last
        if last is None or room.fill is not None:
            room.seen = max(room.seen, position)
            return 0
        if position.seq == last.seq + 1 and position.epoch == last.epoch:
            room.last = position
            return self._deliver(room, Frame.of(message, position), self._flushes)
        room.seen = max(room.seen, position)
        self._fill_if_behind(room)
        return 0

    def _show(self, frame: Frame) -> int:
        """Offer what is kept nowhere to the streams that it names, whatever their session."""
        flushes = self._flushes
        return sum(peer.offer(frame, flushes) for peer in self._joined if frame.target_sid in peer.sids)

    def _deliver(self, room: Room, frame: Frame, flushes: list[Callable[[], None]] | None = None) -> int:
        handed = 0
        for peer in room.peers:
            handed += peer.offer(frame, flushes)
        return handed

    def _fill_if_behind(self, room: Room) -> None:
        if room.fill is None and not room.closed and room.seen > room.tail():
            room.fill = asyncio.create_task(self._fill(room), name=f"fill {room.group}")
            room.fill.add_done_callback(lambda task: self._filled(room, task))

    async def _fill(self, room: Room) -> None:
        """Read the log from the room's position until it reaches what the layer rang for."""
        while room.tail() < room.seen:
            after = room.tail()
            log = await self._layer.group_read(room.group, after, relay_settings().PULL_ENTRIES)
            if not log.reaches(after):
                logger.warning(
                    "Group %s: the log no longer reaches %s; its peers read the archive", room.group, after
                )
                room.last = log.tail
                for peer in list(room.peers):
                    peer.fall_back()
            for entry in log.entries if log.reaches(after) else ():
                room.last = entry.position
                self._deliver(room, Frame.of(entry.message, entry.position))
            if room.tail() == after:
                # It rang for a position that no log has.
                room.seen = after

    def _filled(self, room: Room, task: asyncio.Task[None]) -> None:
        room.fill = None
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            # The next message or the tail check tries again.
            exc_info = None if isinstance(error, OSError) else error
            logger.error("Group %s could not be read from its log: %s", room.group, error, exc_info=exc_info)
            return
        self._fill_if_behind(room)

    # --- timers -------------------------------------------------------------------------------------

    async def _check_tails(self) -> None:
        """Find lost last events: compare the tails of the joined groups with what was delivered."""
        while True:
            await asyncio.sleep(relay_settings().TAIL_CHECK_SECONDS)
            await self._compare_tails()

    async def _compare_tails(self) -> None:
        rooms = [r for r in self._rooms.values() if r.last is not None and self._layer.has_history(r.group)]
        if not rooms:
            return
        tails = await self._layer.group_tails([room.group for room in rooms])
        for room, tail in zip(rooms, tails, strict=True):
            room.seen = max(room.seen, tail)
            self._fill_if_behind(room)

    async def _look_after_outages(self) -> None:
        """After each time that the layer was cut off from its store: fill what was missed, tell what was told."""
        while True:
            await self._layer.resumed()
            await self._compare_tails()
            if self._teller is not None:
                await self._teller.tell_again()

    async def _keep_alive(self) -> None:
        """Serve every peer's keepalive by one timer."""
        while True:
            await asyncio.sleep(relay_settings().KEEPALIVE_SECONDS / KEEPALIVE_TICKS)
            for number, peer in enumerate(list(self.peers())):
                peer.keep_alive()
                if number % 500 == 499:
                    await asyncio.sleep(0)

    async def _keep_running(self, job: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await job()
            except OSError as error:
                logger.warning(
                    "The hub's %s waits for the layer's store: %s", getattr(job, "__name__", job), error
                )
                await asyncio.sleep(1)
            except Exception:
                # A hub that stopped listening would silence every stream of the process.
                logger.exception("The hub's %s failed; it starts again", getattr(job, "__name__", job))
                await asyncio.sleep(1)

    # --- draining -----------------------------------------------------------------------------------

    async def say_goodbye(self, window_seconds: float, patience_seconds: float = 2.0) -> None:
        """Tell every stream to come back later, each in a slot of its own, and end it.

        Returns when all have ended, or after `patience_seconds` for those that do not read.
        """
        peers = list(self.peers())
        for number, peer in enumerate(peers):
            peer.say_goodbye(1000 + int(1000 * window_seconds * number / max(1, len(peers))))
            if number % 200 == 199:
                await asyncio.sleep(0)
        deadline = asyncio.get_running_loop().time() + patience_seconds
        while self._joined and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)


def _infos(peer: Peer) -> list[StreamInfo]:
    """Return what the registry keeps of a peer: one entry for each of its names."""
    anonymous = peer.user_type == "anonymous"
    return [StreamInfo(sid, peer.session_id, peer.tenant, peer.project, anonymous) for sid in peer.sids]


_hub: Hub | None = None


def get_hub() -> Hub:
    """Return the process's hub, made on first use and started by the lifecycle."""
    global _hub
    if _hub is None:
        _hub = Hub()
    return _hub
