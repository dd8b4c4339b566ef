"""What a process sends through Redis: in the order of the calls, many in one script call, each exactly once."""

import asyncio
import time
from collections import deque
from struct import iter_unpack
from typing import Any

from comm.history import Position

from .calls import Call, RedisAway
from .link import Link
from .scripts import Script

MESSAGES_AT_ONCE = 128
"""Messages in one call of the script, which stands in everybody's way for some 10 µs each."""
BATCHES_AT_ONCE = 2
"""Batches under way; Redis remembers what became of so many."""
BYTES_AT_ONCE = 1024 * 1024
GRACE_SECONDS = 1.0
"""How long after its time limit an answer may still come: Redis takes nothing after the limit."""
PLACES_REMEMBERED = 2048
"""At least so many groups, those sent to last, have their last position known to this process."""
PLACE_BYTES = 16


class Outgoing:
    """One message on its way, and who waits for its position."""

    __slots__ = ("deadline", "error", "future", "name", "packed", "position", "settled", "written")

    def __init__(
        self, name: bytes, packed: bytes, deadline: float, future: "asyncio.Future[Position | None]"
    ) -> None:
        self.name = name
        self.packed = packed
        self.deadline = deadline
        self.future = future
        self.written = False
        self.settled = False
        self.position: Position | None = None
        self.error: Exception | None = None

    def take(self, position: Position | None) -> None:
        """It was taken; also whoever was cancelled this moment can still learn where."""
        self.position = position
        self.settled = True
        if not self.future.done():
            self.future.set_result(position)

    def fail(self, error: Exception) -> None:
        """It was not taken, or is not known to be."""
        self.error = error
        self.settled = True
        if not self.future.done():
            self.future.set_exception(error)


class Sender:
    """Sends messages over a link, two batches at a time; what is called meanwhile makes up the next one.

    Redis works on one while this process makes the other. A batch may be repeated when the wire broke: Redis
    knows the number of the last one it took, and what became of it and of the one before. A batch that follows
    one without an answer says so, and is not taken when that one was not: the order of calls is kept whatever
    happens. A batch also carries its time limit by Redis' clock, so a message whose sender was told that it
    failed is not taken later.

    Names begin with a letter for the script: `r` (numbered, kept, recorded), `h` (numbered, kept), `p`
    (recorded), `g` (only published).
    """

    def __init__(self, sender_id: str, script: Script) -> None:
        self._places: dict[bytes, bytes] = {}
        self._older_places: dict[bytes, bytes] = {}
        self._sender_id = sender_id
        self._script = script
        self._queue: deque[Outgoing] = deque()
        self._under_way: deque[Batch] = deque()
        self._returned: list[Outgoing] = []
        """What was not taken, and goes first again once nothing is under way."""
        self._number = time.time_ns() // 1_000_000
        self._ahead_ms = 0.0
        """The clock of Redis, in ms, minus the loop's."""

    def set_clock(self, redis_ms: int, loop_seconds: float) -> None:
        """Take note of what Redis' clock says at a time of the loop's."""
        self._ahead_ms = redis_ms - loop_seconds * 1000

    def send(self, link: Link, name: bytes, packed: bytes, within: float | None = None) -> Outgoing:
        """Send a message; the future brings its position, or RedisAway when it was not taken.

        `within` so many seconds it is taken or never; no later than others in any case.
        """
        loop, seconds = link.loop, link.timeout_seconds
        if within is not None and within < seconds:
            seconds = within
        item = Outgoing(name, packed, loop.time() + seconds, loop.create_future())
        self._queue.append(item)
        if len(self._under_way) < BATCHES_AT_ONCE:
            link.flush_soon()
        return item

    def pump(self, link: Link) -> None:
        """Put the next batches on the link, as many as may be under way."""
        while self._queue and len(self._under_way) < BATCHES_AT_ONCE and not self._returned:
            if not (items := self._next_items(link)):
                return
            self._number += 1
            batch = Batch(self, link, items, self._encoded(items))
            self._under_way.append(batch)
            link.send(batch)

    def _next_items(self, link: Link) -> list[Outgoing]:
        items: list[Outgoing] = []
        size = 0
        queue, now = self._queue, link.loop.time()
        while queue and len(items) < MESSAGES_AT_ONCE and size < BYTES_AT_ONCE:
            item = queue.popleft()
            if item.future.done():
                continue
            if item.deadline < now:
                # Redis would refuse all that travels with it.
                item.fail(link.away())
            else:
                item.written = True
                items.append(item)
                size += len(item.packed)
        return items

    def _encoded(self, items: list[Outgoing]) -> bytes:
        """Return the script's call: who sends, which batch, until when, whether after one without an answer."""
        until_ms = int(min([item.deadline for item in items]) * 1000 + self._ahead_ms)
        parts = [
            b"*%d\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n0\r\n" % (7 + 2 * len(items), self._script.digest),
            *(
                b"$%d\r\n%b\r\n" % (len(text), text)
                for text in (
                    self._sender_id.encode(),
                    b"%d" % self._number,
                    b"%d" % until_ms,
                    b"1" if self._under_way else b"0",
                )
            ),
        ]
        for item in items:
            parts.append(
                b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(item.name), item.name, len(item.packed), item.packed)
            )
        return b"".join(parts)

    def taken(self, link: Link, batch: "Batch", reply: bytes) -> None:
        """The batch's answer: tell each sender its position."""
        self._answered(link, batch)
        places = self._places
        for number, (item, (epoch, seq)) in enumerate(
            zip(batch.items, iter_unpack(">QQ", reply), strict=True)
        ):
            if epoch:
                places[item.name[1:]] = reply[PLACE_BYTES * number : PLACE_BYTES * (number + 1)]
            item.take(Position(epoch, seq) if epoch else None)
        if len(places) > PLACES_REMEMBERED:
            self._older_places, self._places = places, {}

    def not_taken(self, link: Link, batch: "Batch") -> None:
        """Redis took none of a batch: send what somebody still waits for once more, before all that came later."""
        now = link.loop.time()
        for item in batch.items:
            if item.deadline > now and not item.future.cancelled():
                item.written = False
                self._returned.append(item)
            else:
                item.fail(RedisAway(f"Redis at {link.address} did not answer in time"))
        self._answered(link, batch)

    def failed(self, link: Link, batch: "Batch", error: Exception) -> None:
        """Redis refused a batch, or the link is closed."""
        for item in batch.items:
            item.fail(error)
        self._answered(link, batch)

    def _answered(self, link: Link, batch: "Batch") -> None:
        self._under_way.remove(batch)
        if self._returned and not self._under_way:
            self._queue.extendleft(reversed(self._returned))
            self._returned.clear()
        if self._queue:
            link.flush_soon()

    def give_up(self, link: Link, now: float) -> None:
        """Tell the senders whose time is over; Redis refuses their batch when it comes to it."""
        for batch in self._under_way:
            for item in batch.items:
                if item.deadline + GRACE_SECONDS < now and not item.future.done():
                    item.fail(link.away())
        for item in self._returned:
            if item.deadline < now and not item.future.done():
                item.fail(link.away())
        while self._queue and (self._queue[0].deadline < now or self._queue[0].future.done()):
            self._queue.popleft().fail(link.away())

    def close(self, error: Exception) -> None:
        """Fail whatever waits."""
        for item in (*self._returned, *self._queue):
            item.fail(error)
        self._returned.clear()
        self._queue.clear()

    def places(self) -> dict[bytes, bytes]:
        """Group → the newest place that this process was given in it: epoch and seq, 8 bytes each."""
        return {**self._older_places, **self._places}

    def remember(self, places: dict[bytes, bytes]) -> None:
        """Go on from what another sender of this process knew."""
        self._older_places = places


class Batch(Call):
    """Messages that go in one call of the script."""

    __slots__ = ("_link", "_sender", "items")

    def __init__(self, sender: Sender, link: Link, items: list[Outgoing], data: bytes) -> None:
        super().__init__(data, float("inf"), script=sender._script)
        self.items = items
        self._sender = sender
        self._link = link

    def answer(self, reply: Any) -> None:
        if reply.startswith(b"LATE"):
            self._sender.set_clock(int(reply.split()[1]), self._link.loop.time())
            self._sender.not_taken(self._link, self)
        elif reply == b"WAIT":
            self._sender.not_taken(self._link, self)
        else:
            self._sender.taken(self._link, self, reply)

    def fail(self, error: Exception) -> None:
        self._sender.failed(self._link, self, error)
