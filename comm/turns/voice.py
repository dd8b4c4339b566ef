"""Who speaks for a turn: its communicator, its scope, the state of its conversation, and whether it still may."""

import logging
import time
from typing import Any

from comm.bundles.registry import get_bundle
from comm.communicator import ChatCommunicator, Guard
from comm.envelope import ConversationContext, ServiceContext, stamp
from comm.exceptions import TurnLost
from comm.models import Turn

from .context import TurnScope
from .observing import TurnObserver

logger = logging.getLogger(__name__)


class Hold:
    """A lease as the process that has it knows it; `until` is on the monotonic clock."""

    def __init__(self, turn_id: str, until: float) -> None:
        self.turn_id = turn_id
        self.until = until
        self.lost = False

    def check(self) -> float:
        """Return until when the turn is this process's (monotonic clock). Errors: TurnLost where it is no longer."""
        if self.lost or time.monotonic() > self.until:
            raise TurnLost(f"{self.turn_id} is no longer this process's turn")
        return self.until

    def extend(self, until: float) -> None:
        """Note that the lease was renewed."""
        self.until = max(self.until, until)

    def ended(self) -> None:
        """Note that the turn's end was written down: nobody else can take it any more."""
        self.until = float("inf")


def scope_of(turn: Turn) -> TurnScope:
    """Return where a turn belongs, and whose it is."""
    return TurnScope(
        turn_id=turn.turn_id,
        conversation_id=turn.conversation.conversation_id,
        session_id=turn.session_id,
        tenant=turn.conversation.tenant,
        project=turn.conversation.project,
        bundle_id=turn.bundle_id,
        user_id=turn.user_id,
        user_type=turn.user_type,
        timezone=turn.request.get("timezone") or "",
        utc_offset_min=turn.request.get("utc_offset_min"),
    )


def communicator_of(
    turn: Turn, guard: Guard | None = None, observer: TurnObserver | None = None
) -> ChatCommunicator:
    """Return the communicator that speaks for a turn, through its bundle's filters."""
    conversation = turn.conversation
    return ChatCommunicator(
        service=ServiceContext(
            request_id=turn.request_id,
            tenant=conversation.tenant,
            project=conversation.project,
            user=turn.user_id,
            user_type=turn.user_type,
        ),
        conversation=ConversationContext(turn.session_id, conversation.conversation_id, turn.turn_id),
        event_filter=_filters_of(turn),
        guard=guard,
        observers=[observer.saw] if observer is not None else (),
    )


def _filters_of(turn: Turn) -> Any:
    try:
        return get_bundle(turn.bundle_id).event_filter
    except Exception:
        # The turn will tell: running the bundle fails the same way, and that is an error of the turn.
        logger.exception("Turn %s: bundle %s cannot be made", turn.turn_id, turn.bundle_id)
        return None


async def emit_status(
    communicator: ChatCommunicator, turn: Turn, state: str, completion: str | None = None
) -> None:
    """Tell the state of the turn's conversation; `completion` says how the turn ended."""
    data = {
        "state": state,
        "updated_at": stamp()[0],
        "current_turn_id": turn.turn_id,
        "origin_stream_id": turn.origin_stream_id,
        **({"completion": completion} if completion else {}),
    }
    await communicator.event(type="conv.status", step="conv.state", status=state, data=data)
