"""Files that come with a message: sniffed, named safely, within their limits, or refused as a whole."""

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile

from comm.turns.incoming import IncomingFile
from relay.conf import MIB, relay_settings
from relay.exceptions import AttachmentRefused, BadRequest, MessageTooLarge, Notice

from .parsing import FileHint

NAME_CHARACTERS = 200
"""Leaves room below 255 for what a storage appends to make a name unique."""
PDF_HEADER_WITHIN = 1024
"""Readers of PDF look for its header this far into the file."""

FAILURE_NOTICE = "rate_limit.attachment_failure"

PDF = "application/pdf"
PLAIN = "text/plain"
BINARY = "application/octet-stream"
TEXT_TYPES = {
    ".txt": PLAIN,
    ".log": PLAIN,
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".json": "application/json",
}
"""Other text, HTML and SVG among them, is text/plain: its own name for itself is not to be trusted."""
ARCHIVE_TYPES = {
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".ods": "application/vnd.oasis.opendocument.spreadsheet",
}
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp", ".avif", ".heic", ".tif", ".tiff"})
SVG = "image/svg+xml"

_SIGNATURES: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("image/png", lambda head: head.startswith(b"\x89PNG\r\n\x1a\n")),
    ("image/jpeg", lambda head: head.startswith(b"\xff\xd8\xff")),
    ("image/gif", lambda head: head.startswith((b"GIF87a", b"GIF89a"))),
    ("image/webp", lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP"),
    ("image/avif", lambda head: head[4:12] in (b"ftypavif", b"ftypavis")),
    ("image/heic", lambda head: head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1")),
    ("image/tiff", lambda head: head.startswith((b"II*\0", b"MM\0*"))),
    ("application/zip", lambda head: head.startswith(b"PK\x03\x04")),
    ("application/gzip", lambda head: head.startswith(b"\x1f\x8b")),
)


class Failure(NamedTuple):
    """Why one file cannot be taken."""

    filename: str
    size: int
    reason: str
    sentence: str


def accept_files(
    uploads: "Sequence[UploadedFile[Any]]", hints: Callable[[int, str], FileHint], text: str
) -> list[IncomingFile]:
    """Return the files of a message, in order; empty ones are skipped.

    `hints(index, name)` is what the client says of a file. Errors: MessageTooLarge when text and files
    together are over the limit (nothing was read then), AttachmentRefused when any single file is bad.
    """
    check_total(len(text.encode()) + sum(upload.size or 0 for upload in uploads))
    if len(uploads) > settings.DATA_UPLOAD_MAX_NUMBER_FILES:
        most = settings.DATA_UPLOAD_MAX_NUMBER_FILES
        raise BadRequest("files", f"{len(uploads)} files came; at most {most} are allowed")
    taken: list[IncomingFile] = []
    failures: list[Failure] = []
    for index, upload in enumerate(uploads):
        if not upload.size:
            continue
        name = upload.name or ""
        found = _examine(upload.read(), safe_name(name), hints(index, name).mime, upload.content_type or "")
        if isinstance(found, Failure):
            failures.append(found)
        else:
            taken.append(found)
    if failures:
        raise _refusal(failures)
    return taken


def safe_name(name: str) -> str:
    """Return a file's name without a path, without what cannot be seen, and not too long."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    seen = "".join(c for c in unicodedata.normalize("NFC", last) if unicodedata.category(c)[0] != "C")
    seen = seen.strip().lstrip(".") or "attachment"
    path = PurePosixPath(seen)
    suffix = path.suffix[:20]
    return path.stem[: NAME_CHARACTERS - len(suffix)] + suffix


def sniff(content: bytes, suffix: str, claimed: str = "") -> str:
    """Return the media type that the content has, whatever its sender says.

    The name's suffix and the claim only choose among types that look the same: kinds of text, kinds of zip.
    """
    head = content[:PDF_HEADER_WITHIN]
    for mime, matches in _SIGNATURES:
        if matches(head):
            return ARCHIVE_TYPES.get(suffix, mime) if mime == "application/zip" else mime
    is_text = _is_text(content)
    # Some PDFs begin with other bytes; a text that only mentions the header is none.
    if head.startswith(b"%PDF-") or (b"%PDF-" in head and not is_text):
        return PDF
    if not is_text:
        return BINARY
    return TEXT_TYPES.get(suffix) or (claimed if claimed in TEXT_TYPES.values() else PLAIN)


def check_total(total: int) -> None:
    """Raise MessageTooLarge for more bytes of text and files than a message may have."""
    limit = relay_settings().MESSAGE_BYTES
    if total > limit:
        raise MessageTooLarge(f"Text and files have {_mib(total)}; a message may have {_mib(limit)}.")


def _examine(content: bytes, name: str, *claims: str) -> IncomingFile | Failure:
    suffix = PurePosixPath(name).suffix.lower()
    claimed = [claim.partition(";")[0].strip().lower() for claim in claims]
    mime = sniff(content, suffix, next((claim for claim in claimed if claim), ""))
    wrong = _contradiction(suffix, claimed, mime)
    if wrong:
        return Failure(name, len(content), "type_mismatch", f"{name} {wrong}")
    kind, limit = _limit(mime)
    if len(content) > limit:
        return Failure(
            name, len(content), "too_large", f"{name} has {_mib(len(content))}; {kind} may have {_mib(limit)}"
        )
    return IncomingFile(name, mime, content)


def _contradiction(suffix: str, claimed: Sequence[str], mime: str) -> str:
    """Say how a file is not what its name or its sender says; an empty string says it is."""
    says_image = suffix in IMAGE_SUFFIXES or any(c.startswith("image/") and c != SVG for c in claimed)
    if says_image and not mime.startswith("image/"):
        return "is said to be an image, but its content is none"
    if (suffix == ".pdf" or PDF in claimed) and mime != PDF:
        return "is said to be a PDF, but its content is none"
    text_types = set(TEXT_TYPES.values())
    says_text = suffix in TEXT_TYPES or any(c.startswith("text/") or c in text_types for c in claimed)
    if says_text and mime not in text_types:
        return "is said to be text, but its content is not text in UTF-8"
    return ""


def _is_text(content: bytes) -> bool:
    if b"\0" in content:
        return False
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _limit(mime: str) -> tuple[str, int]:
    conf = relay_settings()
    if mime.startswith("image/"):
        return "an image", conf.IMAGE_BYTES
    if mime == PDF:
        return "a PDF", conf.PDF_BYTES
    return "a file", conf.FILE_BYTES


def _mib(size: int) -> str:
    return f"{size / MIB:.2f}".rstrip("0").rstrip(".") + " MiB"


def _refusal(failures: Sequence[Failure]) -> AttachmentRefused:
    sentence = "; ".join(failure.sentence for failure in failures) + "."
    items = [
        {"filename": f.filename, "size": f.size, "reason": f.reason, "user_message": f"{f.sentence}."}
        for f in failures
    ]
    return AttachmentRefused(
        sentence,
        reason=failures[0].reason,
        data={"field": "files", "attachments": items},
        notices=[Notice(FAILURE_NOTICE, "Attachment refused", {"attachment": item}) for item in items],
    )
