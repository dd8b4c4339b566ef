"""The sandboxed process: connects, runs one function, and speaks through the socket.

It adopts the orphans of whatever it starts (PR_SET_CHILD_SUBREAPER), so that the supervisor, which kills by
parentage, finds them all; and it ends when its parent does (PR_SET_PDEATHSIG), or when the socket is closed.
"""

import asyncio
import ctypes
import importlib
import inspect
import os
import resource
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import django
import msgspec
from django.conf import settings
from django.core.exceptions import AppRegistryNotReady, ImproperlyConfigured

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def confine() -> None:
    """Take on the limits that the supervisor names, before anything else is imported."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    cpu, memory, file, files = map(int, os.environ.pop("SANDBOX_LIMITS").split(","))
    for limit, value in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file),
        (resource.RLIMIT_NOFILE, files),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (bound, bound))


if __name__ == "__main__":
    confine()
    # No keys, no database, no services: what a bundle's module imports of Django finds defaults.
    settings.configure(
        INSTALLED_APPS=["comm"], DATABASES={}, USE_TZ=True, DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        COMM={"EVENT_FILTERS": (), "FIREWALL": {}, "SINKS": (), "SERVICES": ()},
    )  # fmt: skip

from comm.communicator import NOT_SENT, ChatCommunicator, Sent  # noqa: E402 - limits and settings come first
from comm.composer import Draft  # noqa: E402
from comm.exceptions import CommError, EnvelopeInvalid, PublishFailed, TurnLost  # noqa: E402
from comm.history import Position  # noqa: E402
from comm.sandbox.frames import FrameInvalid, pack, read_frame  # noqa: E402

ERRORS: dict[str, type[CommError]] = {error.code: error for error in (PublishFailed, TurnLost)}


class Link:
    """The socket: requests with a number, answered in any order, and the news of a stop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.loop = asyncio.get_running_loop()
        self.stop = asyncio.Event()
        self.steered = False
        self._reader = reader
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0

    async def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send a request and return its answer. Errors: those that the supervisor names."""
        self._number += 1
        number = self._number
        answer = self._waiting[number] = self.loop.create_future()
        try:
            data = pack({"kind": kind, "number": number, **fields})
        except FrameInvalid as error:
            del self._waiting[number]
            raise EnvelopeInvalid("envelope", str(error)) from None
        self._writer.write(data)
        # What piles up waits here, as it would for the channel layer.
        await self._writer.drain()
        found: dict[str, Any] = await answer
        code = found.get("error")
        if code == EnvelopeInvalid.code:
            raise EnvelopeInvalid(found["field"], found["text"].removeprefix(f"{found['field']}: "))
        if code == "file_gone":
            raise OSError(found["text"])
        if code is not None:
            raise ERRORS.get(code, CommError)(found.get("text", code))
        return found

    async def tell(self, **message: Any) -> None:
        """Send a last word."""
        self._writer.write(pack(message))
        await self._writer.drain()

    async def listen(self) -> None:
        """Take answers and news; the process ends with the socket."""
        while (message := await read_frame(self._reader)) is not None:
            if message["kind"] == "stop":
                self.steered = bool(message.get("steered"))
                self.stop.set()
            else:
                self._waiting.pop(message["number"]).set_result(message)
        os._exit(1)


class SandboxCommunicator(ChatCommunicator):
    """The communicator inside: composes and remembers here, filters and publishes outside."""

    def __init__(self, link: Link, welcome: dict[str, Any]) -> None:
        super().__init__(
            service=welcome["service"], conversation=welcome["conversation"], target_sid=welcome["target_sid"]
        )
        self._link = link

    async def _carry(self, draft: Draft) -> Sent:
        """Hand a draft to the supervisor; what it answers is what went out."""
        body = draft.envelope.encode()
        where = {"project": True} if draft.to_project else {"target": draft.target_sid}
        answer = await self._link.ask("emit", envelope=body, **where)
        if answer.get("blocked"):
            return NOT_SENT
        changed = answer.get("envelope")
        envelope = msgspec.json.decode(changed, type=type(draft.envelope)) if changed else draft.envelope
        self._settle(draft, envelope)
        return Sent(envelope, Position(*answer["position"]) if answer.get("position") else None)

    def _send_sync(self, draft: Draft) -> None:
        if threading.current_thread() is threading.main_thread():
            raise RuntimeError("this thread runs an event loop: await the async method instead")
        asyncio.run_coroutine_threadsafe(self.dispatch(draft), self._link.loop).result()


@dataclass(frozen=True, slots=True)
class SandboxAttachment:
    """A file that came with the message; its content is fetched when it is read."""

    attachment_id: str
    filename: str
    mime: str
    size: int
    place: int
    link: Link

    async def read(self) -> bytes:
        """Return the file's bytes. Errors: OSError when it is not there any more."""
        content = b""
        while len(content) < self.size:
            answer = await self.link.ask("read", file=self.place, offset=len(content))
            if not answer["content"]:
                break
            content += answer["content"]
        return content


@dataclass(frozen=True, slots=True)
class SandboxMessage:
    """One message of the user."""

    text: str
    turn_id: str
    kind: str
    author: str
    config: dict[str, Any]
    payload: Any
    external_events: list[dict[str, Any]]
    attachments: Sequence[SandboxAttachment] = ()


@dataclass(frozen=True, slots=True)
class SandboxHistory:
    """One earlier message."""

    role: str
    content: str
    created_at: None = None


class SandboxTurn:
    """A bundle's view of its turn, as outside."""

    def __init__(self, link: Link, welcome: dict[str, Any]) -> None:
        conversation, service = welcome["conversation"], welcome["service"]
        self.turn_id = conversation["turn_id"]
        self.conversation_id = conversation["conversation_id"]
        self.session_id = conversation["session_id"]
        self.tenant, self.project = service["tenant"], service["project"]
        self.user_id, self.user_type = service["user"], service["user_type"]
        self.bundle_id = welcome["bundle_id"]
        self.message = _message(link, welcome["message"])
        self.history = [SandboxHistory(role, content) for role, content in welcome["history"]]
        self.communicator = SandboxCommunicator(link, welcome)
        self._link = link
        self._zone = timezone(timedelta(minutes=welcome["now_offset_min"]))
        if welcome["stopped"]:
            link.stop.set()

    @property
    def attachments(self) -> Sequence[SandboxAttachment]:
        """The files that came with the message."""
        return self.message.attachments

    @property
    def stopped(self) -> bool:
        """Whether the user wants no more of this turn."""
        return self._link.stop.is_set()

    @property
    def steered(self) -> bool:
        """Whether it was stopped by another message."""
        return self._link.steered

    async def wait_stopped(self) -> None:
        """Wait until the turn is stopped."""
        await self._link.stop.wait()

    async def sleep(self, seconds: float) -> bool:
        """Wait for some seconds; False when the turn was stopped meanwhile."""
        if seconds <= 0:
            return not self.stopped
        try:
            await asyncio.wait_for(self._link.stop.wait(), seconds)
        except TimeoutError:
            return True
        return False

    async def next_followup(self, timeout: float = 0.0) -> SandboxMessage | None:
        """Take the oldest followup that waits, or that comes within the timeout."""
        answer = await self._link.ask("followup", timeout=timeout)
        return None if answer["message"] is None else _message(self._link, answer["message"])

    def now(self) -> datetime:
        """The present, in the user's time zone."""
        return datetime.now(self._zone)


def _message(link: Link, given: dict[str, Any]) -> SandboxMessage:
    files = given.pop("files")
    attachments = tuple(
        SandboxAttachment(id, filename, mime, size, place, link)
        for place, (id, filename, mime, size) in enumerate(files)
    )
    return SandboxMessage(**given, attachments=attachments)


async def run_bundle(turn: SandboxTurn, path: str) -> None:
    """Run a whole bundle."""
    found: Any = _load(path)
    bundle: Any = found() if inspect.isclass(found) else found
    await bundle.run(turn)


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (AppRegistryNotReady, ImproperlyConfigured):
        # It imports models: they may be looked at, though there is no database behind them.
        django.setup()
        return getattr(importlib.import_module(module), name)


async def _call(function: Any, turn: SandboxTurn, arguments: Sequence[Any]) -> Any:
    """Run the function, and let an event sink that it has set take the last events."""
    try:
        if inspect.iscoroutinefunction(function):
            return await function(turn, *arguments)
        return await asyncio.to_thread(function, turn, *arguments)
    finally:
        await turn.communicator.aclose()


async def serve() -> None:
    """Connect, run what is asked for, and send the result."""
    reader, writer = await asyncio.open_unix_connection(os.environ.pop("SANDBOX_SOCKET"))
    link = Link(reader, writer)
    await link.tell(token=os.environ.pop("SANDBOX_TOKEN"))
    welcome = await read_frame(reader)
    if welcome is None:
        return
    listening = asyncio.get_running_loop().create_task(link.listen())
    try:
        turn = SandboxTurn(link, welcome)
        function = (
            run_bundle if welcome["path"] == "comm.sandbox.child.run_bundle" else _load(welcome["path"])
        )
        await link.tell(kind="result", value=await _call(function, turn, welcome["arguments"]))
    except Exception as error:  # noqa: BLE001 - told to the supervisor, which logs it
        # The top of the sandboxed code: the supervisor words it for the log.
        await link.tell(kind="failed", error=f"{type(error).__name__}: {error}")
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


if __name__ == "__main__":
    try:
        asyncio.run(serve())
    except (ConnectionError, FrameInvalid) as error:
        sys.exit(f"the sandbox lost its supervisor: {error}")
