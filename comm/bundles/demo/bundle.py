"""DemoBundle: one turn, from the message to the answer."""

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from django.conf import settings

from comm.bundles.base import Bundle
from comm.bundles.operations import OperationCall, OperationRefused, operation
from comm.bundles.pdf import read_pdf
from comm.envelope import ANSWER, THINKING, TIMELINE_TEXT
from comm.sandbox import SandboxFailed, run_in_sandbox
from comm.turns.context import HistoryMessage, TurnAttachment, TurnContext, TurnMessage

from .answers import answer_clock, answer_conversation
from .earlier import earlier_attachments
from .figures import FIGURES
from .options import OptionInvalid, Options, read_options
from .questions import Question, split_question, understand
from .reading import PDF, SAMPLE_BYTES, Document, read_document, read_message, read_pages, read_value
from .report import Report, compose, outline, profile_of
from .speech import AGENT, Speech, TurnStopped
from .wording import code, counted, listed, size

logger = logging.getLogger(__name__)

WALKED_WORDS = 2_000


@dataclass(slots=True)
class Part:
    """One message of a turn: the turn's own, or a followup that it reads; and what came of it."""

    message: TurnMessage
    question: Question
    body: str
    opening: str = ""
    documents: list[Document] = field(default_factory=list)


class DemoBundle(Bundle):
    """Answers from the message and its attachments: text, Markdown, CSV and JSON, computed and not invented.

    `config.pace_ms` is the time between deltas (15), `config.deltas` a least number of answer deltas. A wrong
    value ends the turn with an error that names the field.
    """

    async def run(self, turn: TurnContext) -> None:
        """Answer the message, then each followup that arrives meanwhile."""
        try:
            options = read_options(turn.message.config)
        except OptionInvalid as error:
            data = {"error_type": "config_invalid", "reason": error.field}
            await turn.communicator.error(f"{error}.", data=data, agent=AGENT)
            return
        try:
            await _Turn(turn, options).run()
        except TurnStopped:
            # What was said stays; the runner ends the turn with it.
            logger.debug("Turn %s was stopped", turn.turn_id)

    @operation
    async def capabilities(self, call: OperationCall) -> dict[str, object]:
        """Tell what this bundle reads, and which figures it computes."""
        return {"reads": ["text", "markdown", "csv", "json", "pdf"], "figures": list(FIGURES)}

    @operation(methods=("POST",))
    async def profile(self, call: OperationCall) -> dict[str, object]:
        """Profile a table or text: `data.text`, with an optional `data.name` such as `sales.csv`."""
        text, name = call.data.get("text"), call.data.get("name", "data")
        if not isinstance(text, str) or not text.strip():
            raise OperationRefused("data.text: must be a string with something in it")
        if not isinstance(name, str):
            raise OperationRefused("data.name: must be a string")
        title = f"Profiling {name}"
        await call.communicator.step(title, "started", step="profile", agent=AGENT)
        document = await asyncio.to_thread(read_document, name, "", text.encode("utf-8", "replace"))
        note = f"It is {outline(document)}."
        await call.communicator.step(title, "completed", step="profile", agent=AGENT, markdown=note)
        return profile_of(document)


class _Turn:
    """The state of one turn: what was said in it, and what was read."""

    def __init__(self, turn: TurnContext, options: Options) -> None:
        self.turn = turn
        self.comm = turn.communicator
        self.options = options
        self.speech = Speech(turn, options.pace_seconds)
        self.said: list[HistoryMessage] = list(turn.history)
        self.documents: list[Document] = []
        self.artifacts = 0
        self.words_read = 0

    async def run(self) -> None:
        message: TurnMessage | None = self.turn.message
        options = self.options
        followups: list[str] = []
        first = True
        while message is not None:
            if not first:
                options = await self._take_up(message)
            followups = (await self._answer(message, options, first)).followups
            first = False
            message = await self.turn.next_followup()
        await self.speech.close(THINKING, ANSWER, TIMELINE_TEXT)
        await self.comm.followups(followups, agent=AGENT, title="You could ask next")
        await self._account()

    async def _take_up(self, followup: TurnMessage) -> Options:
        """Say that the answer goes on with a followup; a wrong option of it costs only the option."""
        await self.speech.answer("\n---\n\n")
        try:
            options = read_options(followup.config, Options(self.options.pace_seconds))
        except OptionInvalid as error:
            await self.speech.answer(f"{error}; I leave it out.\n\n")
            options = Options(self.options.pace_seconds)
        self.speech.pace_seconds = options.pace_seconds
        return options

    async def _answer(self, message: TurnMessage, options: Options, first: bool) -> Report:
        """Read, think, answer and show: everything that is said on one message."""
        deltas_before = self.speech.answer_deltas
        prefix = "" if first else f"{message.turn_id}."
        question, body = split_question(message.text)
        part = Part(message, understand(question), body)
        await self._understand(part, prefix)
        await self._read(part, prefix)
        step = f"{prefix}analyse"
        await self._step(step, "started", "Analysing what was read", progress=0.0)
        report = await asyncio.to_thread(
            compose, part.question, part.documents, opening=part.opening, first_artifact=self.artifacts + 1
        )
        await self.speech.think(f"\n{report.reasoning}\n" if report.reasoning else "")
        done = counted(len(part.documents), "document")
        await self._step(
            step, "completed", "Analysed what was read", progress=1.0, markdown=f"{done} analysed."
        )
        await self.speech.answer(report.answer)
        await self.speech.walk(_words(part), deltas_before + options.deltas)
        await self._show(report)
        self._remember(part, report)
        return report

    async def _understand(self, part: Part, prefix: str) -> None:
        """Think about what the message asks for, and answer what needs no document."""
        await self._step(f"{prefix}understand", "started", "Reading the message")
        for line in _thoughts(part):
            await self.speech.think(line + " ")
        if part.question.about_clock:
            part.opening = answer_clock(self.turn.now())
        elif part.question.about_conversation:
            part.opening = answer_conversation(part.question, self.said)
        await self._step(f"{prefix}understand", "completed", "Read the message")

    async def _read(self, part: Part, prefix: str) -> None:
        """Read what the answer is computed from: files, payload, what came earlier, or the message itself."""
        attachments = part.message.attachments
        await self._read_attachments(part, attachments, prefix)
        if part.message.payload:
            part.documents.append(await asyncio.to_thread(read_value, part.message.payload, "payload"))
        for place, event in enumerate(part.message.external_events, 1):
            if not str(event.get("type", "")).startswith("event.user."):
                part.documents.append(await asyncio.to_thread(read_value, event, f"event {place}"))
        if part.documents or part.opening:
            return
        if not await self._recall(part, prefix):
            part.documents = [await asyncio.to_thread(read_message, part.body)]

    async def _read_attachments(self, part: Part, attachments: Sequence[TurnAttachment], prefix: str) -> None:
        for place, attachment in enumerate(attachments, 1):
            document = await self._read_attachment(attachment, f"{prefix}read.{place}")
            part.documents.append(document)

    async def _read_attachment(self, attachment: TurnAttachment, step: str) -> Document:
        title = f"Reading {attachment.filename}"
        await self._step(step, "started", title, progress=0.0)
        try:
            content = await attachment.read()
        except OSError as error:
            # The rest of the message can still be answered.
            logger.warning("An attachment of turn %s cannot be opened: %s", self.turn.turn_id, error)
            problem = "its content is not there any more"
            await self._step(step, "error", title, markdown=f"{code(attachment.filename)}: {problem}.")
            return Document(attachment.filename, "empty", attachment.size, problem=problem)
        await self._step(step, "running", title, progress=0.5, markdown=f"{size(len(content))} loaded.")
        document = await _document_of(attachment, content)
        await self._check_apart(attachment, content, step)
        await self._step(
            step,
            "completed",
            f"Read {attachment.filename}",
            progress=1.0,
            markdown=f"It is {outline(document)}.",
        )
        return document

    async def _check_apart(self, attachment: TurnAttachment, content: bytes, step: str) -> None:
        """Let a process of its own profile a file too, where the settings want that; it shows its own step."""
        if not settings.DEMO_SANDBOX or attachment.mime == PDF:
            return
        name, sample = attachment.filename, content[:SAMPLE_BYTES]
        arguments = (f"{step}.sandbox", name, attachment.mime, sample)
        try:
            await run_in_sandbox(
                self.turn, "comm.bundles.demo.sandboxed.profile", *arguments, runner=settings.DEMO_SANDBOX
            )
        except SandboxFailed as error:
            # The answer does not hang on it.
            logger.warning("Turn %s: %s", self.turn.turn_id, error)
            await self._step(f"{step}.sandbox", "error", f"Could not profile {name} in the sandbox")

    async def _recall(self, part: Part, prefix: str) -> bool:
        """Go back to what came before when the question is about it; tell whether it was."""
        if part.question.about_previous:
            previous = next((said.content for said in reversed(self.said) if said.role == "user"), "")
            if previous.strip():
                document = await asyncio.to_thread(read_message, previous, "your previous message")
                part.documents = [document]
                return True
        if not (part.question.about_file or part.question.functions) or not self.said:
            return False
        known = self.documents
        if not known:
            earlier = Part(part.message, part.question, "")
            await self._read_attachments(earlier, await earlier_attachments(self.turn), f"{prefix}earlier.")
            known = earlier.documents
        report = await asyncio.to_thread(compose, part.question, known)
        named = any(document.name.lower() in part.message.text.lower() for document in known)
        if not known or not (report.answered or named or part.question.about_file):
            return False
        await self.speech.think(
            f"This is about {listed(document.name for document in known)}, sent earlier. "
        )
        part.documents = known
        return True

    async def _show(self, report: Report) -> None:
        """Put on the canvas, the timeline and the widget what goes with an answer."""
        for line in report.timeline:
            await self.speech.note(line)
        for artifact in report.artifacts:
            await self.speech.show(artifact)
        payload = json.dumps(report.profile, ensure_ascii=False)
        await self.speech.widget("data.profile", "Data profile", payload)

    def _remember(self, part: Part, report: Report) -> None:
        self.said.append(HistoryMessage("user", part.message.text))
        self.said.append(HistoryMessage("assistant", report.answer))
        self.artifacts += len(report.artifacts)
        self.words_read += report.words_read + len(part.message.text.split())
        if any(document.bytes and "." in document.name for document in part.documents):
            self.documents = part.documents

    async def _account(self) -> None:
        """Report the usage: words read and words written, since there is no model that would count tokens."""
        row = {
            "service": "demo",
            "model": "words",
            "input_tokens": self.words_read,
            "output_tokens": self.speech.words,
            "estimated": True,
            "cost_usd": 0.0,
        }
        await self.comm.event(
            type="accounting.usage",
            step="accounting",
            status="completed",
            agent=AGENT,
            title="Token usage",
            data={"breakdown": [row], "cost_total_usd": 0.0},
        )

    async def _step(
        self,
        step: str,
        status: str,
        title: str,
        *,
        progress: float | None = None,
        markdown: str | None = None,
    ) -> None:
        data = {} if progress is None else {"progress": progress}
        await self.comm.step(title, status, step=step, agent=AGENT, data=data, markdown=markdown)


async def _document_of(attachment: TurnAttachment, content: bytes) -> Document:
    """Read a file's content: a PDF by its text, in a process of its own, anything else in a thread."""
    if attachment.mime != PDF:
        return await asyncio.to_thread(read_document, attachment.filename, attachment.mime, content)
    pdf = await read_pdf(content)
    return await asyncio.to_thread(read_pages, attachment.filename, len(content), pdf)


def _thoughts(part: Part) -> list[str]:
    """Say what the message brings and asks for."""
    words = counted(len(part.message.text.split()), "word")
    thoughts = [f"The message has {words}."]
    files = part.message.attachments
    if files:
        named = listed(f"{file.filename} ({size(file.size)})" for file in files)
        thoughts.append(f"It brings {counted(len(files), 'file')}: {named}.")
    if part.question.functions:
        thoughts.append(f"It speaks of: {listed(part.question.functions)}.")
    if part.question.word:
        thoughts.append(f"It names {code(part.question.word)}.")
    if not files:
        thoughts.append("There is no file, so I look at the message itself and at what was said before.")
    return thoughts


def _words(part: Part) -> list[str]:
    """The words that a long answer walks through: those of the documents, else of the message."""
    sample = " ".join(document.text[:40_000] for document in part.documents) or part.message.text
    return sample.split()[:WALKED_WORDS]
