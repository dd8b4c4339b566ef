"""Reading a session's past in one order from two tiers: the channel layer's log, then the archive."""

from dataclasses import dataclass
from typing import Literal

from channels.layers import get_channel_layer

from comm.archive import get_archive
from comm.groups import session_group
from comm.history import Entry, Position

from .layers.base import HistoryChannelLayer

Source = Literal["log", "archive"]


@dataclass(frozen=True, slots=True)
class Replay:
    """The next entries after a position; none and not lost means that there is nothing newer."""

    entries: list[Entry]
    source: Source


@dataclass(frozen=True, slots=True)
class Lost:
    """Neither tier can vouch for what follows the position; reading can go on after `restart`."""

    restart: Position


def history_layer() -> HistoryChannelLayer:
    """Return the default channel layer, which must have a history."""
    layer = get_channel_layer()
    if not isinstance(layer, HistoryChannelLayer):
        raise TypeError(
            "CHANNEL_LAYERS['default'] must be a channel layer with history, such as "
            f"relay.layers.memory.MemoryChannelLayer; it is {type(layer).__name__}"
        )
    return layer


async def read_after(session_id: str, after: Position, limit: int) -> Replay | Lost:
    """Return up to `limit` of the oldest entries after a position of this session."""
    group = session_group(session_id)
    log = await history_layer().group_read(group, after, limit)
    if log.reaches(after):
        return Replay(log.entries, "log")
    if after >= log.start:
        # A position of the future, or of no log that this session ever had.
        return Lost(log.tail)
    archived = await get_archive().read(session_id, after, log.start, limit)
    if archived is None:
        return Lost(log.start)
    if archived:
        return Replay(archived, "archive")
    # The archive ends where the log begins.
    return await read_after(session_id, log.start, limit)
