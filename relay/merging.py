"""Joining the deltas that a slow peer has yet to read: fewer frames, the same text."""

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from comm.history import Position

from .transports.frames import Frame

DELTA_ROUTE = "chat_delta"

_decoder = msgspec.json.Decoder(dict[str, Any])
_encoder = msgspec.json.Encoder()


def merge_deltas(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Yield the frames with each run of neighbouring deltas of one artifact joined into one.

    A run has one turn, agent, marker and the same `extra`; it ends at any other frame, after a `completed`
    delta and before one with index 0, which restarts its artifact. The joined delta has the first's index
    and the last's position and `completed`; `extra.merged` counts what it joins.
    """
    run: list[tuple[Frame, dict[str, Any]]] = []
    for frame in frames:
        body = _mergeable(frame)
        if run and (body is None or not _continues(run[-1], frame, body)):
            yield _joined(run)
            run = []
        if body is None:
            yield frame
        else:
            run.append((frame, body))
    if run:
        yield _joined(run)


def _mergeable(frame: Frame) -> dict[str, Any] | None:
    if frame.route != DELTA_ROUTE:
        return None
    body = _decoder.decode(frame.body)
    return body if isinstance(body.get("delta"), dict) else None


def _continues(last: tuple[Frame, dict[str, Any]], frame: Frame, body: dict[str, Any]) -> bool:
    before_frame, before = last
    return (
        not before["delta"].get("completed")
        and body["delta"].get("index") != 0
        and before["delta"].get("marker") == body["delta"].get("marker")
        and before_frame.target_sid == frame.target_sid
        and before.get("type") == body.get("type")
        and before["conversation"] == body["conversation"]
        and before["event"] == body["event"]
        and before.get("extra") == body.get("extra")
    )


def _joined(run: list[tuple[Frame, dict[str, Any]]]) -> Frame:
    if len(run) == 1:
        return run[0][0]
    first, (last_frame, last) = run[0][1], run[-1]
    text = "".join(body["delta"]["text"] for _, body in run)
    delta = {**last["delta"], "text": text, "index": first["delta"]["index"]}
    merged = {**last, "delta": delta, "extra": {**last.get("extra", {}), "merged": len(run)}}
    if "text" in last:
        merged["text"], merged["idx"] = text, delta["index"]
    position: Position | None = last_frame.position
    return Frame(last_frame.route, _encoder.encode(merged), position, last_frame.target_sid)
