"""Running one claimed turn: its events in order, its bundle, its end."""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from channels.db import aclose_old_connections
from django.db import Error, connections

from comm.bundles.base import Bundle
from comm.bundles.registry import get_bundle
from comm.communicator import ChatCommunicator
from comm.conf import comm_settings
from comm.exceptions import CommError, TurnLost
from comm.models import Turn
from comm.tenants import tenant_scope

from . import leases
from .context import TurnContext, TurnMessage
from .database import Outage, for_tenant
from .endings import LATE_SECONDS, SOON_SECONDS, declare_interrupted, told
from .observing import Database, caught_up, observer_of, observing
from .outcome import outcome_of
from .voice import Hold, communicator_of, emit_status, scope_of

logger = logging.getLogger(__name__)

FAILED = "Something went wrong while answering. The details are in the server's log."
WRITE_AGAIN_SECONDS = 0.3


class Execution:
    """One turn that this process runs.

    Created with a claim; `run()` emits and writes until the end and raises nothing but a cancel. The lease is
    renewed from outside (`hold`); once it has ended, nothing is emitted any more.
    """

    def __init__(self, claim: leases.Claim, database: Database, held_until: float, waiting: int) -> None:
        self.turn = claim.turn
        self._claim = claim
        self._database = database = for_tenant(claim.turn.conversation.tenant, database)
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
        self._hold.extend(until)

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
        """Run the turn from its first event to its last, for its tenant and no other."""
        try:
            with tenant_scope(self.turn.conversation.tenant):
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
        try:
            failure = await self._speak()
        except TurnLost:
            raise
        except CommError as error:
            logger.exception("Turn %s could not be opened", self.turn.turn_id)
            failure = {"error": FAILED, "error_type": error.code}
        if self._hold.lost:
            return
        if self._interrupted and self.communicator.ended is None:
            await declare_interrupted(
                self.turn,
                self.communicator,
                self._database,
                self._partial_answer,
                self.observer,
                last_chance=True,
            )
        else:
            await self._close(failure)

    async def _speak(self) -> dict[str, Any] | None:
        """Open the turn and have it answered; return what to tell as an error, None when there is nothing to."""
        stop_first = self.turn.stop_requested_at is not None
        await self._open()
        if not stop_first:
            return await self._answer()
        self.stop(steered=bool(self.turn.request.get("steered")))
        return None

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
            # The thread ends with the turn, and with it what kept the connection.
            await sync_to_async(connections.close_all)()

    def _worded(self, error: BaseException) -> dict[str, Any] | None:
        if self.context.stopped:
            logger.warning("Turn %s failed while it was being stopped", self.turn.turn_id, exc_info=error)
            return None
        logger.error("Turn %s: bundle %s failed", self.turn.turn_id, self.turn.bundle_id, exc_info=error)
        # The text of an exception may tell what no user should read.
        return {"error": FAILED, "error_type": "bundle_error"}

    async def _close(self, failure: dict[str, Any] | None) -> None:
        """Tell the end, write it down, and tell that the conversation is free again.

        While the channel layer is away the end is written all the same, and told when it is back in time.
        """
        was_told = self.communicator.ended is not None or await told(
            partial(self._end, failure), SOON_SECONDS
        )
        status, completion = self._verdict(failure)
        await caught_up(self.observer)
        if not await self._persist(partial(self._finish, status, completion, failure)):
            return
        self._hold.ended()
        if not was_told:
            logger.error("Turn %s has ended; the channel layer is away, it is told later", self.turn.turn_id)
            await told(partial(self._end, failure), LATE_SECONDS)
        state = "idle" if completion == "success" else "error"
        await told(partial(emit_status, self.communicator, self.turn, state, completion), LATE_SECONDS)
        if self.observer is not None:
            self.observer.ended(status)

    async def _end(self, failure: dict[str, Any] | None) -> None:
        if failure is None:
            await self.communicator.complete(self._stopped_data())
            return
        data = {key: value for key, value in failure.items() if key != "error"}
        await self.communicator.error(failure["error"], data=data)

    def _finish(self, status: str, completion: str, failure: dict[str, Any] | None) -> bool:
        communicator = self.communicator
        told_error = communicator.error_data or failure or {}
        error = {} if completion == "success" else {"error": FAILED, **told_error}
        return leases.finish(
            self.turn, status, answer=communicator.final_answer, outcome=outcome_of(communicator), error=error
        )

    def _verdict(self, failure: dict[str, Any] | None) -> tuple[str, str]:
        ended = self.communicator.ended
        if ended == "error" or (ended is None and failure is not None):
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
        outage = Outage()
        while True:
            try:
                return bool(await self._database(work))
            except (OSError, Error):
                if time.monotonic() > self._hold.until:
                    raise TurnLost("the end of the turn could not be written in time") from None
                if outage.begins():
                    logger.exception("Turn %s: its end could not be written; trying again", self.turn.turn_id)
                await asyncio.sleep(WRITE_AGAIN_SECONDS)

    def _cancel_bundle(self) -> None:
        if self._bundle_task is not None and not self._bundle_task.done():
            self._bundle_task.cancel()


async def _absorb(turn: Turn, database: Database, communicator: ChatCommunicator) -> TurnMessage | None:
    """Take the oldest followup for the running turn, and tell that it was taken."""
    try:
        followup: TurnMessage | None = await database(partial(leases.absorb_followup, turn))
    except (OSError, Error):
        # A followup that is not read now becomes a turn of its own.
        logger.exception("Turn %s could not look for followups", turn.turn_id)
        return None
    if followup is not None:
        await communicator.service_event(
            type="queue.followup_absorbed", step="queue", status="completed", broadcast=True,
            data={
                "queued_turn_id": followup.turn_id, "active_turn_id": turn.turn_id, "message": followup.text,
            },
        )  # fmt: skip
    return followup
