"""A model server on a real port: HTTP/1.1 and the OpenAI chat-completions protocol, said as a test wants it.

It is written on bare sockets, so that it can also do what no web framework lets one do: cut an answer, send
what is no HTTP, keep silent, and see the very moment in which a client goes away.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

Handler = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """One request and the way to answer it, chunk by chunk."""

    def __init__(
        self,
        path: str,
        headers: dict[str, str],
        body: Any,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.path = path
        self.headers = headers
        self.body = body
        self.peer = writer.get_extra_info("peername")
        self.gone = asyncio.Event()
        self.streaming = False
        self._reader = reader
        self._writer = writer

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages of the request."""
        return list(self.body["messages"])

    @property
    def offered(self) -> list[str]:
        """The names of the tools on offer."""
        return [tool["function"]["name"] for tool in self.body.get("tools", [])]

    async def open(self, content_type: str = "text/event-stream") -> None:
        """Begin a streamed answer."""
        self.streaming = True
        await self.raw(
            f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )

    async def raw(self, content: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(content)
        await self._writer.drain()

    async def send(self, content: bytes | str) -> None:
        """Send some of the body."""
        if not self.streaming:
            await self.open()
        encoded = content.encode() if isinstance(content, str) else content
        await self.raw(b"%x\r\n%s\r\n" % (len(encoded), encoded))

    async def event(self, data: Any) -> None:
        """Send one event of the stream."""
        await self.send(f"data: {json.dumps(data)}\n\n")

    async def delta(self, finish: str | None = None, **delta: Any) -> None:
        """Send one chunk of a completion."""
        await self.event(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk",
                "created": 1772140445,
                "model": self.body.get("model"),
                "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
            }
        )

    async def call(self, index: int, name: str, arguments: str, call_id: str | None = None) -> None:
        """Send a whole tool call, its arguments in three pieces."""
        first = {"index": index, "id": call_id or f"call-{index}", "type": "function"}
        await self.delta(tool_calls=[{**first, "function": {"name": name, "arguments": ""}}])
        third = len(arguments) // 3 + 1
        for start in range(0, len(arguments), third):
            piece = {"index": index, "function": {"arguments": arguments[start : start + third]}}
            await self.delta(tool_calls=[piece])

    async def usage(self, tokens_in: int, tokens_out: int) -> None:
        """Send the chunk that counts, as `stream_options.include_usage` asks for."""
        counts = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}
        await self.event({"object": "chat.completion.chunk", "choices": [], "usage": counts})

    async def done(self) -> None:
        """End the stream in good order."""
        await self.send("data: [DONE]\n\n")
        await self.raw(b"0\r\n\r\n")

    async def refuse(self, status: int, error: Any = None, **headers: str) -> None:
        """Answer with an error; `error` is the error object, or the body where it is a text."""
        body = error if isinstance(error, str) else json.dumps({"error": error or {"message": "No."}})
        lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body.encode())}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.raw("\r\n".join([*lines, "", body]).encode())

    def cut(self) -> None:
        """Drop the connection."""
        self._writer.transport.abort()

    async def until_gone(self, timeout: float = 10.0) -> None:
        """Wait until the client has closed the connection; it says nothing more before it has its answer."""
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(self._reader.read(1), timeout) == b""
        self.gone.set()


class ModelServer:
    """Answers each request by the next handler of the script; the last one answers all that follow."""

    def __init__(self) -> None:
        self.script: list[Handler] = []
        self.requests: list[Exchange] = []
        self.failures: list[BaseException] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=64 * 1024 * 1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close every connection and listen no more."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def plan(self, *handlers: Handler) -> None:
        """Say how the next requests are answered."""
        self.script = list(handlers)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except Exception as error:  # noqa: BLE001 - the fixture raises it in the test
            self.failures.append(error)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := (await reader.readuntil(b"\r\n\r\n")).decode():
            request_line, *lines = head.strip().split("\r\n")
            pairs = (line.partition(":") for line in lines)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            exchange = Exchange(request_line.split()[1], headers, json.loads(body), reader, writer)
            self.requests.append(exchange)
            handler = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            await handler(exchange)


def says(*texts: str, usage: tuple[int, int] | None = (120, 38), finish: str = "stop") -> Handler:
    """Answer with texts, one chunk each, as a well-behaved server does."""

    async def handler(exchange: Exchange) -> None:
        await exchange.delta(role="assistant", content="")
        for text in texts:
            await exchange.delta(content=text)
        await exchange.delta(finish)
        if usage is not None:
            await exchange.usage(*usage)
        await exchange.done()

    return handler


def calls(*wanted: tuple[str, Any], text: str = "", usage: tuple[int, int] | None = (100, 20)) -> Handler:
    """Ask for tools; arguments are JSON values, or texts as a confused model writes them."""

    async def handler(exchange: Exchange) -> None:
        if text:
            await exchange.delta(content=text)
        for index, (name, arguments) in enumerate(wanted):
            written = arguments if isinstance(arguments, str) else json.dumps(arguments)
            await exchange.call(index, name, written)
        await exchange.delta("tool_calls")
        if usage is not None:
            await exchange.usage(*usage)
        await exchange.done()

    return handler


def refuses(status: int, error: Any = None, **headers: str) -> Handler:
    """Answer with an error."""

    async def handler(exchange: Exchange) -> None:
        await exchange.refuse(status, error, **headers)

    return handler
