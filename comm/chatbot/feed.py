"""The feed of one chatbot turn: its steps become stored log lines, and all of it events of the workflow."""

import asyncio
import logging
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from typing import Any

import msgspec
from django.db import Error, InterfaceError, OperationalError

from comm.conf import comm_settings
from comm.envelope import Envelope
from comm.events import get_event_manager
from comm.exceptions import CommError, PublishFailed
from comm.history import Position
from comm.models import Conversation, LogLine, Message, Turn
from comm.storing import storable_text
from comm.turns.database import Outage
from comm.turns.observing import Database, TurnObserver

from .items import Item, log_item, message_item, stat_item

logger = logging.getLogger(__name__)

WAITING_EVENTS = 1000
"""Steps that wait for the database; what is over is not logged, and counted."""
ROWS_AT_ONCE = 100
WRITE_AGAIN_SECONDS = 0.3
LEVELS = {"completed": "success", "error": "error", "skipped": "warning"}
ENDS = {Turn.Status.COMPLETED: "complete", Turn.Status.STOPPED: "stopped"}
CHATDATA = "chatdata"


class ChatbotFeed(TurnObserver):
    """Stores a turn's steps as log lines, in batches beside the turn, and tells the workflow's readers.

    A `complete`, `stopped` or `error` event goes out when no other turn of the workflow waits.
    """

    def __init__(self, turn: Turn, database: Database) -> None:
        super().__init__(turn, database)
        self.workflow_id = turn.conversation.conversation_id
        self.context_id = context_of(turn.conversation)
        self._seen: asyncio.Queue[Envelope | asyncio.Event | None] = asyncio.Queue(WAITING_EVENTS)
        self._dropped = 0
        self._status = ""
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin to write."""
        get_event_manager().create_queue(self.context_id)
        self._task = asyncio.get_running_loop().create_task(self._work(), name=f"feed {self.turn.turn_id}")

    def saw(self, envelope: Envelope, target_sid: str | None, position: Position | None) -> None:
        """Take a step, or a followup that the turn reads."""
        if envelope.type not in ("chat.step", "queue.followup_absorbed") or target_sid is not None:
            return
        try:
            self._seen.put_nowait(envelope)
        except asyncio.QueueFull:
            self._dropped += 1

    async def catch_up(self) -> None:
        """Wait until the steps seen so far are rows: whoever joins after the turn's end reads all of them there."""
        if self._task is None:
            return
        written = asyncio.Event()
        waiting = asyncio.ensure_future(written.wait())
        try:
            await self._seen.put(written)
            await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()

    def ended(self, status: str) -> None:
        """Note how the turn ended."""
        self._status = status

    async def aclose(self) -> None:
        """Write what was seen, then tell the end."""
        if self._task is None:
            return
        try:
            await self._seen.put(None)
            await self._task
        finally:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # --- the work beside the turn ---------------------------------------------------------------------

    async def _work(self) -> None:
        await self._tell(await self._rows(lambda: self._said(self.turn.turn_id, Message.Role.USER)))
        more = True
        while more:
            batch = [await self._seen.get()]
            while len(batch) < ROWS_AT_ONCE and not self._seen.empty():
                batch.append(self._seen.get_nowait())
            more = batch[-1] is not None
            await self._show([seen for seen in batch if isinstance(seen, Envelope)])
            for seen in batch:
                if isinstance(seen, asyncio.Event):
                    seen.set()
        if self._dropped:
            logger.warning("Turn %s: %d steps were not logged", self.turn.turn_id, self._dropped)
        if self._status:
            await self._close()

    async def _show(self, envelopes: list[Envelope]) -> None:
        """Store and tell what was seen, in its order; steps that follow each other go to the database together."""
        for are_steps, run in groupby(envelopes, key=lambda envelope: envelope.type == "chat.step"):
            if are_steps:
                await self._log(list(run))
                continue
            for envelope in run:
                queued = str(envelope.data.get("queued_turn_id"))
                await self._tell(await self._rows(partial(self._said, queued, Message.Role.USER)))

    async def _log(self, steps: list[Envelope]) -> None:
        try:
            items = await self._rows(partial(self._store, steps, [f"log_{uuid.uuid4()}" for _ in steps]))
        except (Error, ValueError):
            # The database refuses one of them: the turn's other steps and its end are shown all the same.
            logger.exception("Turn %s: %d steps could not be logged", self.turn.turn_id, len(steps))
            return
        await self._tell(items)

    async def _close(self) -> None:
        """Tell the answer, what it used, and the end where nothing else of the workflow waits."""
        items, idle, error = await self._rows(self._outcome)
        await self._tell(items)
        if not idle:
            return
        manager = get_event_manager()
        kind = ENDS.get(Turn.Status(self._status), "error")
        data = {"workflowId": self.workflow_id, "turnId": self.turn.turn_id, **error}
        await self._emit(kind, data, "workflow", error.get("error"), kind)
        await manager.cleanup(self.context_id)

    async def _tell(self, items: list[Item]) -> None:
        for item in items:
            await self._emit(CHATDATA, dict(item), "chat")

    async def _emit(
        self,
        kind: str,
        data: dict[str, Any],
        category: str,
        message: str | None = None,
        step: str | None = None,
    ) -> None:
        outage = Outage()
        while True:
            try:
                await get_event_manager().emit_event(self.context_id, kind, data, category, message, step)
                return
            except PublishFailed:
                # Whoever reads would never see it, nor the end. Told twice it is shown once.
                if outage.begins():
                    logger.exception(
                        "Turn %s: its workflow waits for the channel layer; trying again", self.turn.turn_id
                    )
                await asyncio.sleep(WRITE_AGAIN_SECONDS)
            except CommError:
                # It is in the database: whoever opens the workflow again reads it there.
                logger.exception("Turn %s: its workflow could not be told", self.turn.turn_id)
                return

    async def _rows(self, work: Callable[[], Any]) -> Any:
        """Run ORM work, again while the database is away: it may run twice. Whoever closes the feed ends it."""
        outage = Outage()
        while True:
            try:
                return await self.database(work)
            except (OSError, OperationalError, InterfaceError):
                if outage.begins():
                    logger.exception(
                        "Turn %s: its workflow waits for the database; trying again", self.turn.turn_id
                    )
                await asyncio.sleep(WRITE_AGAIN_SECONDS)

    # --- rows, on the runner's thread -------------------------------------------------------------------

    def _said(self, turn_id: str, role: str) -> list[Item]:
        found = Message.objects.filter(turn__turn_id=turn_id, role=role).select_related("turn").order_by("id")
        return [message_item(self.workflow_id, message) for message in found]

    def _store(self, steps: list[Envelope], log_ids: list[str]) -> list[Item]:
        conversation_pk = self.turn.conversation_id
        number = Turn.objects.filter(conversation_id=conversation_pk, number__lte=self.turn.number).count()
        lines = [self._line(*each, number) for each in zip(steps, log_ids, strict=True)]
        # What was written before the database went away is not written twice.
        LogLine.objects.bulk_create(lines, ignore_conflicts=True)
        return [log_item(self.workflow_id, line) for line in lines]

    def _line(self, envelope: Envelope, log_id: str, number: int) -> LogLine:
        event = envelope.event
        markdown = event.markdown if not isinstance(event.markdown, msgspec.UnsetType) else ""
        progress = envelope.data.get("progress")
        return LogLine(
            log_id=log_id,
            conversation_id=self.turn.conversation_id,
            turn=self.turn,
            message=storable_text((event.title or event.step) + (f": {markdown}" if markdown else "")),
            level=LEVELS.get(event.status, "info"),
            status=storable_text(event.status[:20]),
            step=storable_text(event.step[:200]),
            progress=float(progress) if isinstance(progress, (int, float)) else None,
            round_number=number,
            created_at=datetime.fromtimestamp(envelope.ts / 1000, UTC),
        )

    def _outcome(self) -> tuple[list[Item], bool, dict[str, Any]]:
        turn = Turn.objects.get(pk=self.turn.pk)
        stat = stat_item(self.workflow_id, turn)
        items = [*([stat] if stat else []), *self._said(turn.turn_id, Message.Role.ASSISTANT)]
        state = Conversation.objects.values_list("state", flat=True).get(pk=turn.conversation_id)
        return items, state != "in_progress", dict(turn.error)


def context_of(conversation: Conversation) -> str:
    """Return the event manager's context of a workflow: its id, in its tenant and project."""
    return context_id(conversation.tenant, conversation.project, conversation.conversation_id)


def context_id(tenant: str, project: str, workflow_id: str) -> str:
    """Return the context of a workflow; in the default scope it is the workflow's id itself.

    Another scope may have a workflow of the same id. No id has a slash, so none names another scope's context.
    """
    conf = comm_settings()
    if (tenant, project) == (conf.DEFAULT_TENANT, conf.DEFAULT_PROJECT):
        return workflow_id
    return f"{tenant}/{project}/{workflow_id}"
