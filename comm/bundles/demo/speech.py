"""How the demo bundle speaks: paced deltas that end when the turn is stopped, and a count of its words."""

import re
from collections.abc import Iterable, Iterator
from itertools import cycle
from typing import Any

from comm.envelope import ANSWER, CANVAS, SUBSYSTEM, THINKING, TIMELINE_TEXT
from comm.turns.context import TurnContext

from .artifacts import Artifact
from .wording import escaped, printable

AGENT = "demo"
CANVAS_CHUNK = 320
"""Characters of an artifact per delta: a few lines of a drawing."""
WORDS_PER_PARAGRAPH = 50


class TurnStopped(Exception):
    """The user wants no more of this turn."""


class Speech:
    """Speaks for one turn; each delta waits for the pace first, and raises TurnStopped in a stopped turn."""

    def __init__(self, turn: TurnContext, pace_seconds: float) -> None:
        self.turn = turn
        self.pace_seconds = pace_seconds
        self.words = 0
        self.answer_deltas = 0

    async def think(self, text: str) -> None:
        """Stream reasoning word by word."""
        for chunk in chunks(text):
            await self._delta(THINKING, chunk)

    async def answer(self, text: str) -> None:
        """Stream a part of the answer word by word."""
        for chunk in chunks(text):
            self.answer_deltas += 1
            await self._delta(ANSWER, chunk)

    async def walk(self, words: Iterable[str], deltas: int) -> None:
        """Go on until the answer has so many deltas: words, each with the number of its delta before it.

        A reader that misses one sees which.
        """
        if self.answer_deltas >= deltas:
            return
        self.answer_deltas += 1
        await self._delta(ANSWER, "\n### Walking through the input again\n\n")
        stock = [escaped(word) for word in words] or ["…"]
        for word in cycle(stock):
            if self.answer_deltas >= deltas:
                break
            self.answer_deltas += 1
            end = "\n\n" if self.answer_deltas % WORDS_PER_PARAGRAPH == 0 else " "
            await self._delta(ANSWER, f"[{self.answer_deltas}] {word}{end}")

    async def note(self, line: str) -> None:
        """Add a line to the timeline."""
        await self._delta(TIMELINE_TEXT, printable(line) + "\n")

    async def show(self, artifact: Artifact) -> None:
        """Stream an artifact to the canvas; its last delta completes it."""
        parts = list(line_chunks(artifact.text, CANVAS_CHUNK))
        for place, part in enumerate(parts, 1):
            await self._delta(
                CANVAS,
                part,
                completed=place == len(parts),
                artifact_name=artifact.name,
                format=artifact.format,
                title=printable(artifact.title),
            )

    async def widget(self, sub_type: str, title: str, payload: str) -> None:
        """Send a widget's JSON, whole; a later one of this type takes its place."""
        await self._pause()
        await self.turn.communicator.delta(
            SUBSYSTEM,
            payload,
            index=0,
            completed=True,
            agent=AGENT,
            sub_type=sub_type,
            title=title,
            format="json",
        )

    async def close(self, *markers: str) -> None:
        """End markers that were streamed."""
        for marker in markers:
            await self.turn.communicator.delta(marker, completed=True, agent=AGENT)

    async def _delta(self, marker: str, text: str, *, completed: bool = False, **extra: Any) -> None:
        await self._pause()
        self.words += len(text.split())
        await self.turn.communicator.delta(marker, text, completed=completed, agent=AGENT, **extra)

    async def _pause(self) -> None:
        if self.turn.stopped or (self.pace_seconds and not await self.turn.sleep(self.pace_seconds)):
            raise TurnStopped


def chunks(text: str) -> list[str]:
    """Cut a text into words with the blanks behind them; joined they are the text again."""
    return re.findall(r"\s*\S+\s*|\s+", printable(text))


def line_chunks(text: str, length: int) -> Iterator[str]:
    """Cut a text between lines into chunks of about `length` characters."""
    chunk = ""
    for line in text.splitlines(keepends=True):
        if chunk and len(chunk) + len(line) > length:
            yield chunk
            chunk = ""
        chunk += line
    if chunk:
        yield chunk
