"""What a streamed chunk says, read without trust: any field may be missing, null or of another type."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

MOST_CALLS = 32
"""Tools that a model may call at once; more is a model that repeats itself."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a request has used, in tokens; `estimated` says that the server did not count."""

    input: int
    output: int
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of a tool call, as it is streamed."""

    index: int | None
    call_id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Piece:
    """One chunk: text, reasoning (and the field it came in), fragments of tool calls, the end, the usage."""

    content: str = ""
    reasoning: str = ""
    reasoning_field: str = ""
    fragments: list[Fragment] = field(default_factory=list)
    finish: str = ""
    tokens: Tokens | None = None


@dataclass(slots=True)
class ToolCall:
    """A tool call put together; `arguments` is the JSON that the model wrote."""

    call_id: str
    name: str
    arguments: str = ""


def read_piece(chunk: object) -> Piece:
    """Read one chunk of whatever shape; an empty piece where nothing can be read."""
    piece = Piece(tokens=_tokens(_get(chunk, "usage")))
    choices = _get(chunk, "choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    piece.finish = _text(_get(choice, "finish_reason"))
    delta = _get(choice, "delta")
    piece.content = _content(_get(delta, "content")) or _text(_get(delta, "refusal"))
    for name in ("reasoning_content", "reasoning"):
        piece.reasoning = _text(_get(delta, name))
        if piece.reasoning:
            piece.reasoning_field = name
            break
    calls = _get(delta, "tool_calls")
    piece.fragments = [_fragment(call) for call in calls] if isinstance(calls, list) else []
    return piece


class CallAssembler:
    """Puts tool calls together: by index, or by id where a server gives each the same index or none."""

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self._by_index: dict[int, ToolCall] = {}

    def add(self, fragment: Fragment) -> None:
        """Add one fragment; calls over MOST_CALLS are left out."""
        call = self._call_of(fragment)
        if call is None:
            return
        if fragment.name and fragment.name != call.name and not call.arguments:
            call.name += fragment.name
        call.arguments += fragment.arguments

    def _call_of(self, fragment: Fragment) -> ToolCall | None:
        known = self.calls[-1] if fragment.index is None and self.calls else None
        if fragment.index is not None:
            known = self._by_index.get(fragment.index)
        other = known is not None and fragment.call_id and fragment.call_id != known.call_id
        if known is not None and not (other and fragment.name):
            return known
        if len(self.calls) >= MOST_CALLS:
            return None
        call = ToolCall(fragment.call_id or f"call_{len(self.calls) + 1}", "")
        self.calls.append(call)
        if fragment.index is not None:
            self._by_index[fragment.index] = call
        return call


def _get(value: object, name: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(name)
    return getattr(value, name, None)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _content(value: object) -> str:
    """Read a content: text, or a list of parts of which some are."""
    if isinstance(value, list):
        return "".join(_text(_get(part, "text")) for part in value)
    return _text(value)


def _fragment(call: object) -> Fragment:
    function = _get(call, "function")
    index = _get(call, "index")
    arguments = _get(function, "arguments")
    if isinstance(arguments, (Mapping, list)):
        arguments = msgspec.json.encode(arguments).decode()
    return Fragment(
        index if isinstance(index, int) else None,
        _text(_get(call, "id")),
        _text(_get(function, "name")),
        _text(arguments),
    )


def _tokens(usage: object) -> Tokens | None:
    counts = (_get(usage, "prompt_tokens"), _get(usage, "completion_tokens"))
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        return None
    return Tokens(*counts)
