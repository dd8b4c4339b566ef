"""Running one claimed turn: its events in order, its bundle, its end."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from asgiref.sync import ThreadSensitiveContext
from channels.db import aclose_old_connections
from django.db import DatabaseError

from comm.archive import get_archive
from comm.bundles.base import Bundle
from comm.bundles.registry import get_bundle
from comm.communicator import ChatCommunicator
from comm.conf import comm_settings
from comm.envelope import ANSWER, ConversationContext, ServiceContext, stamp
from comm.exceptions import CommError, TurnLost
from comm.models import Turn

from . import leases
from .context import TurnContext, TurnMessage, TurnScope
from .observing import Database, TurnObserver, observer_of, observing
from .outcome import outcome_of

logger = logging.getLogger(__name__)

INTERRUPTED = (
    "The turn was interrupted: the process that answered it has stopped. Send the message again to retry."
)
FAILED = "Something went wrong while answering. The details are in the server's log."


class Hold:
    """A lease as the process that has it knows it; `until` is on the monotonic clock."""

    def __init__(self, turn_id: str, until: float) -> None:
        self.turn_id = turn_id
        self.until = until
        self.lost = False

    def check(self) -> None:
        """Raise TurnLost when the turn is no longer this process's."""
        if self.lost or time.monotonic() > self.until:
            raise TurnLost(f"{self.turn_id} is no longer this process's turn")


class Execution:
    """One turn that this process runs.

    Created with a claim; `run()` emits and writes until the end and raises nothing but a cancel. The lease is
    renewed from outside (`hold`); once it has ended, nothing is emitted any more.
    """

    def __init__(self, claim: leases.Claim, database: Database, held_until: float, waiting: int) -> None:
        self.turn = claim.turn
        self._claim = claim
        self._database = database
        self._hold = Hold(claim.turn.turn_id, held_until)
        self._waiting = waiting
        self._bundle_task: asyncio.Task[None] | None = None
        self._interrupted = False
        self._stop_timer: asyncio.TimerHandle | None = None
        self.observer = observer_of(self.turn, database)
        # Nothing of these refers back to this object: a turn's text is freed with its turn.
        self.communicator = communicator_of(self.turn, self._hold.check, self.observer)
        absorb = partial(_absorb, self.turn, database, self.communicator)
        self.context = TurnContext(
            scope_of(self.turn), claim.message, claim.history, self.communicator, absorb
        )

    # --- from outside -------------------------------------------------------------------------------

    def hold(self, until: float) -> None:
        """Note that the lease was renewed; `until` is on the monotonic clock."""
        self._hold.until = until

    def lose(self) -> None:
        """Stop at once and say nothing: another process owns the turn."""
        self._hold.lost = True
        self._cancel_bundle()

    def stop(self, *, steered: bool) -> None:
        """Ask the bundle to end; it is cancelled after STOP_GRACE_SECONDS."""
        if self.context.stopped:
            return
        self.context.ring_stop(steered=steered)
        grace = comm_settings().STOP_GRACE_SECONDS
        self._stop_timer = asyncio.get_running_loop().call_later(grace, self._cancel_bundle)

    def interrupt(self) -> None:
        """End the turn as interrupted: the process stops and cannot wait any longer."""
        self._interrupted = True
        self._cancel_bundle()

    # --- the turn -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the turn from its first event to its last."""
        try:
            async with ThreadSensitiveContext():
                await self._run()
        except TurnLost:
            logger.warning("Turn %s: the lease has ended; another process declares it", self.turn.turn_id)
        except CommError:
            logger.exception("Turn %s could not tell its end; its lease will end", self.turn.turn_id)
        finally:
            if self._stop_timer is not None:
                self._stop_timer.cancel()
            await self.communicator.aclose()

    async def _run(self) -> None:
        async with observing(self.observer):
            await self._run_observed()

    async def _run_observed(self) -> None:
        stop_first = self.turn.stop_requested_at is not None
        await self._open()
        failure = None
        if stop_first:
            self.stop(steered=bool(self.turn.request.get("steered")))
        else:
            failure = await self._answer()
        if self._hold.lost:
            return
        if self._interrupted and self.communicator.ended is None:
            await declare_interrupted(
                self.turn, self.communicator, self._database, self._partial_answer, self.observer
            )
        else:
            await self._close(failure)

    async def _open(self) -> None:
        if self.turn.request.get("conversation_created"):
            await emit_status(self.communicator, self.turn, "created")
        await emit_status(self.communicator, self.turn, "in_progress")
        files = self._claim.message.attachments
        if files:
            items = [
                {"id": file.attachment_id, "filename": file.filename, "mime": file.mime, "size": file.size}
                for file in files
            ]
            await self.communicator.event(
                type="chat.attachments", step="attachments", status="completed",
                data={"count": len(items), "items": items},
            )  # fmt: skip
        await self.communicator.start(
            message=self._claim.message.text, queue_stats={"waiting": self._waiting}
        )
        if self.turn.request.get("conversation_created"):
            await self.communicator.event(
                type="chat.conversation.title", step="title", status="completed",
                data={"title": self.turn.conversation.title},
            )  # fmt: skip

    async def _answer(self) -> dict[str, Any] | None:
        """Run the bundle; return what to tell as an error, None when there is nothing to."""
        if self._interrupted or self._hold.lost:
            return None
        self._bundle_task = asyncio.create_task(self._run_bundle(), name=f"bundle {self.turn.turn_id}")
        try:
            await asyncio.wait([self._bundle_task])
        finally:
            if not self._bundle_task.done():
                # We are cancelled ourselves; the bundle is ours to end.
                self._bundle_task.cancel()
                await asyncio.gather(self._bundle_task, return_exceptions=True)
        if self._bundle_task.cancelled():
            if self.context.stopped or self._interrupted or self._hold.lost:
                return None
            return {"error": FAILED, "error_type": "bundle_error", "reason": "the bundle cancelled itself"}
        error = self._bundle_task.exception()
        if error is None:
            return None
        if isinstance(error, TurnLost):
            raise error
        return self._worded(error)

    async def _run_bundle(self) -> None:
        await aclose_old_connections()
        try:
            bundle: Bundle = get_bundle(self.turn.bundle_id)
            await bundle.run(self.context)
        finally:
            await aclose_old_connections()

    def _worded(self, error: BaseException) -> dict[str, Any] | None:
        if self.context.stopped:
            logger.warning("Turn %s failed while it was being stopped", self.turn.turn_id, exc_info=error)
            return None
        logger.error("Turn %s: bundle %s failed", self.turn.turn_id, self.turn.bundle_id, exc_info=error)
        # The text of an exception may tell what no user should read.
        return {"error": FAILED, "error_type": "bundle_error"}

    async def _close(self, failure: dict[str, Any] | None) -> None:
        """Tell the end, write it down, and tell that the conversation is free again."""
        communicator = self.communicator
        if communicator.ended is None and failure is not None:
            await communicator.error(failure.pop("error"), data=failure)
        elif communicator.ended is None:
            await communicator.complete(self._stopped_data())
        status, completion = self._verdict()
        error = {} if completion == "success" else {"error": FAILED, **(communicator.error_data or {})}
        kept = await self._persist(
            lambda: leases.finish(
                self.turn,
                status,
                answer=communicator.final_answer,
                outcome=outcome_of(communicator),
                error=error,
            )
        )
        if kept:
            state = "idle" if completion == "success" else "error"
            await emit_status(communicator, self.turn, state, completion)
            if self.observer is not None:
                self.observer.ended(status)

    def _verdict(self) -> tuple[str, str]:
        if self.communicator.ended == "error":
            return Turn.Status.ERROR, "error"
        return (Turn.Status.STOPPED if self.context.stopped else Turn.Status.COMPLETED), "success"

    def _stopped_data(self) -> dict[str, Any]:
        if not self.context.stopped:
            return {}
        return {"stopped": True, **({"steered": True} if self.context.steered else {})}

    async def _partial_answer(self) -> str:
        return self.communicator.final_answer

    async def _persist(self, work: Callable[[], bool]) -> bool:
        """Run a write that must not get lost to a database that is away for a moment."""
        pause = 0.2
        while True:
            try:
                return bool(await self._database(work))
            except (OSError, DatabaseError):
                if time.monotonic() + pause > self._hold.until:
                    raise TurnLost("the end of the turn could not be written in time") from None
                logger.exception("Turn %s: its end could not be written; trying again", self.turn.turn_id)
                await asyncio.sleep(pause)
                pause *= 2

    def _cancel_bundle(self) -> None:
        if self._bundle_task is not None and not self._bundle_task.done():
            self._bundle_task.cancel()


async def _absorb(turn: Turn, database: Database, communicator: ChatCommunicator) -> TurnMessage | None:
    """Take the oldest followup for the running turn, and tell that it was taken."""
    followup: TurnMessage | None = await database(partial(leases.absorb_followup, turn))
    if followup is not None:
        await communicator.service_event(
            type="queue.followup_absorbed", step="queue", status="completed", broadcast=True,
            data={
                "queued_turn_id": followup.turn_id, "active_turn_id": turn.turn_id, "message": followup.text,
            },
        )  # fmt: skip
    return followup


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
    turn: Turn, guard: Callable[[], None] | None = None, observer: TurnObserver | None = None
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


async def archived_answer(turn: Turn) -> str:
    """Return as much of a turn's answer as the archive has: its own process is gone."""
    return await get_archive().fold_text(turn.session_id, turn.turn_id, ANSWER)


async def declare_interrupted(
    turn: Turn,
    communicator: ChatCommunicator,
    database: Database,
    answer_of: Callable[[], Awaitable[str]],
    observer: TurnObserver | None = None,
) -> None:
    """Tell that a turn was interrupted, and write it down; what was said of the answer stays."""
    answer = await answer_of()
    error = {"error": INTERRUPTED, "error_type": "turn_interrupted"}
    await communicator.error(INTERRUPTED, data={"error_type": "turn_interrupted"})
    written = await database(
        lambda: leases.finish(
            turn, Turn.Status.INTERRUPTED, answer=answer, outcome=outcome_of(communicator), error=error
        )
    )
    if written:
        await emit_status(communicator, turn, "error", "interrupted")
        if observer is not None:
            observer.ended(Turn.Status.INTERRUPTED)
