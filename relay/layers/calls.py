"""Commands for Redis on their way: how they are written, who waits for the answer, and what can go wrong."""

import asyncio
from typing import Any

import hiredis

from .scripts import Script

PASSING = ("LOADING", "BUSY", "MASTERDOWN", "READONLY", "TRYAGAIN")
"""Errors that go by: it reads its data back, or a script runs, or the server is about to be replaced."""


class RedisAway(ConnectionError):
    """Redis did not answer in time, or cannot be reached: what was asked for did not happen, or is not known to."""


class RedisRefused(RedisAway):
    """Redis answered with an error."""


class Call:
    """One command on its way: its bytes, its time limit (of the loop's clock), and what to do with the answer.

    A call whose `repeat` is true is sent again when the wire broke before its answer came.
    """

    __slots__ = ("data", "deadline", "repeat", "script")

    def __init__(
        self, data: bytes, deadline: float, *, repeat: bool = True, script: Script | None = None
    ) -> None:
        self.data = data
        self.deadline = deadline
        self.repeat = repeat
        self.script = script

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return False

    def answer(self, reply: Any) -> None:
        """Take the answer."""

    def fail(self, error: Exception) -> None:
        """Take note that there will be none, or that it is an error."""


class FutureCall(Call):
    """A call that somebody awaits."""

    __slots__ = ("future",)

    def __init__(self, future: "asyncio.Future[Any]", *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.future = future

    @property
    def over(self) -> bool:
        return self.future.done()

    def answer(self, reply: Any) -> None:
        if not self.future.done():
            self.future.set_result(reply)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def command(*parts: bytes | str | int) -> bytes:
    """Return a command as it is written."""
    out = [b"*%d\r\n" % len(parts)]
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        out.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(out)


def evalsha(script: Script, *args: bytes | str | int) -> bytes:
    """Return the command that runs a script; its keys are its own affair."""
    return command(b"EVALSHA", script.digest, b"0", *args)


def error_of(reply: hiredis.ReplyError) -> RedisAway:
    """Return what to raise for an error that Redis answered with."""
    text = str(reply)
    return RedisAway(text) if text.startswith(PASSING) else RedisRefused(text)
