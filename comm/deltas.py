"""The delta cache: the streamed text of a turn, folded per agent, marker and artifact."""

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple, TypedDict

import msgspec

from .envelope import CANVAS, SUBSYSTEM, Envelope

KEPT_CHARACTERS = 8 * 1024 * 1024
"""Text that one communicator keeps; far over any answer, far under what would hurt beside 64 turns."""

CHUNKS_APART = 1024
"""The newest chunks of a run kept one by one; older ones are joined, so that a token costs no object."""

RUN_COST = 256
"""What a run of chunks counts for beside its text, so that many empty artifacts are bounded too."""


class Chunk(NamedTuple):
    """Text of one delta (or of several joined ones): epoch ms and index of the first."""

    ts: int
    idx: int
    text: str


class ChunkView(TypedDict):
    """One chunk as `get_delta_aggregates` shows it."""

    ts: int
    idx: int
    text: str


class DeltaAggregate(TypedDict):
    """The text of one agent, marker and artifact; times in epoch ms.

    `truncated` tells that the cache was full and the end of the text is missing here.
    """

    conversation_id: str
    turn_id: str
    agent: str
    marker: str
    format: str
    artifact_name: str
    title: str
    extra: dict[str, Any]
    ts_first: int
    ts_last: int
    text: str
    chunks: list[ChunkView]
    truncated: bool


class _Key(NamedTuple):
    conversation_id: str
    turn_id: str
    agent: str
    marker: str
    artifact_name: str
    sub_type: str


class _Run:
    """Chunks of one aggregate with nothing of the same marker between them."""

    __slots__ = ("chunks", "joined", "order")

    def __init__(self, order: int) -> None:
        self.order = order
        self.joined: list[Chunk] = []
        self.chunks: list[Chunk] = []

    def append(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        if len(self.chunks) >= CHUNKS_APART:
            first = self.chunks[0]
            self.joined.append(Chunk(first.ts, first.idx, "".join(part.text for part in self.chunks)))
            self.chunks.clear()

    def __iter__(self) -> Iterator[Chunk]:
        yield from self.joined
        yield from self.chunks


class _Aggregate:
    __slots__ = ("cost", "extra", "key", "last_idx", "runs", "truncated", "ts_first", "ts_last")

    def __init__(self, key: _Key, ts: int) -> None:
        self.key = key
        self.extra: dict[str, Any] = {}
        self.ts_first = ts
        self.restart(ts)

    def restart(self, ts: int) -> None:
        """Forget the text: it is being streamed again from its beginning."""
        self.runs: list[_Run] = []
        self.ts_first = self.ts_last = ts
        self.last_idx = -1
        self.cost = 0
        self.truncated = False

    def view(self, merge_text: bool) -> DeltaAggregate:
        chunks = [chunk for run in self.runs for chunk in run]
        return {
            "conversation_id": self.key.conversation_id,
            "turn_id": self.key.turn_id,
            "agent": self.key.agent,
            "marker": self.key.marker,
            "format": str(self.extra.get("format") or ""),
            "artifact_name": self.key.artifact_name,
            "title": str(self.extra.get("title") or ""),
            "extra": dict(self.extra),
            "ts_first": self.ts_first,
            "ts_last": self.ts_last,
            "text": "".join(chunk.text for chunk in chunks) if merge_text else "",
            "chunks": [{"ts": chunk.ts, "idx": chunk.idx, "text": chunk.text} for chunk in chunks],
            "truncated": self.truncated,
        }


class DeltaCache:
    """What was streamed, in the order in which it was.

    A delta whose index is 0 restarts its artifact. Plain text (no artifact) restarts only when its index
    had moved on from 0: producers that never count would lose all but their last chunk.
    Kept text is bounded by KEPT_CHARACTERS: what comes after is delivered and recorded as ever, and is
    missing here; `truncated` says so. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._aggregates: dict[_Key, _Aggregate] = {}
        self._latest: dict[str, _Aggregate] = {}
        self._full: set[str] = set()
        self._order = 0
        self._cost = 0
        self._lock = threading.Lock()

    def add(self, envelope: Envelope) -> bool:
        """Keep a chat.delta's text; False when the cache was full and did not."""
        delta = envelope.delta
        # A bare end mark says nothing about the text, whatever index it carries.
        if isinstance(delta, msgspec.UnsetType) or (delta.completed and not delta.text):
            return True
        extra = {} if isinstance(envelope.extra, msgspec.UnsetType) else envelope.extra
        key = _Key(
            envelope.conversation.conversation_id,
            envelope.conversation.turn_id,
            envelope.event.agent,
            delta.marker,
            str(extra.get("artifact_name") or ""),
            str(extra.get("sub_type") or ""),
        )
        with self._lock:
            aggregate = self._aggregates.get(key)
            if aggregate is None:
                if self._cost + RUN_COST > KEPT_CHARACTERS:
                    self._full.add(key.marker)
                    return False
                aggregate = self._aggregates[key] = _Aggregate(key, envelope.ts)
            elif delta.index == 0 and _restarts(aggregate):
                self._cost -= aggregate.cost
                aggregate.restart(envelope.ts)
                # What comes next must stand where the text began again, not where it had been.
                self._latest.pop(delta.marker, None)
            for name, value in extra.items():
                aggregate.extra.setdefault(name, value)
            aggregate.last_idx = delta.index
            if not delta.text:
                return True
            return self._append(aggregate, Chunk(envelope.ts, delta.index, delta.text))

    def _append(self, aggregate: _Aggregate, chunk: Chunk) -> bool:
        marker = aggregate.key.marker
        continues = self._latest.get(marker) is aggregate
        cost = len(chunk.text) + (0 if continues else RUN_COST)
        if aggregate.truncated or self._cost + cost > KEPT_CHARACTERS:
            # A text with a hole would be worse than one that ends.
            aggregate.truncated = True
            self._full.add(marker)
            return False
        if not continues:
            self._order += 1
            aggregate.runs.append(_Run(self._order))
            self._latest[marker] = aggregate
        aggregate.runs[-1].append(chunk)
        aggregate.ts_last = chunk.ts
        aggregate.cost += cost
        self._cost += cost
        return True

    def text(self, marker: str) -> str:
        """Return the text of a marker as a client shows it: all its agents in the order of arrival."""
        with self._lock:
            runs = [run for agg in self._aggregates.values() if agg.key.marker == marker for run in agg.runs]
            runs.sort(key=lambda run: run.order)
            return "".join(chunk.text for run in runs for chunk in run)

    def truncated(self, marker: str) -> bool:
        """Tell whether text of a marker is missing because the cache was full."""
        return marker in self._full

    def view(
        self,
        conversation_id: str | None,
        turn_id: str | None,
        agent: str | None,
        marker: str | None,
        merge_text: bool,
    ) -> list[DeltaAggregate]:
        """List the aggregates that match what is given, oldest first."""
        wanted = {"conversation_id": conversation_id, "turn_id": turn_id, "agent": agent, "marker": marker}
        with self._lock:
            found = [agg for key, agg in self._aggregates.items() if agg.runs and _matches(key, wanted)]
            return [agg.view(merge_text) for agg in sorted(found, key=lambda agg: agg.runs[0].order)]

    def clear(self, conversation_id: str | None, turn_id: str | None) -> None:
        """Forget the aggregates that match what is given; all of them when nothing is."""
        wanted = {"conversation_id": conversation_id, "turn_id": turn_id}
        with self._lock:
            for key in [key for key in self._aggregates if _matches(key, wanted)]:
                aggregate = self._aggregates.pop(key)
                self._cost -= aggregate.cost
                if self._latest.get(key.marker) is aggregate:
                    del self._latest[key.marker]


def _matches(key: _Key, wanted: dict[str, str | None]) -> bool:
    return all(value is None or getattr(key, name) == value for name, value in wanted.items())


def _restarts(aggregate: _Aggregate) -> bool:
    key = aggregate.key
    is_artifact = bool(key.artifact_name or key.sub_type) or key.marker in (CANVAS, SUBSYSTEM)
    return is_artifact or aggregate.last_idx > 0
