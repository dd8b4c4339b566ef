"""A replay worded for people: streamed text together per marker, everything else as a line of its own."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from .models import RecordedEnvelope

HELD_CHARACTERS = 1_000_000
"""Text that waits for the section that is being written; a turn that never ends must not fill the memory."""

_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_VISIBLE |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
"""Control characters as pictures: recorded text must not steer the terminal that shows it."""


@dataclass(slots=True)
class _Section:
    """The text of one marker and artifact of a turn."""

    turn: str
    name: str
    text: list[str] = field(default_factory=list)
    ended: bool = False


@dataclass(slots=True)
class _Line:
    turn: str
    text: str


class Transcript:
    """Words envelopes one by one, in the order of their replay.

    One section is written at a time, as its deltas come. What comes meanwhile is held and follows when the
    section has ended: at its last delta, at the end of its turn, or past HELD_CHARACTERS.
    """

    def __init__(self) -> None:
        self._writing: _Section | None = None
        self._at_line_start = True
        self._turn = ""
        self._open: dict[tuple[str, str], _Section] = {}
        self._held: deque[_Section | _Line] = deque()
        self._held_characters = 0
        self._answered: set[str] = set()

    def add(self, row: RecordedEnvelope) -> str:
        """Return what this envelope adds to the text."""
        envelope = row.envelope
        if row.type == "chat.delta":
            written = self._add_delta(row, envelope)
        else:
            written = self._end_sections(row.turn_id) if row.type in ("chat.complete", "chat.error") else ""
            written += self._add_line(row, envelope)
        if self._held_characters > HELD_CHARACTERS:
            written += self._end_section()
        return written.translate(_VISIBLE)

    def end(self) -> str:
        """Return what was held, and end the last line."""
        written = ""
        while self._writing is not None:
            written += self._end_section()
        return written.translate(_VISIBLE)

    def _add_delta(self, row: RecordedEnvelope, envelope: dict[str, Any]) -> str:
        delta, extra = envelope["delta"], envelope.get("extra") or {}
        artifact = extra.get("artifact_name") or extra.get("sub_type") or ""
        name = f"{delta['marker']} {artifact}".strip()
        if name == "answer":
            self._answered.add(row.turn_id)
        # Index 0 starts an artifact anew.
        written = self._end_sections(row.turn_id, name) if delta["index"] == 0 else ""
        section = self._open_section(row.turn_id, name)
        if delta.get("completed"):
            section.ended = True
            del self._open[row.turn_id, name]
        if section is self._writing:
            written += self._write(delta["text"])
        else:
            section.text.append(delta["text"])
            self._held_characters += len(delta["text"])
        if self._writing is None or self._writing.ended:
            written += self._end_section()
        return written

    def _open_section(self, turn: str, name: str) -> _Section:
        """The section that goes on, or a new one behind what is held."""
        section = self._open.get((turn, name))
        if section is None:
            section = self._open[turn, name] = _Section(turn, name)
            self._held.append(section)
        return section

    def _add_line(self, row: RecordedEnvelope, envelope: dict[str, Any]) -> str:
        told = _told(row, envelope, answered=row.turn_id in self._answered)
        if row.type == "chat.complete":
            self._answered.discard(row.turn_id)
        line = _Line(row.turn_id, f"{row.timestamp:%H:%M:%S}  {told}")
        if self._writing is None:
            return self._header(line.turn) + line.text + "\n"
        self._held.append(line)
        self._held_characters += len(line.text)
        return ""

    # --- writing ------------------------------------------------------------------------------------

    def _end_sections(self, turn: str, name: str | None = None) -> str:
        """End the sections of a turn, or the one of this name."""
        for key in [key for key in self._open if key[0] == turn and name in (None, key[1])]:
            self._open.pop(key).ended = True
        return self._end_section() if self._writing is not None and self._writing.ended else ""

    def _end_section(self) -> str:
        """End the section that is being written, and write what was held, up to one that goes on."""
        written = "" if self._at_line_start else "\n"
        if self._writing is not None:
            self._open.pop((self._writing.turn, self._writing.name), None)
        self._writing, self._at_line_start = None, True
        while self._held and self._writing is None:
            item = self._held.popleft()
            if isinstance(item, _Line):
                self._held_characters -= len(item.text)
                written += f"{self._header(item.turn)}{item.text}\n"
                continue
            self._held_characters -= sum(map(len, item.text))
            written += f"{self._header(item.turn)}[{item.name}]\n" + self._write("".join(item.text))
            if not item.ended:
                self._writing = item
            elif not self._at_line_start:
                written += self._write("\n")
        return written

    def _write(self, text: str) -> str:
        if text:
            self._at_line_start = text.endswith("\n")
        return text

    def _header(self, turn: str) -> str:
        if turn == self._turn:
            return ""
        self._turn = turn
        return f"\n── {turn or 'outside of turns'} ──\n"


def _told(row: RecordedEnvelope, envelope: dict[str, Any], *, answered: bool) -> str:
    """What an envelope says, in a line; more lines where it carries Markdown or an answer nobody streamed."""
    event, data = envelope["event"], envelope.get("data") or {}
    title, status = event.get("title") or event.get("step") or "", event.get("status") or ""
    if row.type == "chat.start":
        return f"> {data.get('message') or title}"
    if row.type == "chat.error":
        return f"error: {data.get('error') or title}"
    if row.type == "conv.status":
        return " ".join(filter(None, ["conversation:", data.get("state"), data.get("completion")]))
    if row.type == "chat.complete":
        final = "" if answered else data.get("final_answer") or ""
        return "complete" + (f"\n{final}" if final else "")
    items = data.get("items")
    more = event.get("markdown") or ("; ".join(map(_item, items)) if isinstance(items, list) else "")
    name = title if row.type == "chat.step" else f"{row.type}: {title}".rstrip(": ")
    return name + (f" ({status})" if status else "") + (f"\n{more}" if more else "")


def _item(item: Any) -> str:
    if isinstance(item, dict):
        return str(item.get("text") or item.get("title") or item.get("filename") or item)
    return str(item)
