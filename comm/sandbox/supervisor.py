"""The supervisor of one sandbox: starts it, lets only it in, says for it what it may say, and ends it."""

import asyncio
import hmac
import logging
import os
import secrets
import shutil
import socket
import struct
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from django.utils.module_loading import import_string

from comm.communicator import NOT_SENT, Sent
from comm.composer import Draft
from comm.envelope import ConversationContext, Envelope, ServiceContext
from comm.exceptions import CommError, EnvelopeInvalid
from comm.turns.context import TurnContext, TurnMessage

from .conf import sandbox_settings
from .frames import PIECE_BYTES, FrameInvalid, pack, read_frame
from .runners import RUNNERS, Runner, Spawn
from .tree import is_below

logger = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("3i")
LAST_WORDS_SECONDS = 2.0
"""The output of a sandbox that has gone comes on another way than its messages; so long it is waited for."""


class SandboxFailed(CommError):
    """A sandbox could not be started, broke its rules or its limits, or its code raised; the text says which."""

    code = "sandbox_failed"


async def run_in_sandbox(
    turn: TurnContext, path: str, *arguments: Any, timeout_seconds: float | None = None, runner: str = ""
) -> Any:
    """Run a function in a process of its own and return its result: `path(turn, *arguments)`.

    `path` is dotted, as in an import; arguments and result are plain values (numbers, text, bytes, lists, maps). The
    process ends with the call, however that ends: a stop, a timeout and a cancel kill it with all that it started.
    Errors: SandboxFailed. A stopped turn returns None.
    """
    conf = sandbox_settings()
    limit = conf.TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds
    supervisor = Supervisor(turn, path, arguments, make_runner(runner or conf.RUNNER), limit)
    return await supervisor.run()


def make_runner(name: str) -> Runner:
    """Return the runner of a name or a dotted path. Errors: SandboxFailed for one that cannot be used here."""
    found: Runner = RUNNERS[name]() if name in RUNNERS else import_string(name)()
    problem = found.problem()
    if problem:
        raise SandboxFailed(f"the runner {name} cannot be used: {problem}")
    return found


class Supervisor:
    """One run. What the sandbox says of session, tenant or user counts for nothing: the turn's own stand there."""

    def __init__(
        self, turn: TurnContext, path: str, arguments: tuple[Any, ...], runner: Runner, limit: float
    ) -> None:
        self.turn = turn
        self._path = path
        self._arguments = arguments
        self._runner = runner
        self._limit = limit
        self._token = secrets.token_hex(32)
        self._output = bytearray()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._files: dict[int, bytes] = {}
        self._events = self._bytes = 0
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> Any:
        """Run it from its start to its end. Errors: SandboxFailed."""
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="sandbox-"))
        try:
            return await self._run(folder)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _run(self, folder: Path) -> Any:
        arrived: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        arrived = asyncio.get_running_loop().create_future()
        process: asyncio.subprocess.Process | None = None

        async def let_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if process is None or arrived.done() or not _is_own(writer, process.pid):
                writer.close()
                return
            arrived.set_result((reader, writer))

        path = folder / "supervisor.sock"
        server = await asyncio.start_unix_server(let_in, path)
        try:
            process = await self._start(folder, path)
            output = self._own(self._keep_output(process))
            async with asyncio.timeout(self._limit):
                reader = await self._meet(process, arrived)
                server.close()
                return await self._serve(reader, output)
        except TimeoutError:
            raise SandboxFailed(f"the sandbox took over {self._limit:g} seconds and was ended") from None
        except FrameInvalid as error:
            raise SandboxFailed(f"the sandbox broke its protocol: {error}") from None
        finally:
            server.close()
            await self._end(process)

    async def _start(self, folder: Path, path: Path) -> asyncio.subprocess.Process:
        conf = sandbox_settings()
        limits = (conf.CPU_SECONDS, conf.MEMORY_BYTES, conf.FILE_BYTES, conf.OPEN_FILES)
        environment = {
            "SANDBOX_SOCKET": str(path),
            "SANDBOX_TOKEN": self._token,
            "SANDBOX_LIMITS": ",".join(map(str, limits)),
        }
        try:
            return await self._runner.start(Spawn(folder, environment))
        except OSError as error:
            raise SandboxFailed(f"the sandbox could not be started: {error}") from None

    async def _meet(
        self, process: asyncio.subprocess.Process, arrived: asyncio.Future[Any]
    ) -> asyncio.StreamReader:
        """Wait for the process to connect and to prove itself; return what it says from then on."""
        ending = asyncio.ensure_future(process.wait())
        try:
            done, _ = await asyncio.wait(
                [arrived, ending],
                timeout=sandbox_settings().START_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if arrived not in done:
                raise SandboxFailed(f"the sandbox did not connect; its output: {self._said()}")
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
        reader: asyncio.StreamReader
        reader, self._writer = arrived.result()
        hello = await read_frame(reader)
        if hello is None or not hmac.compare_digest(str(hello.get("token")).encode(), self._token.encode()):
            raise SandboxFailed("whoever connected to the sandbox's socket had not its token")
        await self._send(self._welcome())
        return reader

    async def _serve(self, reader: asyncio.StreamReader, output: asyncio.Task[Any]) -> Any:
        """Do what the sandbox asks for, in its order, until it has a result or the turn is stopped."""
        self._own(self._tell_stop())
        while True:
            message = await read_frame(reader)
            if message is None:
                if self.turn.stopped:
                    return None
                await asyncio.wait([output], timeout=LAST_WORDS_SECONDS)
                raise SandboxFailed(f"the sandbox ended without a result; its output: {self._said()}")
            kind = message.get("kind")
            if kind == "result":
                return message.get("value")
            if kind == "failed":
                raise SandboxFailed(f"{message.get('error', '')!s:.300}")
            await self._answer(str(kind), message)

    async def _end(self, process: asyncio.subprocess.Process | None) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._writer is not None:
            self._writer.close()
        if process is not None:
            await asyncio.shield(self._runner.end(process))
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._output:
            logger.info("Turn %s: the sandbox wrote %d bytes of output", self.turn.turn_id, len(self._output))

    # --- what it asks for -------------------------------------------------------------------------------

    async def _answer(self, kind: str, message: dict[str, Any]) -> None:
        number = message.get("number")
        if kind == "followup":
            # It may wait long; what is emitted meanwhile must not.
            self._own(self._reply(number, self._followup(message)))
        elif kind == "emit":
            await self._reply(number, self._emit(message))
        elif kind == "read":
            await self._reply(number, self._read(message))
        else:
            raise FrameInvalid(f"there is no {kind[:40]!r}")

    async def _reply(self, number: Any, work: Any) -> None:
        try:
            answer = await work
        except SandboxFailed:
            # Too much was said. It is not asked to agree: that would be its word, and may come or not.
            raise
        except EnvelopeInvalid as error:
            answer = {"error": error.code, "field": error.field, "text": str(error)}
        except CommError as error:
            answer = {"error": error.code, "text": str(error)}
        await self._send({"kind": "reply", "number": number, **answer})

    async def _emit(self, message: dict[str, Any]) -> dict[str, Any]:
        body = message.get("envelope")
        if not isinstance(body, bytes):
            raise FrameInvalid("an event came without its envelope")
        self._count(len(body))
        try:
            envelope = msgspec.json.decode(body, type=Envelope)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise FrameInvalid(f"an event is no envelope ({error})") from None
        sent = await self.turn.communicator.dispatch(self._as_own(envelope, message))
        return _answer_of(sent, envelope)

    def _as_own(self, envelope: Envelope, message: dict[str, Any]) -> Draft:
        """Put the turn's own contexts in the place of whatever the sandbox claims."""
        communicator = self.turn.communicator
        target = message.get("target")
        if message.get("project"):
            service = communicator.service
            nobody = ServiceContext(tenant=service.tenant, project=service.project, user_type="")
            own = msgspec.structs.replace(envelope, service=nobody, conversation=ConversationContext())
            return Draft(own, None, to_project=True)
        own = msgspec.structs.replace(
            envelope, service=communicator.service, conversation=communicator.conversation
        )
        return Draft(own, target if isinstance(target, str) and target else None)

    async def _followup(self, message: dict[str, Any]) -> dict[str, Any]:
        timeout = message.get("timeout")
        seconds = float(timeout) if isinstance(timeout, (int, float)) else 0.0
        followup = await self.turn.next_followup(seconds)
        return {"message": None if followup is None else message_of(followup)}

    async def _read(self, message: dict[str, Any]) -> dict[str, Any]:
        place, offset = message.get("file"), message.get("offset")
        files = self.turn.attachments
        if (
            not isinstance(place, int)
            or not 0 <= place < len(files)
            or not isinstance(offset, int)
            or offset < 0
        ):
            raise FrameInvalid("a file was asked for that the turn has not")
        if place not in self._files:
            try:
                self._files = {place: await files[place].read()}
            except OSError as error:
                return {"error": "file_gone", "text": str(error)}
        content = self._files[place]
        return {"content": content[offset : offset + PIECE_BYTES], "size": len(content)}

    def _count(self, size: int) -> None:
        conf = sandbox_settings()
        self._events += 1
        self._bytes += size
        if self._events > conf.EVENTS or self._bytes > conf.TOTAL_BYTES:
            raise SandboxFailed(
                f"the sandbox sent more than {conf.EVENTS:,} events or {conf.TOTAL_BYTES:,} bytes"
            )

    # --- plumbing ---------------------------------------------------------------------------------------

    def _welcome(self) -> dict[str, Any]:
        turn, communicator = self.turn, self.turn.communicator
        return {
            "kind": "run",
            "path": self._path,
            "arguments": list(self._arguments),
            "service": msgspec.to_builtins(communicator.service),
            "conversation": msgspec.to_builtins(communicator.conversation),
            "target_sid": communicator.target_sid,
            "bundle_id": turn.bundle_id,
            "message": message_of(turn.message),
            "history": [[said.role, said.content] for said in turn.history],
            "now_offset_min": int((turn.now().utcoffset() or _ZERO).total_seconds() // 60),
            "stopped": turn.stopped,
        }

    async def _tell_stop(self) -> None:
        await self.turn.wait_stopped()
        await self._send({"kind": "stop", "steered": self.turn.steered})

    async def _send(self, message: dict[str, Any]) -> None:
        assert self._writer is not None
        try:
            self._writer.write(pack(message))
            await self._writer.drain()
        except ConnectionError:
            # It has gone: reading will tell.
            logger.debug("A sandbox of turn %s has gone", self.turn.turn_id)

    def _own(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _keep_output(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        limit = sandbox_settings().OUTPUT_BYTES
        while chunk := await process.stdout.read(4096):
            self._output += chunk[: max(0, limit - len(self._output))]

    def _said(self) -> str:
        return self._output[-2000:].decode("utf-8", "replace").strip() or "none"


def message_of(message: TurnMessage) -> dict[str, Any]:
    """Return a user's message as plain values; of its files, everything but their content."""
    files = [[file.attachment_id, file.filename, file.mime, file.size] for file in message.attachments]
    names = ("text", "turn_id", "kind", "author", "config", "payload", "external_events")
    return {**{name: getattr(message, name) for name in names}, "files": files}


def _answer_of(sent: Sent, envelope: Envelope) -> dict[str, Any]:
    """Say what became of an event: the envelope only where a filter has changed it."""
    if sent is NOT_SENT:
        return {"blocked": True}
    position = None if sent.position is None else list(sent.position)
    assert sent.envelope is not None
    changed = sent.envelope.event != envelope.event or sent.envelope.data != envelope.data
    changed = changed or sent.envelope.type != envelope.type or sent.envelope.delta != envelope.delta
    return {"position": position, **({"envelope": sent.envelope.encode()} if changed else {})}


def _is_own(writer: asyncio.StreamWriter, root: int) -> bool:
    """Tell whether the other end is the process that was started, or comes from it, by the kernel's word."""
    connection: socket.socket = writer.get_extra_info("socket")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return uid == os.getuid() and is_below(pid, root)


_ZERO = timedelta()
