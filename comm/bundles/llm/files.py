"""Attachments as a model takes them: text inline within a budget, images as data URLs, the rest by name."""

import asyncio
import base64
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from comm.bundles.demo.reading import decode
from comm.bundles.demo.wording import code, size
from comm.bundles.pdf import read_pdf
from comm.turns.context import TurnAttachment, TurnContext, TurnMessage

from .conf import llm_settings
from .history import BYTES_PER_TOKEN
from .provider import Message

logger = logging.getLogger(__name__)

IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
MOST_IMAGES = 8
IMAGE_BYTES = 20 * 1024 * 1024
"""All images of one message; a third more as base64."""


@dataclass(slots=True)
class Reading:
    """What became of one file: text for the model, or an image; `note` says so to the user."""

    name: str
    note: str
    text: str = ""
    image_url: str = ""
    problem: bool = False


@dataclass(slots=True)
class Budget:
    """What may still be sent of the files of a turn."""

    text_bytes: int = field(default_factory=lambda: int(llm_settings().ATTACHMENT_TOKENS * BYTES_PER_TOKEN))
    images: int = MOST_IMAGES
    image_bytes: int = IMAGE_BYTES


class FileReader:
    """Reads the files of a turn, one step each, and words what the model is sent."""

    def __init__(self, turn: TurnContext, agent: str) -> None:
        self.turn = turn
        self.agent = agent
        self.budget = Budget()
        self._steps = 0

    async def content(
        self, message: TurnMessage, earlier: Sequence[TurnAttachment] = ()
    ) -> str | list[Message]:
        """Return a message's content: a string, or parts where there are images.

        Of earlier files only the text is sent again: a model that reads no images could never go on.
        """
        texts = [message.text] if message.text.strip() else []
        texts += [_as_json(name, value, self.budget) for name, value in _sent_along(message)]
        images: list[Message] = []
        for place, attachment in enumerate(message.attachments):
            reading = await self._read(attachment, left=len(message.attachments) - place)
            texts.append(reading.text)
            if reading.image_url:
                images.append({"type": "image_url", "image_url": {"url": reading.image_url}})
        for place, attachment in enumerate(earlier):
            texts.append(await self._recall(attachment, left=len(earlier) - place))
        text = "\n\n".join(texts) or "(The user sent an empty message.)"
        return [{"type": "text", "text": text}, *images] if images else text

    async def _read(self, attachment: TurnAttachment, left: int) -> Reading:
        self._steps += 1
        step, title = f"attachment.{self._steps}", f"Reading {attachment.filename}"
        comm = self.turn.communicator
        await comm.step(title, "started", step=step, agent=self.agent)
        reading = await self._take_in(attachment, left)
        await comm.step(
            f"Could not read {reading.name}" if reading.problem else f"Read {reading.name}",
            "error" if reading.problem else "completed",
            step=step,
            agent=self.agent,
            markdown=f"{code(reading.name)}: {reading.note}.",
        )
        return reading

    async def _recall(self, attachment: TurnAttachment, left: int) -> str:
        if attachment.mime in IMAGE_TYPES:
            return f"[{attachment.filename} was sent earlier: an image, which you don't see again.]"
        return "(Sent earlier) " + (await self._take_in(attachment, left)).text

    async def _take_in(self, attachment: TurnAttachment, left: int) -> Reading:
        if attachment.mime in IMAGE_TYPES and not llm_settings().IMAGES:
            return _unread(attachment, "the model does not read images")
        try:
            content = await attachment.read()
        except OSError as error:
            # The rest of the message can still be answered.
            fault = type(error).__name__
            logger.warning("An attachment of turn %s cannot be opened: %s", self.turn.turn_id, fault)
            return _unread(attachment, "its content is not there any more")
        if attachment.mime in IMAGE_TYPES:
            return await self._image(attachment, content)
        if attachment.mime == "application/pdf":
            pdf = await read_pdf(content)
            return (
                self._text(attachment, pdf.text, left)
                if pdf.text.strip()
                else _unread(attachment, pdf.problem)
            )
        decoded = await asyncio.to_thread(decode, content)
        if decoded is None:
            return _unread(attachment, "it is neither text nor an image")
        return self._text(attachment, decoded[0], left)

    async def _image(self, attachment: TurnAttachment, content: bytes) -> Reading:
        if not self.budget.images or len(content) > self.budget.image_bytes:
            most = f"at most {MOST_IMAGES} images of together {size(IMAGE_BYTES)} are sent to the model"
            return _unread(attachment, most)
        self.budget.images -= 1
        self.budget.image_bytes -= len(content)
        encoded = await asyncio.to_thread(base64.b64encode, content)
        url = f"data:{attachment.mime};base64,{encoded.decode('ascii')}"
        note = f"an image of {size(len(content))}"
        return Reading(attachment.filename, note, f"[Attached image: {attachment.filename}]", url)

    def _text(self, attachment: TurnAttachment, text: str, left: int) -> Reading:
        share = self.budget.text_bytes // max(1, left)
        kept = cut_at_line(text, share)
        self.budget.text_bytes -= len(kept.encode())
        name = attachment.filename
        note, cut = f"{len(text):,} characters", ""
        if len(kept) < len(text):
            note = f"the model is sent the first {len(kept):,} of {len(text):,} characters"
            cut = f"\n[The file goes on: these were the first {len(kept):,} of {len(text):,} characters.]"
        return Reading(name, note, f"Attached file {name} ({attachment.mime}):\n```\n{kept}\n```{cut}")


def cut_at_line(text: str, limit_bytes: int) -> str:
    """Return the beginning of a text within a number of UTF-8 bytes, up to the end of a line."""
    encoded = text.encode()
    if len(encoded) <= limit_bytes:
        return text
    cut = encoded[: max(0, limit_bytes)].decode("utf-8", "ignore")
    line_end = cut.rfind("\n") + 1
    # A last line that fills most of it is kept: one long line would leave nothing.
    return cut[:line_end] if line_end > len(cut) // 2 else cut


def _unread(attachment: TurnAttachment, why: str) -> Reading:
    name = attachment.filename
    text = f"[Attached file {name} ({attachment.mime}) was not given to you: {why}. Tell the user.]"
    return Reading(name, why, text, problem=True)


def _sent_along(message: TurnMessage) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [("payload", message.payload)] if message.payload else []
    for event in message.external_events:
        if not str(event.get("type", "")).startswith("event.user."):
            found.append(("event", event))
    return found


def _as_json(name: str, value: Any, budget: Budget) -> str:
    text = cut_at_line(json.dumps(value, ensure_ascii=False, default=str), budget.text_bytes)
    budget.text_bytes -= len(text.encode("utf-8", "replace"))
    return f"Sent along as {name}:\n```json\n{text}\n```"
