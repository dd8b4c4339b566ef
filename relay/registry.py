"""Which streams are open in this process: stream id → session and scope, readable from any thread."""

from typing import NamedTuple


class StreamInfo(NamedTuple):
    """One open stream."""

    stream_id: str
    session_id: str
    tenant: str
    project: str
    anonymous: bool


_streams: dict[str, tuple[StreamInfo, ...]] = {}


def find_streams(stream_id: str) -> list[StreamInfo]:
    """Return the open streams of this id; several connections, and even sessions, may share one."""
    return list(_streams.get(stream_id, ()))


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
