"""Files of a wanted kind and size, and the cases at the limits that every transport must answer alike."""

import zlib
from typing import NamedTuple

MIB = 1024 * 1024


def png(size: int) -> bytes:
    """Return a PNG image of exactly so many bytes: one pixel, and a text chunk that fills it up."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"\0\0\0\x01\0\0\0\x01\x08\0\0\0\0")
    tail = chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    filling = size - len(head) - len(tail) - 12
    return head + chunk(b"tEXt", b"k\0".ljust(filling, b"x")) + tail


def pdf(*pages: str, size: int = 0) -> bytes:
    """Return a PDF with a line of text on each page, made to have exactly `size` bytes where that is more."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>")
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for number, text in enumerate(pages):
        content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    body = "%PDF-1.4\n"
    places = []
    for number, each in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{each}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    count = len(objects) + 1
    end = (
        f"xref\n0 {count}\n0000000000 65535 f \n{table}trailer\n<< /Size {count} /Root 1 0 R >>\nstartxref\n"
    )
    end += f"{len(body)}\n%%EOF\n"
    whole = (body + end).encode()
    # A comment in the end is nothing to a reader.
    return whole if size <= len(whole) else whole + b"%".ljust(size - len(whole), b"x")


def text(size: int) -> bytes:
    """Return text of exactly so many bytes."""
    return (b"A line of some words.\n" * (size // 22 + 1))[:size]


class LimitCase(NamedTuple):
    """Files of one message, its text, and the answer: 0 when it is accepted, else an HTTP status and a reason."""

    name: str
    files: tuple[tuple[str, bytes], ...]
    message: str
    status: int
    reason: str = ""


def limit_cases() -> list[LimitCase]:
    """Return messages at the limits and one byte over them."""
    whole = 25 * MIB
    return [
        LimitCase("an image at the limit", (("a.png", png(5 * MIB)),), "look", 0),
        LimitCase("an image over the limit", (("a.png", png(5 * MIB + 1)),), "look", 400, "too_large"),
        LimitCase("a PDF at the limit", (("a.pdf", pdf("Hello", size=10 * MIB)),), "read", 0),
        LimitCase(
            "a PDF over the limit", (("a.pdf", pdf("Hello", size=10 * MIB + 1)),), "read", 400, "too_large"
        ),
        LimitCase("text and files at the limit", (("a.txt", text(whole - 4)),), "read", 0),
        LimitCase(
            "text and files over the limit", (("a.txt", text(whole - 3)),), "read", 413, "message_too_large"
        ),
        LimitCase(
            "several files over the limit together",
            (("a.txt", text(15 * MIB)), ("b.txt", text(10 * MIB))),
            "read",
            413,
            "message_too_large",
        ),
        LimitCase(
            "one bad file of two", (("a.txt", b"fine"), ("b.png", b"no image")), "read", 400, "type_mismatch"
        ),
    ]
