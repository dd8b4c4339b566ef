"""What the recorder has yet to commit: how much, how old, and waiting for it."""

import asyncio
from collections.abc import Iterator

from comm.recorder_stream import CONSUMER_GROUP, StreamKeys

from .calls import RedisAway, RedisRefused, command
from .link import Link

LOOK_SECONDS = (0.05, 0.5)
"""The first and the longest wait between two looks; a thousand clients may wait for a recorder that is away."""


class Backlog:
    """The recorder stream, looked at from the layer's side; an entry leaves it when it is committed."""

    def __init__(self, keys: StreamKeys) -> None:
        self._keys = keys
        self._stream = keys.stream

    async def lag(self, link: Link) -> tuple[int, float]:
        """Return how many entries there are, and the age of the oldest in seconds by the clock of Redis."""
        count, oldest, (seconds, micros) = await asyncio.gather(
            link.ask(command("XLEN", self._stream)),
            link.ask(command("XRANGE", self._stream, "-", "+", "COUNT", 1)),
            link.ask(command("TIME")),
        )
        if not oldest:
            return 0, 0.0
        since = int(oldest[0][0].partition(b"-")[0]) / 1000
        return count, max(0.0, int(seconds) + int(micros) / 1e6 - since)

    async def worked_off(self, link: Link, timeout_seconds: float) -> bool:
        """Wait until everything that is there now is a row, or a gap that a row names.

        False when that took too long, when Redis is away, and while no recorder has noted this life of the store.
        """
        try:
            pauses = _pauses()
            async with asyncio.timeout(timeout_seconds):
                newest = await self._entry_id(link, "XREVRANGE", "+", "-")
                while newest and (oldest := await self._entry_id(link, "XRANGE", "-", "+")):
                    if oldest > newest:
                        break
                    await asyncio.sleep(next(pauses))
                while not await self._is_noted(link):
                    await asyncio.sleep(next(pauses))
        except (TimeoutError, RedisAway):
            return False
        return True

    async def _is_noted(self, link: Link) -> bool:
        """Tell whether a recorder has joined, and no gap waits for its row."""
        if await link.ask(command("EXISTS", self._keys.gaps, self._keys.taken)):
            return False
        try:
            groups = await link.ask(command("XINFO", "GROUPS", self._stream))
        except RedisRefused:
            # There is no stream: nothing was ever sent, and no recorder has come.
            return False
        return any(group[b"name"] == CONSUMER_GROUP.encode() for group in groups)

    async def _entry_id(self, link: Link, *how: str) -> tuple[int, int] | None:
        found = await link.ask(command(how[0], self._stream, *how[1:], "COUNT", 1))
        if not found:
            return None
        epoch, _, seq = found[0][0].partition(b"-")
        return int(epoch), int(seq)


def _pauses() -> Iterator[float]:
    pause, longest = LOOK_SECONDS
    while True:
        yield pause
        pause = min(longest, 2 * pause)
