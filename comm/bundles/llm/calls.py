"""Carrying out the tool calls of a model: side by side, one step each, nothing of them can end the turn."""

import asyncio
import json
import logging
from typing import Any

from comm.bundles.demo.wording import code, printable, shortened
from comm.turns.context import TurnContext

from .chunks import ToolCall
from .conf import llm_settings
from .provider import Message
from .steps import Steps
from .tools import Tool, ToolError

logger = logging.getLogger(__name__)

RESULT_CHARACTERS = 12_000
"""What the model is sent of a result; more would push the question out of its window."""
SUMMARY_CHARACTERS = 300
ARGUMENT_CHARACTERS = 4_000


class Calls:
    """Runs the calls of one turn; `count` is how many there were."""

    def __init__(self, turn: TurnContext, tools: dict[str, Tool], steps: Steps) -> None:
        self.turn = turn
        self.tools = tools
        self.steps = steps
        self.count = 0

    async def run(self, calls: list[ToolCall]) -> list[Message]:
        """Run calls side by side; return their results as messages, in order."""
        places = range(self.count + 1, self.count + len(calls) + 1)
        tasks = [
            asyncio.create_task(self._run(call, place)) for call, place in zip(calls, places, strict=True)
        ]
        self.count += len(calls)
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, call: ToolCall, place: int) -> Message:
        step, title = f"tool.{place}", f"Tool {shortened(call.name) or '(unnamed)'}"
        await self.steps.begin(step, title, {"tool": call.name, "arguments": _arguments(call)})
        try:
            result = printable(await self._result(call))
        except ToolError as error:
            result, summary = f"Error: {error}", shortened(str(error), SUMMARY_CHARACTERS)
            markdown = _worded(call, summary)
            await self.steps.end(step, title, "error", data={"error": summary}, markdown=markdown)
        else:
            summary = shortened(result, SUMMARY_CHARACTERS)
            await self.steps.end(step, title, data={"result": summary}, markdown=_worded(call, summary))
        if len(result) > RESULT_CHARACTERS:
            result = f"{result[:RESULT_CHARACTERS]}\n[cut: these are the first of {len(result):,} characters]"
        return {"role": "tool", "tool_call_id": call.call_id, "content": result}

    async def _result(self, call: ToolCall) -> str:
        """Return what the tool says. Errors: ToolError, whatever went wrong."""
        found = self.tools.get(call.name)
        if found is None:
            known = ", ".join(self.tools) or "none"
            raise ToolError(f"there is no tool {call.name[:80]!r}; there are {known}")
        seconds = llm_settings().TOOL_TIMEOUT_SECONDS
        try:
            async with asyncio.timeout(seconds):
                return await found.run(self.turn, call.arguments)
        except ToolError:
            raise
        except TimeoutError:
            raise ToolError(f"the tool took longer than {seconds:g} seconds") from None
        except Exception as error:
            # A tool is as foreign as a filter: the model can go on without it.
            logger.exception("Turn %s: tool %s failed", self.turn.turn_id, call.name)
            raise ToolError("the tool failed; the details are in the server's log") from error


def as_message(calls: list[ToolCall], said: str, reasoning: str, reasoning_field: str) -> Message:
    """Return the model's own message with its calls, as the next request repeats it."""
    message: Message = {
        "role": "assistant",
        "content": said or None,
        "tool_calls": [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": _valid(call.arguments)},
            }
            for call in calls
        ],
    }
    if reasoning and reasoning_field == "reasoning_content":
        # Servers that name it so want it back while the model calls tools; some refuse to go on without.
        message[reasoning_field] = reasoning
    return message


def _valid(arguments: str) -> str:
    """Return arguments that a server can read: some parse them again for their chat template, and fail."""
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        return "{}"
    return arguments


def _arguments(call: ToolCall) -> Any:
    """Return the arguments for the step: as JSON, else as the text that they are."""
    if len(call.arguments) > ARGUMENT_CHARACTERS:
        return printable(call.arguments[:ARGUMENT_CHARACTERS]) + "…"
    try:
        return json.loads(call.arguments or "{}", parse_constant=str)
    except (ValueError, RecursionError):
        return printable(call.arguments)


def _worded(call: ToolCall, summary: str) -> str:
    return f"{code(call.name)} {code(call.arguments)} → {code(summary)}"
