"""The recorder stream: what a shared channel layer leaves for the recorder process, in Redis.

The layer appends in the same atomic step that numbers and publishes; the recorder reads with a consumer
group and deletes what it has committed, so the stream's length is what is not yet recorded. Only envelopes
(`comm.publisher.MESSAGE_TYPE`) to sessions and projects are appended.
"""

from typing import Any, NamedTuple

import msgspec

from .groups import PROJECT_PREFIX, SESSION_PREFIX
from .history import Position

CONSUMER_GROUP = "recorders"
RECORDED_PREFIXES = (SESSION_PREFIX, PROJECT_PREFIX)

MOST_GAPS = 50_000
"""Groups whose gaps are noted one by one; what the others miss is counted together, under OTHER_GROUPS."""
OTHER_GROUPS = "*"

WENT_BACK = "back"
"""A fourth word in the note of a gap: the store came back without these. Some or all of them may be recorded."""

ENTRY_BYTES = 100
"""What an entry costs in Redis beside its group, position and message: its id, the lengths, the pending list."""


class StreamKeys(NamedTuple):
    """The names of what the layer and the recorder share, under one prefix.

    stream: a Redis stream of entries with the fields `p` (position as `<epoch>-<seq>`, empty where there is none),
    `g` (the group) and `m` (the packed message). held: bytes in it, by `entry_bytes`. gaps: a hash, group →
    `first last count` of what found no room, or was lost with a crash of the store, since the gap was last taken
    note of (`- - count` where there are no positions; WENT_BACK may follow). taken: gaps that a recorder has taken
    out of `gaps` and is about to write down, with the id of this taking under the empty name. born: ms when this
    store's data began; one that lost its data has a later one.

    Everything appended up to now is recorded when the consumer group exists (a recorder makes it once it has
    noted this life of the store), `gaps` and `taken` do not, and the first entry left is a later one.
    """

    stream: str
    held: str
    gaps: str
    born: str
    taken: str

    @classmethod
    def of(cls, prefix: str) -> "StreamKeys":
        """Return the names under a prefix, which is the layer's."""
        stream = f"{prefix}:recorder"
        return cls(stream, f"{stream}:bytes", f"{stream}:gaps", f"{prefix}:born", f"{stream}:gaps:taken")


class StreamEntry(NamedTuple):
    """One entry of the stream; `message` is the channel-layer message as it was sent."""

    entry_id: str
    group: str
    position: Position | None
    message: dict[str, Any]
    size: int


class Gap(NamedTuple):
    """How many messages of a group are missing, and between which positions (None for projects)."""

    group: str
    first: Position | None
    last: Position | None
    lost: int
    went_back: bool = False


_packer = msgspec.msgpack.Encoder()
_unpacker = msgspec.msgpack.Decoder(dict[str, Any])


def pack(message: dict[str, Any]) -> bytes:
    """Return a channel-layer message as it travels; TypeError for what has no such form."""
    return _packer.encode(message)


def unpack(packed: bytes) -> dict[str, Any]:
    """Return a message of its own from what `pack` made."""
    return _unpacker.decode(packed)


def entry_bytes(group: bytes, position: bytes, packed: bytes) -> int:
    """Return what an entry counts for; the layer's script counts the same."""
    return ENTRY_BYTES + len(group) + len(position) + len(packed)


def read_entry(entry_id: bytes, fields: dict[bytes, bytes]) -> StreamEntry:
    """Read an entry as Redis returns it; ValueError when it is none of ours."""
    try:
        group, position, packed = fields[b"g"], fields[b"p"], fields[b"m"]
        message = unpack(packed)
    except (KeyError, msgspec.DecodeError) as error:
        raise ValueError(f"recorder stream entry {entry_id!r} cannot be read: {error}") from error
    where = Position.parse(position.decode()) if position else None
    return StreamEntry(
        entry_id.decode(), group.decode(), where, message, entry_bytes(group, position, packed)
    )


def read_gap(group: bytes, noted: bytes) -> Gap:
    """Read one entry of the hash of gaps."""
    first, last, count, *why = noted.decode().split()
    parse = Position.parse
    return Gap(
        group.decode(),
        parse(first) if first != "-" else None,
        parse(last) if last != "-" else None,
        int(count),
        WENT_BACK in why,
    )
