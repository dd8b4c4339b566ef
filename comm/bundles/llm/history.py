"""What of the conversation the model is sent: whole messages, the newest first to stay, within a budget."""

import math
from collections.abc import Sequence

from comm.turns.context import HistoryMessage

from .provider import Message

BYTES_PER_TOKEN = 3.5
"""English has about 4, code and other languages less; a guess that is rather too many tokens than too few."""
MESSAGE_TOKENS = 4
IMAGE_TOKENS = 800


def estimate_tokens(text: str) -> int:
    """Guess how many tokens a text has: nobody but the server knows its tokenizer."""
    return math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN)


def estimate_messages(messages: Sequence[Message]) -> int:
    """Guess how many tokens messages have, with their images and tool calls."""
    return sum(MESSAGE_TOKENS + _tokens_of(message) for message in messages)


def budgeted_history(history: Sequence[HistoryMessage], budget_tokens: int) -> list[Message]:
    """Return the newest messages that fit, oldest first, as the protocol takes them.

    No message is cut. The first is the user's, and roles alternate: some chat templates refuse anything else.
    """
    kept: list[HistoryMessage] = []
    used = 0
    for message in reversed(history):
        if not message.content.strip():
            continue
        used += MESSAGE_TOKENS + estimate_tokens(message.content)
        if used > budget_tokens:
            break
        kept.append(message)
    messages: list[Message] = []
    for message in reversed(kept):
        role = "assistant" if message.role == "assistant" else "user"
        content = f"[Event] {message.content}" if message.role == "event" else message.content
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{content}"
        elif messages or role == "user":
            messages.append({"role": role, "content": content})
    return messages


def add_user_content(messages: list[Message], content: str | list[Message]) -> None:
    """Append what the user says; to their own message before it, where that one had no answer."""
    last = messages[-1] if messages else None
    if last is None or last["role"] != "user":
        messages.append({"role": "user", "content": content})
        return
    if isinstance(last["content"], str) and isinstance(content, str):
        last["content"] += f"\n\n{content}"
    else:
        last["content"] = [*_parts(last["content"]), *_parts(content)]


def _parts(content: str | list[Message]) -> list[Message]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _tokens_of(message: Message) -> int:
    content = message.get("content") or ""
    if isinstance(content, str):
        tokens = estimate_tokens(content)
    else:
        tokens = sum(estimate_tokens(part["text"]) if "text" in part else IMAGE_TOKENS for part in content)
    calls = message.get("tool_calls") or ()
    return tokens + sum(
        estimate_tokens(call["function"]["name"] + call["function"]["arguments"]) for call in calls
    )
