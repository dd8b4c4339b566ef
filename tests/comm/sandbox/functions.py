"""What the tests let run in a sandbox."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from comm import EnvelopeInvalid
from comm.bundles import Bundle
from comm.sandbox.frames import pack
from comm.sandbox.runners import Spawn, SubprocessRunner


async def speak(turn: Any, word: str, times: int) -> dict[str, Any]:
    """Use every form, and return what the communicator remembers."""
    comm = turn.communicator
    await comm.start(message="hello")
    first = await comm.step("Counting", "started", data={"n": 1})
    for _ in range(times):
        await comm.delta("answer", word)
    await comm.event(type="chat.citations", data={"items": [1]})
    await comm.service_event(type="to.tab", data={}, target_sid="tab-1")
    await comm.project_event(type="deploy.done")
    last = await comm.complete()
    return {
        "first": str(first), "last": str(last), "answer": comm.final_answer, "ended": comm.ended,
        "pid": os.getpid(), "text": turn.message.text, "history": [s.content for s in turn.history],
        "positions": [str(comm.first_position), str(comm.last_position)],
    }  # fmt: skip


def speak_in_step(turn: Any) -> str:
    """The synchronous twins, in a thread."""
    turn.communicator.step_sync("From a thread")
    turn.communicator.delta_sync("answer", "done")
    return str(turn.communicator.final_answer)


async def record(turn: Any) -> list[dict[str, Any]]:
    comm = turn.communicator
    comm.record({"include": {"types": ["chat.step"]}}, scope="inside")
    await comm.step("Allowed")
    await comm.step("Blocked")
    await comm.delta("answer", "x")
    return list(comm.export_recorded_events())


async def forge(turn: Any) -> None:
    """Claim to be somebody else."""
    comm = turn.communicator
    comm._composer.service = type(comm.service)("r", "other", "other", "admin", "privileged")
    comm._composer.conversation = type(comm.conversation)("other-session", "other", "other")
    await comm.step("Forged")


async def bad_event(turn: Any) -> str:
    try:
        await turn.communicator.step("Bad", data={"value": float("nan")})
    except EnvelopeInvalid as error:
        return error.field
    return "sent"


async def read_files(turn: Any) -> list[Any]:
    return [
        [file.filename, file.mime, len(await file.read()), (await file.read())[:4]]
        for file in turn.attachments
    ]


async def until_stopped(turn: Any) -> None:
    await turn.communicator.step("Waiting")
    await turn.wait_stopped()
    await turn.communicator.delta("answer", "wrapped up")


async def followup(turn: Any) -> str:
    found = await turn.next_followup(timeout=5)
    return str(found.text)


async def ask_many(turn: Any, times: int) -> None:
    await asyncio.gather(*(turn.communicator.delta("answer", f"{n} ") for n in range(times)))


async def environment(turn: Any) -> dict[str, str]:
    return dict(os.environ)


async def hang(turn: Any, marker: str) -> None:
    """Leave processes behind in every way there is, then never end."""
    script = f"import time; open({marker!r} + str(__import__('os').getpid()), 'w').close(); time.sleep(60)"
    subprocess.Popen([sys.executable, "-c", script])
    subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    double = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {script!r}], start_new_session=True)"
    subprocess.run([sys.executable, "-c", double], env={}, check=True)
    while len(list(Path(marker).parent.glob(Path(marker).name + "*"))) < 3:
        time.sleep(0.01)
    await turn.communicator.step("Left three")
    time.sleep(60)


async def raise_error(turn: Any) -> None:
    raise ValueError("what went wrong")


async def leave(turn: Any) -> None:
    print("last words", flush=True)
    os._exit(3)


async def eat_memory(turn: Any) -> int:
    return len(bytearray(4 * 1024**3))


async def burn(turn: Any) -> None:
    while True:
        pass


async def return_nothing_plain(turn: Any) -> Any:
    return object()


async def write_raw(turn: Any, data: bytes) -> None:
    """Send bytes past the protocol."""
    writer = turn._link._writer
    writer.write(data)
    await writer.drain()
    await asyncio.sleep(30)


async def send_frame(turn: Any, message: dict[str, Any]) -> None:
    await write_raw(turn, pack(message))


async def reach_out(turn: Any, port: int) -> str:
    try:
        socket.create_connection(("127.0.0.1", port), 2).close()
    except OSError as error:
        return type(error).__name__
    return "connected"


async def write_file(turn: Any, path: str) -> str:
    try:
        Path(path).write_text("x", encoding="utf-8")
    except OSError as error:
        return type(error).__name__
    return "written"


class Untrusted(Bundle):
    """A whole bundle."""

    async def run(self, turn: Any) -> None:
        await turn.communicator.delta("answer", f"You said {turn.message.text}")


class WrongToken(SubprocessRunner):
    """Starts a process that has another token."""

    async def start(self, spawn: Spawn) -> asyncio.subprocess.Process:
        return await super().start(Spawn(spawn.folder, {**spawn.environment, "SANDBOX_TOKEN": "0" * 64}))
