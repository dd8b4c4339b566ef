"""AIBEmitters: the communicator's forms with one payload object each, or with the same keywords."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .communicator import ChatCommunicator
from .envelope import ANSWER
from .history import Position


@dataclass(kw_only=True)
class _Addressed:
    """Whom an event is for: one peer, or the whole session whatever the communicator's default."""

    target_sid: str | None = None
    broadcast: bool = False


@dataclass
class StartPayload(_Addressed):
    """`chat.start`."""

    message: str = ""
    queue_stats: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class StepPayload(_Addressed):
    """`chat.step`, or a card of another `type`; `timing` travels as `data.timing`."""

    step: str | None = None
    status: str = "completed"
    title: str | None = None
    type: str | None = None
    agent: str | None = None
    markdown: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, Any] | None = None


@dataclass
class DeltaPayload(_Addressed):
    """`chat.delta`; what `extra` holds travels beside the named fields."""

    text: str
    index: int | None = None
    marker: str = ANSWER
    completed: bool = False
    agent: str | None = None
    format: str | None = None
    artifact_name: str | None = None
    sub_type: str | None = None
    title: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class CompletePayload(_Addressed):
    """`chat.complete`."""

    data: Mapping[str, Any] = field(default_factory=dict)
    agent: str | None = None
    title: str | None = None


@dataclass
class ErrorPayload(_Addressed):
    """`chat.error`."""

    message: str
    data: Mapping[str, Any] = field(default_factory=dict)
    agent: str | None = None
    step: str | None = None
    title: str | None = None


@dataclass
class EventPayload(_Addressed):
    """An event of any type."""

    type: str
    agent: str | None = None
    title: str | None = None
    step: str | None = None
    status: str = "update"
    route: str | None = None
    markdown: str | None = None
    auto_markdown: bool = True
    data: Mapping[str, Any] = field(default_factory=dict)
    timing: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None


class AIBEmitters:
    """Emits through a communicator; a payload object and keywords say the same, and nothing is left out.

    Keywords go to the communicator as they are, so `delta("answer", chunk)` works here too. Keywords beside a
    payload win over it.
    """

    def __init__(self, comm: ChatCommunicator) -> None:
        self.comm = comm

    async def start(self, *args: Any, **keywords: Any) -> Position | None:
        """Begin the turn: a StartPayload, or what the communicator's `start` takes."""
        return await _forward(self.comm.start, StartPayload, args, keywords)

    async def step(self, *args: Any, **keywords: Any) -> Position | None:
        """Show progress: a StepPayload, or what the communicator's `step` takes.

        A step given by keywords is a completed one, as a payload's is, unless its status says otherwise.
        """
        if not args:
            keywords.setdefault("status", "completed")
        return await _forward(self.comm.step, StepPayload, args, keywords)

    async def delta(self, *args: Any, **keywords: Any) -> Position | None:
        """Stream text: a DeltaPayload, or what the communicator's `delta` takes."""
        return await _forward(self.comm.delta, DeltaPayload, args, keywords)

    async def complete(self, *args: Any, **keywords: Any) -> Position | None:
        """End the turn well: a CompletePayload, or what the communicator's `complete` takes."""
        return await _forward(self.comm.complete, CompletePayload, args, keywords)

    async def error(self, *args: Any, **keywords: Any) -> Position | None:
        """End the turn with an error: an ErrorPayload, or what the communicator's `error` takes."""
        return await _forward(self.comm.error, ErrorPayload, args, keywords)

    async def event(self, *args: Any, **keywords: Any) -> Position | None:
        """Emit an event of any type: an EventPayload, or what the communicator's `event` takes."""
        return await _forward(self.comm.event, EventPayload, args, keywords)

    async def followups(self, items: Sequence[Any], **keywords: Any) -> Position | None:
        """Offer what the user may ask next."""
        return await self.comm.followups(items, **keywords)


async def _forward(
    form: Callable[..., Awaitable[Position | None]],
    kind: type[_Addressed],
    args: tuple[Any, ...],
    keywords: dict[str, Any],
) -> Position | None:
    if not args or not isinstance(args[0], _Addressed):
        return await form(*args, **keywords)
    payload, *others = args
    if others or not isinstance(payload, kind):
        raise TypeError(f"one {kind.__name__} is wanted, not {', '.join(type(arg).__name__ for arg in args)}")
    given = {item.name: getattr(payload, item.name) for item in fields(payload)}
    if isinstance(payload, DeltaPayload):
        given.update(given.pop("extra"))
    return await form(**{**given, **keywords})
