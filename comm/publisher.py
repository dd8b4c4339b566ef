"""The one place where an envelope enters the channel layer."""

import asyncio
import logging

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.db import transaction

from . import sinks
from .conf import comm_settings
from .envelope import Envelope
from .exceptions import PublishFailed
from .groups import project_group, session_group
from .history import Position

logger = logging.getLogger(__name__)

MESSAGE_TYPE = "relay.envelope"
"""`type` of the channel-layer message; beside it stand `group`, `route`, `target_sid` and `body` (bytes)."""

_home_loop: asyncio.AbstractEventLoop | None = None


def set_home_loop(loop: asyncio.AbstractEventLoop | None) -> None:
    """Name the loop that owns this process's channel layer; synchronous publishes go there."""
    global _home_loop
    _home_loop = loop


def home_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that owns this process's channel layer, while the process serves."""
    return _home_loop


async def publish(envelope: Envelope, *, target_sid: str | None = None) -> Position | None:
    """Send an envelope to its session; return its position once the layer has taken it.

    Errors: EnvelopeInvalid when it can't be encoded, PublishFailed when the layer did not take it.
    """
    session_id = envelope.conversation.session_id
    return await _send(session_group(session_id), envelope, envelope.encode(), target_sid)


async def publish_project(envelope: Envelope) -> None:
    """Send an envelope to the streams of its tenant and project that asked for such events."""
    group = project_group(envelope.service.tenant, envelope.service.project)
    await _send(group, envelope, envelope.encode(), None)


async def _send(group: str, envelope: Envelope, body: bytes, target_sid: str | None) -> Position | None:
    route = envelope.socket_event
    message = {"type": MESSAGE_TYPE, "group": group, "route": route, "target_sid": target_sid, "body": body}
    try:
        position: Position | None = await get_channel_layer().group_send(group, message)
    except OSError as error:
        raise PublishFailed(f"the channel layer did not take {envelope.type}: {error}") from error
    sinks.offer(
        sinks.Published(envelope, body, route, position, envelope.conversation.session_id, target_sid)
    )
    return position


def publish_sync(envelope: Envelope, *, target_sid: str | None = None, to_project: bool = False) -> None:
    """Publish from synchronous code, after the open transaction commits when there is one.

    The envelope is encoded at once, so that a field that can't be is an error where it was made.
    """
    envelope.encode()

    async def send() -> None:
        if to_project:
            await publish_project(envelope)
        else:
            await publish(envelope, target_sid=target_sid)

    def run() -> None:
        loop = home_loop()
        if loop is None:
            async_to_sync(send)()
            return
        if _runs_here(loop):
            raise RuntimeError("this thread runs the event loop: await the async method instead")
        asyncio.run_coroutine_threadsafe(send(), loop).result(comm_settings().SYNC_PUBLISH_TIMEOUT_SECONDS)

    transaction.on_commit(run)


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
