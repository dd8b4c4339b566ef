"""The model server: one client per process, requests that stream, retries before the first token."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import openai

from .chunks import Piece, read_piece
from .conf import llm_settings
from .failures import CUT, GARBAGE, ProviderFailure, failure_of, said_by

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
LONGEST_WAIT_SECONDS = 8.0
"""A server that asks for a longer wait is told to the user, who may not want to wait."""
FIRST_WAIT_SECONDS = 0.5
_END = object()

Message = dict[str, Any]
OnWait = Callable[[ProviderFailure, float], Awaitable[None]]

OPTIONAL = {
    "stream_options": re.compile(r"stream_options|include_usage"),
    "tools": re.compile(r"\btools?\b|tool_choice|function call|--jinja"),
}
"""Fields that some servers refuse, and how they word it; a turn goes on without them."""


@dataclass(slots=True)
class Request:
    """One request: its messages, the tools on offer, and what else the protocol takes."""

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: str = "auto"
    max_tokens: int | None = None


class Provider:
    """The client of one event loop; made at the first request, closed by whoever made the provider.

    The SDK's own retries are off: they wait as long as a server likes, and nobody sees why.
    """

    def __init__(self) -> None:
        self._client: openai.AsyncOpenAI | None = None
        self._refused: set[str] = set()

    async def ask(self, request: Request, on_wait: OnWait | None = None) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of the answer up to its end; close the generator to end the request.

        `on_wait` is told of each failed try that is followed by another. Errors: ProviderFailure.
        """
        stream = await self._open(request, on_wait)
        ended = False
        try:
            while (chunk := await _next_chunk(stream)) is not _END:
                piece = read_piece(chunk)
                ended = ended or bool(piece.finish)
                yield piece
        finally:
            await stream.close()
        if not ended:
            # Some servers end the connection in good order when their process behind has died.
            raise ProviderFailure(CUT, "no_finish_reason")

    async def aclose(self) -> None:
        """Close the client and its connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _open(self, request: Request, on_wait: OnWait | None) -> openai.AsyncStream[Any]:
        tries = 0
        while True:
            body = self._body(request)
            try:
                return await self._create(body)
            except (openai.OpenAIError, TimeoutError, ValueError) as error:
                if self._goes_without(body, error):
                    continue
                failure = failure_of(error)
            wait = FIRST_WAIT_SECONDS * 2**tries if failure.retry_after is None else failure.retry_after
            if not failure.kind.passing or tries >= llm_settings().RETRIES or wait > LONGEST_WAIT_SECONDS:
                # Outside the except: the SDK's error holds the request, and with it the key.
                raise failure
            if on_wait is not None:
                await on_wait(failure, wait)
            await asyncio.sleep(wait)
            tries += 1

    async def _create(self, body: dict[str, Any]) -> openai.AsyncStream[Any]:
        async with asyncio.timeout(llm_settings().TIMEOUT_SECONDS):
            found = await self._ready_client().chat.completions.create(**body, extra_headers=_headers())
        return cast("openai.AsyncStream[Any]", found)

    def _ready_client(self) -> openai.AsyncOpenAI:
        if self._client is None:
            conf = llm_settings()
            absent: Mapping[str, Any] = {
                # The environment's, which are for another server.
                "OpenAI-Organization": openai.Omit(),
                "OpenAI-Project": openai.Omit(),
            }
            self._client = openai.AsyncOpenAI(
                base_url=conf.BASE_URL,
                api_key=conf.API_KEY or "none",
                max_retries=0,
                timeout=openai.Timeout(
                    conf.TIMEOUT_SECONDS, connect=min(CONNECT_SECONDS, conf.TIMEOUT_SECONDS)
                ),
                default_headers=cast("Mapping[str, str]", absent),
            )
        return self._client

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": llm_settings().MODEL,
            "messages": request.messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.tools:
            body |= {"tools": request.tools, "tool_choice": request.tool_choice}
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        for name in self._refused:
            body.pop(name, None)
        if "tools" not in body:
            body.pop("tool_choice", None)
        return body

    def _goes_without(self, body: dict[str, Any], error: Exception) -> bool:
        """Note a field that the server refuses, and tell whether to try again without it."""
        if not isinstance(error, openai.APIStatusError) or error.status_code in (401, 403, 429):
            return False
        said = said_by(error)
        for name, words in OPTIONAL.items():
            if name in body and words.search(said):
                self._refused.add(name)
                logger.warning("The model server refuses %r; the llm bundle goes on without", name)
                return True
        return False


def _headers() -> dict[str, Any]:
    """Leave the key's header out where there is no key: a server may refuse a made-up one."""
    return {} if llm_settings().API_KEY else {"Authorization": openai.Omit()}


async def _next_chunk(stream: openai.AsyncStream[Any]) -> object:
    """Return the next chunk, _END after the last. Errors: ProviderFailure."""
    try:
        async with asyncio.timeout(llm_settings().TIMEOUT_SECONDS):
            return await anext(stream, _END)
    except (openai.OpenAIError, TimeoutError) as error:
        failure = failure_of(error, streaming=True)
    except (ValueError, TypeError, AttributeError, RecursionError):
        # The SDK reads what the server sent as JSON and as text, and raises what comes of that.
        failure = ProviderFailure(GARBAGE, "not_readable")
    raise failure
