"""What the sending stream is told beside the acknowledgement: refusals, warnings, the state it asked for."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from comm.communicator import ChatCommunicator
from comm.envelope import ConversationContext, ServiceContext
from comm.exceptions import CommError
from comm.turns.incoming import Caller
from relay.exceptions import Notice, RelayError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Sender:
    """Who sends a message and over which stream; `stream_id` is a Socket.IO sid on that transport.

    `tenant` and `project` are what the message falls back to where it names none. `conversation_id` is
    set once the message was read, so that a refusal says which conversation it is about. `author` is the
    name that the message is kept under, where it is not the caller's own.
    """

    caller: Caller
    stream_id: str
    tenant: str
    project: str
    request_id: str
    conversation_id: str = ""
    author: str = ""


@contextmanager
def announced(sender: Sender) -> Iterator[None]:
    """Let every refusal inside the block also reach the sender's stream, then go on its way."""
    try:
        yield
    except RelayError as error:
        notify(sender, error.notices, status="error")
        with _to_stream(sender, "chat.error") as communicator:
            detail = {**error.detail(), "status": error.status}
            communicator.error_sync(message=str(error), data=detail, step="gateway", title="Not accepted")
        raise


def notify(sender: Sender, notices: Sequence[Notice], *, status: str = "update") -> None:
    """Send `chat_service` events to the sender's stream, and to no other."""
    for notice in notices:
        with _to_stream(sender, notice.type) as communicator:
            communicator.service_event_sync(
                type=notice.type, step="gateway", status=status, title=notice.title, data=notice.data
            )


def tell_state(sender: Sender, status: dict[str, Any]) -> None:
    """Send the state of a conversation to the stream that asked for it."""
    with _to_stream(sender, "conv.status") as communicator:
        communicator.event_sync(
            type="conv.status", route="conv_status", step="conv.state", status=status["state"], data=status
        )


@contextmanager
def _to_stream(sender: Sender, type: str) -> Iterator[ChatCommunicator]:
    """Give a communicator that emits to the sender's stream; the HTTP answer does not hang on its success."""
    caller = sender.caller
    communicator = ChatCommunicator(
        service=ServiceContext(
            request_id=sender.request_id,
            tenant=sender.tenant,
            project=sender.project,
            user=caller.user_id,
            user_type=caller.user_type,
        ),
        conversation=ConversationContext(
            session_id=caller.session_id, conversation_id=sender.conversation_id
        ),
        target_sid=sender.stream_id,
    )
    try:
        yield communicator
    except (CommError, OSError, TimeoutError) as error:
        logger.warning("%s for session %s was not delivered: %s", type, caller.session_id, error)
