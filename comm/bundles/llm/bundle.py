"""LlmBundle: one turn, from the message to the model's answer."""

import logging
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from comm.bundles.base import Bundle
from comm.bundles.demo.earlier import earlier_attachments
from comm.envelope import ANSWER, THINKING
from comm.turns.context import TurnAttachment, TurnContext

from .accounting import Ledger
from .calls import Calls, as_message
from .chunks import CallAssembler, Piece, Tokens, ToolCall
from .conf import DEFAULT_PROMPT, llm_settings
from .failures import EMPTY, ENDLESS, FILTERED, ProviderFailure
from .files import FileReader
from .history import add_user_content, budgeted_history, estimate_messages, estimate_tokens
from .provider import Message, Provider, Request
from .steps import AGENT, Steps
from .stopping import TurnStopped, unless_stopped
from .suggestions import suggest
from .thinking import ThinkSplitter
from .tools import configured_tools

logger = logging.getLogger(__name__)

MOST_CHARACTERS = 1_000_000
"""Of one answer, reasoning and tool calls included; a model that repeats itself never stops."""
NOT_SET_UP = "There is no model server yet. Set LLM_BASE_URL and LLM_MODEL, and restart."


class LlmBundle(Bundle):
    """Answers through a server that speaks the OpenAI chat-completions protocol; `LLM` says which.

    Stop and steer end the request upstream; a failure of the server ends the turn with a `chat_error` that
    says what to do, and keeps what was answered. Belongs to one event loop; `aclose()` closes its
    connections.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._provider = Provider()

    async def run(self, turn: TurnContext) -> None:
        """Answer the message, with the tools that the model asks for."""
        if not (llm_settings().BASE_URL and llm_settings().MODEL):
            await turn.communicator.error(NOT_SET_UP, data={"error_type": "config_missing"}, agent=AGENT)
            return
        answering = _Answering(turn, self._provider)
        try:
            await unless_stopped(turn, answering.run())
        except TurnStopped:
            await answering.account("skipped")
        except ProviderFailure as failure:
            logger.warning("Turn %s: %s (%s)", turn.turn_id, failure.kind.error_type, failure.reason)
            await answering.account("error")
            await turn.communicator.error(str(failure), data=failure.data, agent=AGENT)
        else:
            await answering.account("skipped")

    async def aclose(self) -> None:
        """Close the connections to the model server."""
        await self._provider.aclose()


@dataclass(slots=True)
class _Reply:
    """What the model said in one round."""

    messages: list[Message]
    said: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    reasoning_field: str = ""
    calls: CallAssembler = field(default_factory=CallAssembler)
    characters: int = 0
    finish: str = ""
    tokens: Tokens | None = None

    def take(self, piece: Piece) -> None:
        """Note what a piece brings beside its text. Errors: ProviderFailure for an answer without an end."""
        self.finish = piece.finish or self.finish
        self.tokens = piece.tokens or self.tokens
        self.reasoning_field = self.reasoning_field or piece.reasoning_field
        for fragment in piece.fragments:
            self.calls.add(fragment)
            self.characters += len(fragment.arguments)
        self.characters += len(piece.content) + len(piece.reasoning)
        if self.characters > MOST_CHARACTERS:
            raise ProviderFailure(ENDLESS, "too_long")

    def as_message(self) -> Message:
        """What the model said and asked for, as the next request repeats it."""
        reasoning = "".join(self.reasoning)
        return as_message(self.calls.calls, "".join(self.said), reasoning, self.reasoning_field)

    def used(self) -> Tokens:
        """What the round has used: as the server counted, else a guess."""
        if self.tokens is not None:
            return self.tokens
        written = [*self.said, *self.reasoning, *(call.name + call.arguments for call in self.calls.calls)]
        return Tokens(estimate_messages(self.messages), estimate_tokens("".join(written)), estimated=True)


class _Answering:
    """The state of one turn: what was said in it, what it has used."""

    def __init__(self, turn: TurnContext, provider: Provider) -> None:
        self.turn = turn
        self.comm = turn.communicator
        self.provider = provider
        self.conf = llm_settings()
        self.tools = configured_tools()
        self.steps = Steps(turn.communicator)
        self.calls = Calls(turn, self.tools, self.steps)
        self.files = FileReader(turn, AGENT)
        self.ledger = Ledger()
        self.reply: _Reply | None = None
        self.used_markers: dict[str, bool] = {}
        self.ends_in_line = True
        self.began = time.monotonic()

    async def run(self) -> None:
        """Ask, carry out what the model asks for, and ask again, until it answers."""
        messages = await self._messages()
        await self.steps.begin("model", f"Asking {self.conf.MODEL}", {"model": self.conf.MODEL})
        for rounds_left in range(self.conf.TOOL_ROUNDS, -1, -1):
            reply = await self._round(messages, rounds_left)
            calls = reply.calls.calls
            if not calls or not rounds_left:
                break
            messages.append(reply.as_message())
            messages += await self.calls.run(calls)
            await self._take_up_followup(messages)
        await self._finish(reply)
        for marker in self.used_markers:
            await self.comm.delta(marker, completed=True, agent=AGENT)
        await self._suggest()

    async def account(self, status: Any) -> None:
        """End the steps that are under way, and tell what the turn has used, however it ended."""
        self._book()
        await self.steps.end_all(status)
        data = self.ledger.data()
        if data is not None:
            await self.comm.event(
                type="accounting.usage", step="accounting", status="completed", agent=AGENT,
                title="Token usage", data=data, markdown=self.ledger.markdown(),
            )  # fmt: skip

    async def _messages(self) -> list[Message]:
        """The first request's messages: the system's, the history, the user's."""
        turn = self.turn
        messages = budgeted_history(turn.history, self.conf.HISTORY_TOKENS)
        earlier: list[TurnAttachment] = []
        if turn.history and not turn.attachments:
            earlier = await earlier_attachments(turn)
        add_user_content(messages, await self.files.content(turn.message, earlier))
        return [{"role": "system", "content": self.conf.SYSTEM_PROMPT or DEFAULT_PROMPT}, *messages]

    async def _round(self, messages: list[Message], rounds_left: int) -> _Reply:
        """Make one request and stream what comes."""
        reply = self.reply = _Reply(list(messages))
        definitions = [tool.definition for tool in self.tools.values()]
        request = Request(messages, definitions, "auto" if rounds_left else "none")
        splitter = ThinkSplitter()
        async with aclosing(self.provider.ask(request, self._wait)) as pieces:
            async for piece in pieces:
                reply.take(piece)
                reasoning, said = splitter.feed(piece.content)
                await self._say(reply, piece.reasoning + reasoning, said)
        await self._say(reply, *splitter.rest())
        self._book()
        return reply

    async def _say(self, reply: _Reply, reasoning: str, said: str) -> None:
        if reasoning:
            reply.reasoning.append(reasoning)
            await self._delta(THINKING, reasoning)
        if said:
            if not reply.said and not self.ends_in_line:
                # The model said something before it called its tools.
                await self._delta(ANSWER, "\n\n")
            reply.said.append(said)
            self.ends_in_line = said.endswith("\n")
            await self._delta(ANSWER, said)

    async def _delta(self, marker: str, text: str) -> None:
        if not self.used_markers:
            waited = round((time.monotonic() - self.began) * 1000)
            await self.steps.tell("model", f"{self.conf.MODEL} answers", f"First token after {waited:,} ms.")
        self.used_markers[marker] = True
        await self.comm.delta(marker, text, agent=AGENT)

    async def _wait(self, failure: ProviderFailure, seconds: float) -> None:
        title = f"Trying again in {seconds:.1f} s" if seconds >= 0.1 else "Trying again"
        await self.steps.tell("model", title, failure.kind.message)

    async def _take_up_followup(self, messages: list[Message]) -> None:
        """Let the model see at once what the user has added meanwhile."""
        followup = await self.turn.next_followup()
        if followup is not None:
            add_user_content(messages, await self.files.content(followup))

    async def _finish(self, reply: _Reply) -> None:
        """Judge how the answer ended. Errors: ProviderFailure for one that is none."""
        if reply.finish == "content_filter":
            raise ProviderFailure(FILTERED, "content_filter")
        if ANSWER not in self.used_markers:
            calls: list[ToolCall] = reply.calls.calls
            raise ProviderFailure(EMPTY, "tool_rounds" if calls else reply.finish or "stop")
        cut = reply.finish == "length"
        await self.steps.end(
            "model",
            f"{self.conf.MODEL} reached its limit" if cut else f"{self.conf.MODEL} has answered",
            data={"finish_reason": reply.finish, "seconds": round(time.monotonic() - self.began, 3)},
            markdown="The answer is cut off: the model may not write more. Ask it to go on." if cut else "",
        )

    async def _suggest(self) -> None:
        if not self.conf.SUGGESTIONS:
            return
        question, answer = self.turn.message.text, self.comm.final_answer
        items = await suggest(self.provider, question, answer, self.ledger)
        if items:
            await self.comm.followups(items, agent=AGENT, title="You could ask next")

    def _book(self) -> None:
        """Note what the round under way has used, once; a request that brought nothing is not counted."""
        reply, self.reply = self.reply, None
        if reply is not None and (reply.characters or reply.tokens):
            self.ledger.add("answer", reply.used())
