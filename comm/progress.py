"""What a turn has said so far, kept by its communicator for whoever writes down the outcome."""

import logging
from typing import Any, Literal, TypedDict

from .deltas import DeltaCache
from .envelope import ANSWER, Envelope
from .history import Position

logger = logging.getLogger(__name__)

KEPT_STEPS = 1000
"""Distinct steps that are remembered; a client's list of steps is unreadable long before."""
KEPT_NOTE_CHARACTERS = 500
"""Of a step's markdown: a line or two beside its title."""

Ended = Literal["complete", "error"]
ENDS: dict[str, Ended] = {"chat.complete": "complete", "chat.error": "error"}


class StepState(TypedDict):
    """The latest word on one step."""

    step: str
    status: str
    title: str
    agent: str
    markdown: str


class Progress:
    """The fold of a turn's envelopes, and the rule that it starts once and ends once."""

    def __init__(self) -> None:
        self.deltas = DeltaCache()
        self.started = False
        self.ended: Ended | None = None
        self.error: dict[str, Any] | None = None
        self.steps: dict[str, StepState] = {}
        self.followup_items: list[Any] = []
        self.usage: dict[str, Any] | None = None
        self.first_position: Position | None = None
        self.last_position: Position | None = None
        self._said: str | None = None
        self._cleared_answer = ""

    @property
    def final_answer(self) -> str:
        """The answer that `complete()` carried, or the text streamed for one so far."""
        return self._cleared_answer + self.deltas.text(ANSWER) if self._said is None else self._said

    def is_over(self, envelope: Envelope) -> bool:
        """Tell whether this start or end comes too late, and log an end that does."""
        if envelope.type == "chat.start":
            return self.started
        if envelope.type in ENDS and self.ended is not None:
            turn_id = envelope.conversation.turn_id
            logger.warning("Turn %s has ended with %s; its %s is dropped", turn_id, self.ended, envelope.type)
            return True
        return False

    def begin(self, envelope: Envelope) -> bool:
        """Mark the turn as started or ended where the envelope says so; False when it was already."""
        if self.is_over(envelope):
            return False
        self.mark(envelope)
        return True

    def mark(self, envelope: Envelope) -> None:
        """Mark the turn as started or ended where the envelope says so and nothing has before."""
        if envelope.type == "chat.start":
            self.started = True
        elif envelope.type in ENDS and self.ended is None:
            answer = envelope.data.get("final_answer")
            if envelope.type == "chat.complete" and isinstance(answer, str):
                self._said = answer
            self.ended = ENDS[envelope.type]

    def retract(self, envelope: Envelope) -> None:
        """Take back what `begin` marked: the envelope did not go out."""
        if envelope.type == "chat.start":
            self.started = False
        elif envelope.type in ENDS:
            self.ended = None
            self._said = None

    def observe(self, envelope: Envelope) -> None:
        """Fold an envelope that goes out into what the turn has said."""
        if envelope.type == "chat.delta":
            if not self.deltas.add(envelope):
                logger.debug("The delta cache of turn %s is full", envelope.conversation.turn_id)
        elif envelope.type == "chat.step":
            event = envelope.event
            if event.step in self.steps or len(self.steps) < KEPT_STEPS:
                self.steps[event.step] = {
                    "step": event.step,
                    "status": event.status,
                    "title": event.title,
                    "agent": event.agent,
                    "markdown": event.markdown[:KEPT_NOTE_CHARACTERS]
                    if isinstance(event.markdown, str)
                    else "",
                }
        elif envelope.type == "chat.followups":
            items = envelope.data.get("items")
            self.followup_items = list(items) if isinstance(items, (list, tuple)) else []
        elif envelope.type == "accounting.usage":
            self.usage = dict(envelope.data)
        elif envelope.type == "chat.error":
            self.error = dict(envelope.data)

    def place(self, position: Position | None) -> None:
        """Note where an envelope of this turn stands in its session's log."""
        if position is None:
            return
        self.first_position = min(position, self.first_position or position)
        self.last_position = max(position, self.last_position or position)

    def clear_deltas(self, conversation_id: str | None, turn_id: str | None) -> None:
        """Forget streamed text; the answer stays what it was."""
        answer = self._cleared_answer + self.deltas.text(ANSWER)
        self.deltas.clear(conversation_id, turn_id)
        remaining = self.deltas.text(ANSWER)
        self._cleared_answer = answer.removesuffix(remaining) if remaining else answer
