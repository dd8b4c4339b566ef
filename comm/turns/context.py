"""What a bundle sees of its turn: the message, the past, the files, and the way to speak."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Any

from django.core.files.storage import storages

from comm.communicator import ChatCommunicator
from comm.conf import comm_settings
from comm.zones import user_zone


@dataclass(frozen=True, slots=True)
class TurnAttachment:
    """A file that came with a message; `mime` was sniffed, `size` counts bytes."""

    attachment_id: str
    filename: str
    mime: str
    size: int
    path: str = field(repr=False)

    async def read(self) -> bytes:
        """Return the file's bytes, read in a thread."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> bytes:
        with storages[comm_settings().ATTACHMENTS_STORAGE].open(self.path) as file:
            content: bytes = file.read()
        return content


@dataclass(frozen=True, slots=True)
class TurnMessage:
    """One message of the user, as it was accepted."""

    text: str
    turn_id: str
    kind: str = "regular"
    author: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    payload: Any = None
    external_events: list[dict[str, Any]] = field(default_factory=list)
    attachments: Sequence[TurnAttachment] = ()


@dataclass(frozen=True, slots=True)
class HistoryMessage:
    """One earlier message of the conversation; `role` is user, assistant or event."""

    role: str
    content: str
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class TurnScope:
    """Where a turn belongs, and whose it is."""

    turn_id: str
    conversation_id: str
    session_id: str
    tenant: str
    project: str
    bundle_id: str
    user_id: str
    user_type: str
    timezone: str = ""
    utc_offset_min: int | None = None

    def zone(self) -> tzinfo:
        """The user's time zone: the named one, else the offset, else UTC."""
        return user_zone(self.timezone, self.utc_offset_min)


Absorb = Callable[[], Awaitable[TurnMessage | None]]


class TurnContext:
    """A bundle's view of its turn.

    `message` is what the user said, `history` what was said before, oldest first, `communicator` the way to
    answer. `stopped` becomes true when the user stops or steers the turn (`steered` tells which).
    """

    def __init__(
        self,
        scope: TurnScope,
        message: TurnMessage,
        history: Sequence[HistoryMessage],
        communicator: ChatCommunicator,
        absorb: Absorb,
    ) -> None:
        self.turn_id = scope.turn_id
        self.conversation_id = scope.conversation_id
        self.session_id = scope.session_id
        self.tenant = scope.tenant
        self.project = scope.project
        self.bundle_id = scope.bundle_id
        self.user_id = scope.user_id
        self.user_type = scope.user_type
        self.message = message
        self.history = list(history)
        self.communicator = communicator
        self.steered = False
        self._scope = scope
        self._absorb = absorb
        self._stop = asyncio.Event()
        self._followup_rang = asyncio.Event()

    @property
    def attachments(self) -> Sequence[TurnAttachment]:
        """The files that came with the message."""
        return self.message.attachments

    @property
    def stopped(self) -> bool:
        """Whether the user wants no more of this turn."""
        return self._stop.is_set()

    async def wait_stopped(self) -> None:
        """Wait until the turn is stopped."""
        await self._stop.wait()

    async def sleep(self, seconds: float) -> bool:
        """Wait for some seconds; False when the turn was stopped meanwhile."""
        if seconds <= 0:
            return not self.stopped
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return True
        return False

    async def next_followup(self, timeout: float = 0.0) -> TurnMessage | None:
        """Take the oldest followup that waits, so that this turn answers it; None when there is none.

        With a timeout, wait so many seconds for one. A followup that nobody takes becomes a turn of its own.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        while not self.stopped:
            self._followup_rang.clear()
            followup = await self._absorb()
            if followup is not None:
                return followup
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or not await self._followup_within(left):
                return None
        return None

    def now(self) -> datetime:
        """The present, in the user's time zone."""
        return datetime.now(self._scope.zone())

    def ring_stop(self, *, steered: bool) -> None:
        """Tell the bundle that it shall end; the runner calls this."""
        self.steered = self.steered or steered
        self._stop.set()

    def ring_followup(self) -> None:
        """Tell the bundle that a followup may wait; the runner calls this."""
        self._followup_rang.set()

    async def _followup_within(self, seconds: float) -> bool:
        waiters = [asyncio.ensure_future(event.wait()) for event in (self._followup_rang, self._stop)]
        try:
            done, _ = await asyncio.wait(waiters, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()
            await asyncio.gather(*waiters, return_exceptions=True)
        return bool(done)
