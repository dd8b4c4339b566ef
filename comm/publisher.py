"""The one place where an envelope enters the channel layer."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.db import connection, transaction

from . import sinks
from .conf import comm_settings
from .envelope import Envelope
from .exceptions import EnvelopeInvalid, PublishFailed
from .groups import HUBS, project_group, session_group
from .history import Position, Taken

logger = logging.getLogger(__name__)

T = TypeVar("T")

MESSAGE_TYPE = "relay.envelope"
"""`type` of the channel-layer message; beside it stand `group`, `route`, `target_sid` and `body` (bytes)."""

TRANSIENT_TYPE = "relay.transient"
"""`type` of a message that is shown and not kept; its `group` or its `target_sid` names the peers."""

_home_loop: asyncio.AbstractEventLoop | None = None


def set_home_loop(loop: asyncio.AbstractEventLoop | None) -> None:
    """Name the loop that owns this process's channel layer; synchronous publishes go there."""
    global _home_loop
    _home_loop = loop


def home_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that owns this process's channel layer, while the process serves."""
    return _home_loop


async def publish(
    envelope: Envelope,
    *,
    target_sid: str | None = None,
    body: bytes | None = None,
    until: float | None = None,
) -> Position | None:
    """Send an envelope to its session; return its position once the layer has taken it.

    `body` is the encoded envelope where the caller has it already. After `until` (monotonic clock) a shared layer
    takes it no more. Up to the layer nothing is awaited, so
    the order of calls is the order of positions. Errors: EnvelopeInvalid when it can't be encoded,
    PublishFailed when the layer did not take it.
    """
    if not envelope.conversation.session_id:
        raise EnvelopeInvalid("conversation.session_id", "is empty: nobody would receive this")
    group = session_group(envelope.conversation.session_id)
    return await _send_at_home(group, envelope, body or envelope.encode(), target_sid, until)


async def publish_project(
    envelope: Envelope, *, body: bytes | None = None, until: float | None = None
) -> None:
    """Send an envelope to the streams of its tenant and project that asked for such events."""
    group = project_group(envelope.service.tenant, envelope.service.project)
    await _send_at_home(group, envelope, body or envelope.encode(), None, until)


async def show(envelope: Envelope, *, session_id: str | None = None, stream_id: str | None = None) -> None:
    """Show an envelope to the open streams of a session, or to those of one stream id; keep it nowhere.

    It gets no position and no sink sees it: replays travel so, beside what really happens.
    """
    if (session_id is None) == (stream_id is None):
        raise ValueError("show() takes a session_id or a stream_id")
    message = {
        "type": TRANSIENT_TYPE,
        "group": None if session_id is None else session_group(session_id),
        "route": envelope.socket_event,
        "target_sid": stream_id,
        "body": envelope.encode(),
    }
    await at_home(_group_send(HUBS, message, envelope))


async def _send_at_home(
    group: str, envelope: Envelope, body: bytes, target_sid: str | None, until: float | None
) -> Position | None:
    if _home_loop is None or _home_loop is asyncio.get_running_loop():
        return await _send(group, envelope, body, target_sid, until)
    return await at_home(_send(group, envelope, body, target_sid, until))


async def at_home(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop that owns the layer, wherever the caller runs."""
    loop = _home_loop
    if loop is None or loop is asyncio.get_running_loop():
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


async def _send(
    group: str, envelope: Envelope, body: bytes, target_sid: str | None, until: float | None
) -> Position | None:
    route = envelope.socket_event
    message = {"type": MESSAGE_TYPE, "group": group, "route": route, "target_sid": target_sid, "body": body}
    try:
        position = await _group_send(group, message, envelope, until)
    except asyncio.CancelledError as error:
        if isinstance(error.__cause__, Taken):
            _offer(envelope, body, error.__cause__.position, target_sid)
        raise
    _offer(envelope, body, position, target_sid)
    return position


def _offer(envelope: Envelope, body: bytes, position: Position | None, target_sid: str | None) -> None:
    """Show the sinks what the layer has taken."""
    if sinks.are_active():
        route, session_id = envelope.socket_event, envelope.conversation.session_id
        sinks.offer(sinks.Published(envelope, body, route, position, session_id, target_sid))


async def _group_send(
    group: str, message: dict[str, Any], envelope: Envelope, until: float | None = None
) -> Position | None:
    layer: Any = get_channel_layer()
    if layer is None:
        raise PublishFailed("no channel layer is configured")
    try:
        position: Position | None
        if until is not None and getattr(layer, "shared", False):
            position = await layer.group_send(group, message, until)
        else:
            # Within one process nothing is on its way for long.
            position = await layer.group_send(group, message)
    except OSError as error:
        raise PublishFailed(f"the channel layer did not take {envelope.type}: {error}") from error
    return position


def publish_sync(envelope: Envelope, *, target_sid: str | None = None, to_project: bool = False) -> None:
    """Publish from synchronous code, after the open transaction commits when there is one.

    The envelope is encoded at once, so that a field that can't be is an error where it was made.
    """
    body = envelope.encode()

    async def send() -> None:
        if to_project:
            await publish_project(envelope, body=body)
        else:
            await publish(envelope, target_sid=target_sid, body=body)

    run_after_commit(send)


def run_after_commit(send: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Run a publishing coroutine from synchronous code: after the open transaction commits, else at once.

    Returns when it has run (or, in a transaction, when it was noted down). Errors: RuntimeError on a thread
    that runs an event loop, PublishFailed when the loop did not answer in SYNC_PUBLISH_TIMEOUT_SECONDS.
    """
    refuse_on_loop()
    # Asking the connection's state opens no connection; a thread without a database can emit too.
    if connection.in_atomic_block:
        transaction.on_commit(lambda: _run_at_home(send))
    else:
        _run_at_home(send)


def _run_at_home(send: Callable[[], Coroutine[Any, Any, object]]) -> None:
    loop = home_loop()
    if loop is None:
        async_to_sync(send)()
        return
    given_up = threading.Event()

    async def send_in_time() -> None:
        # Cancelling alone comes after the task's first step, and that step publishes.
        if not given_up.is_set():
            await send()

    sending = asyncio.run_coroutine_threadsafe(send_in_time(), loop)
    try:
        sending.result(comm_settings().SYNC_PUBLISH_TIMEOUT_SECONDS)
    except TimeoutError as error:
        given_up.set()
        sending.cancel()
        raise PublishFailed("the event loop did not publish in time") from error


def refuse_on_loop() -> None:
    """Raise RuntimeError on a thread that runs an event loop: a publish waited for there never comes."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("this thread runs an event loop: await the async method instead")
