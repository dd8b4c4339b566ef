"""Which streams are open, here and in the other processes: stream id → session and scope, from any thread.

Each process knows its own streams by itself, and tells them to the others through the layer's store, where there
is one. What it told ends by itself some time after the process did.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from comm.publisher import home_loop

from .conf import relay_settings
from .history import history_layer
from .layers.base import HistoryChannelLayer

logger = logging.getLogger(__name__)

TOLD_KEEPALIVES = 3
"""For how many KEEPALIVE_SECONDS a stream is told; it is told again after each."""
FIND_SECONDS = 1.0
"""How long a request waits for what other processes know."""
STREAM_ID_CHARACTERS = 200
"""What is longer names no stream."""


class StreamInfo(NamedTuple):
    """One open stream."""

    stream_id: str
    session_id: str
    tenant: str
    project: str
    anonymous: bool


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[StreamInfo])

_streams: dict[str, tuple[StreamInfo, ...]] = {}


def find_streams(stream_id: str) -> list[StreamInfo]:
    """Return the open streams of this id, in all processes; several connections, and sessions, may share one.

    While the store is away, only those of this process are known. Not on the event loop of the layer.
    """
    found = list(_streams.get(stream_id, ()))
    return found + [info for info in _find_elsewhere(stream_id) if info not in found]


def find_stream_of(session_id: str, stream_id: str) -> StreamInfo | None:
    """Return the open stream of this id and session; other processes are asked only when it is not here."""
    for streams in (_streams.get(stream_id, ()), _find_elsewhere(stream_id)):
        for info in streams:
            if info.session_id == session_id:
                return info
    return None


def add_stream(info: StreamInfo) -> None:
    """Note that a stream has opened."""
    # Tuples are replaced, never changed: a thread that reads meanwhile sees the one or the other.
    _streams[info.stream_id] = (*_streams.get(info.stream_id, ()), info)


def remove_stream(info: StreamInfo) -> None:
    """Forget one stream of this id, session and scope."""
    left = list(_streams.get(info.stream_id, ()))
    if info in left:
        left.remove(info)
    if left:
        _streams[info.stream_id] = tuple(left)
    else:
        _streams.pop(info.stream_id, None)


def _find_elsewhere(stream_id: str) -> list[StreamInfo]:
    loop = home_loop()
    if loop is None or not 0 < len(stream_id) <= STREAM_ID_CHARACTERS:
        return []
    layer = history_layer()
    if not layer.shared:
        return []
    asking = asyncio.run_coroutine_threadsafe(layer.find_streams(stream_id, FIND_SECONDS), loop)
    try:
        told = asking.result(2 * FIND_SECONDS)
    except OSError as error:
        asking.cancel()
        logger.warning("Only the streams of this process are known: %s", error or "no answer in time")
        return []
    return [info for part in told for info in _decoder.decode(part)]


class StreamTeller:
    """Tells the other processes of the streams of this one: when they open and close, and again and again.

    Whoever starts it closes it.
    """

    def __init__(self, layer: HistoryChannelLayer) -> None:
        self._layer = layer
        self._closed: set[str] = set()
        self._due = asyncio.Event()
        self._task = asyncio.create_task(self._keep_telling(), name="tell the open streams")

    async def opened(self, infos: Iterable[StreamInfo]) -> None:
        """Tell of streams that have opened; returns when every process can find them, or the store is away."""
        if self._layer.shared:
            await self._tell({info.stream_id for info in infos})

    def closed(self, infos: Iterable[StreamInfo]) -> None:
        """Tell, soon, of streams that have closed."""
        self._closed.update(info.stream_id for info in infos)
        self._due.set()

    async def aclose(self) -> None:
        """Tell of what has closed, and stop."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._tell_closed()

    async def _keep_telling(self) -> None:
        loop = asyncio.get_running_loop()
        again_at = loop.time() + relay_settings().KEEPALIVE_SECONDS
        while self._layer.shared:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(again_at):
                    await self._due.wait()
            # By the clock, since streams that close all the while would put a pause off for ever.
            if loop.time() >= again_at:
                again_at = loop.time() + relay_settings().KEEPALIVE_SECONDS
                await self.tell_again()
            await self._tell_closed()

    async def tell_again(self) -> None:
        """Tell of every open stream: what was told ends, and the store may have lost it."""
        await self._tell(set(_streams))

    async def _tell_closed(self) -> None:
        closed, self._closed = self._closed, set()
        self._due.clear()
        await self._tell(closed)

    async def _tell(self, stream_ids: set[str]) -> None:
        if not stream_ids or not self._layer.shared:
            return
        told = {stream_id: _packed(stream_id) for stream_id in stream_ids}
        try:
            await self._layer.tell_streams(told, TOLD_KEEPALIVES * relay_settings().KEEPALIVE_SECONDS)
        except OSError as error:
            # The next time tells the same; until then the streams are found where they are.
            logger.warning("The other processes were not told of %d streams: %s", len(told), error)


def _packed(stream_id: str) -> bytes:
    streams = _streams.get(stream_id, ())
    return _encoder.encode(streams) if streams else b""
