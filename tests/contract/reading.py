"""What the channel-layer contract reads with."""

import asyncio
from typing import Any

from channels.exceptions import ChannelFull

from comm.history import Position
from relay.layers.base import HistoryChannelLayer

END = "test.end"


async def drained(layer: HistoryChannelLayer, channel: str) -> list[Any]:
    """Return the `n` of every message that waits in a channel; a last one of our own proves them complete."""
    received: list[dict[str, Any]] = []
    while True:
        try:
            await layer.send(channel, {"type": END})
            break
        except ChannelFull:
            received += await asyncio.wait_for(layer.receive_many(channel), 5)
    while not received or received[-1]["type"] != END:
        received += await asyncio.wait_for(layer.receive_many(channel), 5)
    return [message["n"] for message in received[:-1]]


async def received(layer: HistoryChannelLayer, channel: str, count: int) -> list[dict[str, Any]]:
    """Return the next `count` messages of a channel; fail when they take more than five seconds each."""
    return [await asyncio.wait_for(layer.receive(channel), 5) for _ in range(count)]


async def whole_log(layer: HistoryChannelLayer, group: str) -> list[tuple[Position, Any]]:
    """Return the position and `n` of everything that a group's log still holds."""
    log = await layer.group_read(group, Position(0, 0), 1_000_000)
    return [(entry.position, entry.message["n"]) for entry in log.entries]
