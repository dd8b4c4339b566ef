"""Reads a PDF from standard input and writes its text as JSON; run as a script, with limits of its own."""

import io
import json
import logging
import resource
import sys

from pypdf import PdfReader
from pypdf.errors import FileNotDecryptedError, PyPdfError


def main() -> None:
    """Read within the limits that the arguments name: pages, characters, CPU seconds, bytes of memory."""
    pages, characters, cpu_seconds, memory_bytes = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    logging.disable(logging.CRITICAL)
    json.dump(read(pages, characters), sys.stdout)


def read(most_pages: int, most_characters: int) -> dict[str, object]:
    """Return `{pages, read, text, problem}`."""
    text: list[str] = []
    found = {"pages": 0, "read": 0, "text": "", "problem": ""}
    try:
        reader = PdfReader(io.BytesIO(sys.stdin.buffer.read()))
        if reader.is_encrypted and not reader.decrypt(""):
            return {**found, "problem": "it is encrypted"}
        found["pages"] = len(reader.pages)
        length = 0
        for page in reader.pages[:most_pages]:
            if length >= most_characters:
                break
            part = page.extract_text() or ""
            text.append(part)
            length += len(part)
    except FileNotDecryptedError:
        return {**found, "problem": "it is encrypted"}
    except MemoryError:
        found["problem"] = "reading it takes too much memory"
    except (
        PyPdfError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ):
        # pypdf raises all of these on broken files; what was read before stays.
        found["problem"] = "it is broken"
    joined = "\n\n".join(text)[:most_characters]
    return {**found, "read": len(text), "text": joined.encode("utf-8", "replace").decode()}


if __name__ == "__main__":
    main()
