"""Asking the reading process for the text of a PDF, within time, memory and length."""

import asyncio
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

logger = logging.getLogger(__name__)

CHILD = Path(__file__).with_name("child.py")

MOST_PAGES = 300
MOST_CHARACTERS = 1_000_000
CPU_SECONDS = 10
"""Some 300 pages of dense text take two."""
WALL_SECONDS = 30.0
MEMORY_BYTES = 1024 * 1024 * 1024
AT_ONCE = 2
"""Readings at once in a process: each has its gigabyte."""


@dataclass(frozen=True, slots=True)
class PdfText:
    """The text of a PDF; `problem` is a sentence's end where there is none, or not all.

    `pages` counts those of the file, `read` those whose text is here.
    """

    text: str = ""
    pages: int = 0
    read: int = 0
    problem: str = ""


_gates: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}


async def read_pdf(content: bytes) -> PdfText:
    """Return the text of a PDF; raises nothing for any content."""
    loop = asyncio.get_running_loop()
    for closed in [other for other in _gates if other.is_closed()]:
        del _gates[closed]
    async with _gates.setdefault(loop, asyncio.Semaphore(AT_ONCE)):
        return _worded(await _ask(content))


async def _ask(content: bytes) -> dict[str, Any]:
    limits = [str(limit) for limit in (MOST_PAGES, MOST_CHARACTERS, CPU_SECONDS, MEMORY_BYTES)]
    try:
        # Isolated: neither this process's environment nor its directory is for whoever made the file.
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-I", str(CHILD), *limits, env={"PYTHONIOENCODING": "utf-8"},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except OSError:
        logger.exception("The process that reads PDF files cannot be started")
        return {"problem": "it cannot be read right now"}
    try:
        async with asyncio.timeout(WALL_SECONDS):
            output, _ = await child.communicate(content)
        answer: dict[str, Any] = msgspec.json.decode(output, type=dict[str, Any])
    except TimeoutError:
        return {"problem": "reading it takes too long"}
    except msgspec.DecodeError:
        # It was ended by one of its limits.
        return {"problem": "reading it takes too long or too much memory"}
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return answer


def _worded(answer: dict[str, Any]) -> PdfText:
    text, pages, read = answer.get("text", ""), answer.get("pages", 0), answer.get("read", 0)
    problem = answer.get("problem", "")
    if not problem and not text.strip():
        problem = "it has no text, only pictures of it" if pages else "it has no pages"
    return PdfText(text, pages, read, problem)
