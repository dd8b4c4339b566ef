"""The chatbot stream, `POST /api/chatbot/start/stream`: what the database has of a workflow, then its events."""

import asyncio
import logging
from io import BytesIO
from typing import Any

from channels.db import database_sync_to_async
from channels.exceptions import StopConsumer
from channels.generic.http import AsyncHttpConsumer
from corsheaders.middleware import CorsMiddleware
from django.core.exceptions import BadRequest as DjangoBadRequest
from django.core.handlers.asgi import ASGIRequest
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse

from comm.chatbot.feed import CHATDATA
from comm.event_bodies import Event
from comm.events import ContextEnded, EventQueue, EventsLost, get_event_manager
from relay.conf import relay_settings
from relay.cookies import remember_session
from relay.exceptions import BadRequest, MessageTooLarge, RelayError, Unavailable
from relay.ingress.bodies import body_limit
from relay.ingress.chatbot import Snapshot, Started, snapshot, start
from relay.sessions import session_headers

from .frames import KEEPALIVE, encode_body
from .responses import STREAM_HEADERS, headers_of

logger = logging.getLogger(__name__)

ENDS = ("complete", "stopped", "error")

_cors = CorsMiddleware(lambda request: HttpResponse(status=405, headers={"Allow": "POST, OPTIONS"}))


class ChatbotStreams:
    """The open chatbot streams of this process; `aclose` ends them with a word."""

    def __init__(self) -> None:
        self._writers: set[asyncio.Task[None]] = set()
        self.closing = asyncio.Event()

    def add(self, writer: asyncio.Task[None]) -> None:
        """Note a stream that has begun."""
        self._writers.add(writer)
        writer.add_done_callback(self._writers.discard)

    async def aclose(self) -> None:
        """Tell every stream that it ends, and wait for those that read."""
        self.closing.set()
        if self._writers:
            await asyncio.wait(list(self._writers), timeout=1.0)


chatbot_streams = ChatbotStreams()


class ChatbotConsumer(AsyncHttpConsumer):
    """One chatbot stream: `data:` items from the database once, then from the workflow's events, then its end.

    Disconnecting stops nothing: the same request without a prompt joins the workflow again. Whatever ends
    the consumer, `__call__` ends its writer.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._body: list[bytes] = []
        self._size = 0
        self._writer: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        self.scope = scope
        self.base_send = send
        try:
            while True:
                await self.dispatch(await receive())
        except StopConsumer:
            pass
        finally:
            if self._writer is not None:
                self._writer.cancel()
                await asyncio.gather(self._writer, return_exceptions=True)

    async def http_request(self, message: Any) -> None:
        """Take the body, then answer: open the stream, or say why not."""
        self._size += len(message.get("body", b""))
        if self._size <= body_limit():
            self._body.append(message.get("body", b""))
        if message.get("more_body"):
            return
        request = ASGIRequest(self.scope, BytesIO(b"".join(self._body)))
        if request.method != "POST":
            response = _cors(request)
            assert isinstance(response, HttpResponse), "the middleware got a synchronous view"
            await self._reply(response)
            raise StopConsumer()
        try:
            if self._size > body_limit():
                raise MessageTooLarge("The body is too large.")
            await self._open(request)
        except RelayError as error:
            await self._refuse(request, error)

    async def http_disconnect(self, message: Any) -> None:
        """The client has gone, or the response is complete."""
        raise StopConsumer()

    async def _open(self, request: HttpRequest) -> None:
        try:
            started = await database_sync_to_async(start)(request)
            # The events from here on, then the database: what is in both is told apart by its id.
            queue = await get_event_manager().queue_from_now(started.context_id)
            first = await database_sync_to_async(snapshot)(started)
        except (DjangoBadRequest, UnicodeError) as error:
            raise BadRequest("request", "cannot be read") from error
        except (DatabaseError, OSError) as error:
            logger.exception("A chatbot stream could not be opened")
            raise Unavailable("The workflow cannot be started right now.", retry_after=2) from error
        response = HttpResponse(headers={**STREAM_HEADERS, **session_headers(started.session)})
        response["X-Workflow-ID"] = started.workflow_id
        if started.session.is_anonymous:
            remember_session(response, started.session)
        _cors.add_response_headers(request, response)
        await self.send_headers(headers=headers_of(response))
        self._writer = asyncio.get_running_loop().create_task(self._write(started, queue, first))
        chatbot_streams.add(self._writer)

    # --- writing --------------------------------------------------------------------------------------

    async def _write(self, started: Started, queue: EventQueue, first: Snapshot) -> None:
        """Write everything of a workflow up to its end; raises nothing but a cancel."""
        try:
            sent: set[str] = set()
            await self._write_snapshot(first, sent)
            if first.running:
                await self._write_events(started, queue, sent)
            else:
                await self._send_end(first.end, {"workflowId": started.workflow_id, **first.error})
            await self.send_body(b"")
        except OSError:
            logger.info("The client of workflow %s has gone", started.workflow_id)
        except Exception:
            # The top of this stream: its client sees it end, and may join again.
            logger.exception("The stream of workflow %s failed", started.workflow_id)
            await self.send_body(b"")

    async def _write_snapshot(self, found: Snapshot, sent: set[str]) -> None:
        for item in found.items:
            await self._send_item(dict(item), sent)

    async def _write_events(self, started: Started, queue: EventQueue, sent: set[str]) -> None:
        while True:
            try:
                event = await self._next(queue)
            except EventsLost:
                # What was dropped is in the database.
                again = await database_sync_to_async(snapshot)(started)
                await self._write_snapshot(again, sent)
                if again.running:
                    continue
                return await self._send_end(again.end, {"workflowId": started.workflow_id, **again.error})
            except ContextEnded:
                return await self._send_end("complete", {"workflowId": started.workflow_id})
            if event is None:
                return await self._send_end("error", _restarting(started))
            if event["type"] == CHATDATA:
                await self._send_item(event["data"], sent)
            elif event["type"] in ENDS:
                return await self._send_end(event["type"], event["data"])
            else:
                await self._send_named(event)

    async def _next(self, queue: EventQueue) -> Event | None:
        """Wait for the next event, with keepalives meanwhile; None when the process stops."""
        closing = asyncio.ensure_future(chatbot_streams.closing.wait())
        getting = asyncio.ensure_future(queue.get())
        try:
            while True:
                await asyncio.wait(
                    [getting, closing],
                    timeout=relay_settings().CHATBOT_KEEPALIVE_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if getting.done():
                    return getting.result()
                if closing.done():
                    return None
                await self.send_body(KEEPALIVE, more_body=True)
        finally:
            for waiting in (getting, closing):
                waiting.cancel()
            await asyncio.gather(getting, closing, return_exceptions=True)

    async def _send_item(self, item: dict[str, Any], sent: set[str]) -> None:
        """Write an item, once: what the database had comes as an event too when it was made in between."""
        inner = item.get("item")
        key = f"{item.get('type')} {inner.get('id')}" if isinstance(inner, dict) and inner.get("id") else ""
        if key in sent:
            return
        if key:
            sent.add(key)
        await self.send_body(b"data: %b\n\n" % encode_body(item), more_body=True)

    async def _send_named(self, event: Event) -> None:
        body = {"type": event["type"], "createdAt": event["timestamp"], "item": event["data"]}
        for name in ("message", "step"):
            if event[name] is not None:
                body[name] = event[name]
        await self.send_body(b"data: %b\n\n" % encode_body(body), more_body=True)

    async def _send_end(self, kind: str, data: dict[str, Any]) -> None:
        frame = b"event: %b\ndata: %b\n\n" % (kind.encode(), encode_body({"type": kind, **data}))
        await self.send_body(frame, more_body=True)

    # --- refusing -------------------------------------------------------------------------------------

    async def _refuse(self, request: HttpRequest, error: RelayError) -> None:
        rendered = error.render()
        response = HttpResponse(rendered.body, status=rendered.status, headers=rendered.headers)
        _cors.add_response_headers(request, response)
        await self._reply(response)
        raise StopConsumer()

    async def _reply(self, response: HttpResponse) -> None:
        response.headers["Content-Length"] = str(len(response.content))
        await self.send_response(response.status_code, response.content, headers=headers_of(response))


def _restarting(started: Started) -> dict[str, Any]:
    return {
        "workflowId": started.workflow_id,
        "error": "This server is restarting; join the workflow again in a moment.",
        "error_type": "draining",
        "retry_after": 2,
    }
