"""What the user might ask next: a second, small request that may fail without anybody's loss."""

import asyncio
import logging
import re
from contextlib import aclosing

from .accounting import Ledger
from .chunks import Tokens
from .conf import llm_settings
from .failures import ProviderFailure
from .history import estimate_messages, estimate_tokens
from .provider import Message, Provider, Request
from .thinking import ThinkSplitter

logger = logging.getLogger(__name__)

MOST = 3
LONGEST = 120
READ_CHARACTERS = 3000
MAX_TOKENS = 200
PROMPT = (
    "Below are a question and its answer. Write up to three short questions that the same user might ask "
    "next, in the language of the question, from the user's point of view. One per line; no numbering, "
    "nothing else."
)
_BULLET = re.compile(r"^(?:[-*•–]|\(?\d{1,2}[.):])\s*")


async def suggest(provider: Provider, question: str, answer: str, ledger: Ledger) -> list[str]:
    """Return up to three questions; none where the server fails or takes too long."""
    content = f"Question:\n{question[:READ_CHARACTERS]}\n\nAnswer:\n{answer[-READ_CHARACTERS:]}"
    messages: list[Message] = [{"role": "system", "content": PROMPT}, {"role": "user", "content": content}]
    said: list[str] = []
    try:
        async with asyncio.timeout(llm_settings().SUGGESTIONS_TIMEOUT_SECONDS):
            await _collect(provider, messages, said, ledger)
    except (ProviderFailure, TimeoutError) as error:
        logger.info("No followups are suggested: %s", getattr(error, "reason", "the server took too long"))
        return []
    return questions_in("".join(said))


async def _collect(provider: Provider, messages: list[Message], said: list[str], ledger: Ledger) -> None:
    splitter = ThinkSplitter()
    counted: Tokens | None = None
    written = 0
    try:
        async with aclosing(provider.ask(Request(messages, max_tokens=MAX_TOKENS))) as pieces:
            async for piece in pieces:
                counted = piece.tokens or counted
                written += len(piece.content) + len(piece.reasoning)
                said.append(splitter.feed(piece.content)[1])
                if written > 20 * READ_CHARACTERS:
                    break
        said.append(splitter.rest()[1])
    finally:
        if written:
            guess = Tokens(estimate_messages(messages), estimate_tokens(" " * written), estimated=True)
            ledger.add("followups", counted or guess)


def questions_in(text: str) -> list[str]:
    """Read the questions out of what a model wrote: one per line, whatever it puts around them."""
    found: list[str] = []
    for line in text.splitlines():
        question = _BULLET.sub("", line.strip()).strip("\"'“”„«»`*_ ")
        if 3 <= len(question) <= LONGEST and not question.endswith(":") and question not in found:
            found.append(question)
    return found[:MOST]
