"""What a layer asks of Redis without more ado: reading logs, the recorder's backlog, streams, and the end of all."""

import asyncio
import re
from struct import Struct

from comm.history import Entry, LogSlice, Position
from comm.recorder_stream import StreamKeys, unpack

from .backlog import Backlog
from .calls import command
from .link import Link
from .mail import LocalMail
from .scripts import Script, Scripts

PLACE = Struct(">QQ")
"""A position as the scripts write it: epoch and seq."""
GROUPS_AT_ONCE = 256
"""Groups in one call of a script that looks at each."""
READ_BYTES = 1024 * 1024
"""What one read of a log brings at most; some reads may be under way at once, and Redis cuts off a reader that is
32 MB behind."""


class RedisStore(LocalMail):
    """The part of the layer that lies in Redis, under one prefix. Its calls raise RedisAway when Redis is away."""

    def __init__(
        self,
        prefix: str,
        scripts: Scripts,
        recorded: bool,
        expiry: float,
        capacity: int,
        channel_capacity: dict[re.Pattern[str] | str, int] | None,
        group_expiry: float,
    ) -> None:
        super().__init__(expiry, capacity, channel_capacity, group_expiry)
        self._prefix = f"{prefix}:"
        self._scripts: dict[str, Script] = scripts.all
        self._recorded = recorded
        self._keys = StreamKeys.of(prefix)
        self._backlog = Backlog(self._keys)

    def _linked(self) -> Link:
        """Return the link of the running loop."""
        raise NotImplementedError

    # --- history ------------------------------------------------------------------------------------

    def _history(self, group: str) -> str:
        self.require_valid_group_name(group)
        if not self.has_history(group):
            raise ValueError(f"group {group} has no history")
        return group

    async def group_read(self, group: str, after: Position, limit: int) -> LogSlice:
        """Return up to `limit` kept entries after a position, with the log's bounds, in one step.

        One read brings some READ_BYTES at most, and at least one entry where there is one.
        """
        link = self._linked()
        script = self._scripts["read"]
        async with link.reading:
            reply = await link.run(script, self._history(group), after.epoch, after.seq, limit, READ_BYTES)
        tail = Position(*PLACE.unpack(reply[0]))
        epoch = tail.epoch
        entries = [
            Entry(Position(epoch, seq), unpack(packed)) for seq, packed in enumerate(reply[2], reply[3] + 1)
        ]
        return LogSlice(Position(epoch, reply[1]), tail, entries)

    async def group_tail(self, group: str) -> Position:
        """Return the newest position of the group; makes the log when there is none."""
        return (await self.group_tails([group]))[0]

    async def group_tails(self, groups: list[str]) -> list[Position]:
        """Return the newest positions of several groups: one script call for some hundreds, all in one write."""
        link = self._linked()
        script = self._scripts["tails"]
        names = [self._history(group) for group in groups]
        parts = [names[start : start + GROUPS_AT_ONCE] for start in range(0, len(names), GROUPS_AT_ONCE)]
        replies = await asyncio.gather(*(link.run(script, *part) for part in parts))
        return [Position(*place) for reply in replies for place in PLACE.iter_unpack(reply)]

    async def group_forget(self, group: str) -> None:
        """Drop the log of a group at once; the next one is of a later epoch."""
        self.require_valid_group_name(group)
        await self._linked().run(self._scripts["forget"], group)

    # --- the recorder, and streams --------------------------------------------------------------------

    async def recorder_lag(self) -> tuple[int, float] | None:
        """Return how many messages the recorder has yet to commit, and the age of the oldest in seconds."""
        return await self._backlog.lag(self._linked()) if self._recorded else None

    async def recorded_up_to_now(self, timeout_seconds: float) -> bool:
        """Wait until the recorder has committed all that was sent before; False when it took too long."""
        return await self._backlog.worked_off(self._linked(), timeout_seconds) if self._recorded else True

    async def tell_streams(self, streams: dict[str, bytes], seconds: float) -> None:
        """Tell every process which streams are open here, or have closed (empty), for so many seconds."""
        link = self._linked()
        script = self._scripts["tell"]
        parts = [part for told in streams.items() for part in told]
        size = 2 * GROUPS_AT_ONCE
        await asyncio.gather(
            *(
                link.run(script, self._process_id, int(seconds * 1000), *parts[start : start + size])
                for start in range(0, len(parts), size)
            )
        )

    async def find_streams(self, stream_id: str, timeout_seconds: float) -> list[bytes]:
        """Return what each process told of a stream; RedisAway when that is not known in time."""
        found: list[bytes] = await self._linked().run(
            self._scripts["find"], stream_id, timeout_seconds=timeout_seconds
        )
        return found

    async def _wipe(self) -> None:
        """Forget everything under the prefix but which epochs were given."""
        link = self._linked()
        await link.run(self._scripts["forget_all"])
        kept = {f"{self._prefix}clock".encode(), self._keys.born.encode()}
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", self._prefix) + "*"
        cursor = b"0"
        while True:
            cursor, keys = await link.ask(command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000))
            if doomed := [key for key in keys if key not in kept]:
                await link.ask(command("UNLINK", *doomed))
            if cursor == b"0":
                return
