"""Recognises what an attachment is and reads it: text, Markdown, CSV, JSON, or a sentence on why not.

Nothing here raises for any content, and each function takes bounded time: of large files the first
SAMPLE_BYTES are read. Call `read_document` in a thread: it may work for a second.
"""

import codecs
import struct
from dataclasses import dataclass, field
from typing import Any, Literal

from comm.bundles.pdf import PdfText

from .prose import TextProfile, profile_text
from .structures import JsonUnreadable, Structure, describe, read_json, read_json_lines, tables_in
from .tables import Table, TableUnreadable, read_delimited, sniff_delimiter
from .wording import printable, size

Format = Literal["text", "markdown", "csv", "json", "binary", "empty"]

SAMPLE_BYTES = 4 * 1024 * 1024
"""What of a file is read; a second of work in a thread, and less than 100 MB of memory for its cells."""

CLEAN_CHARACTERS = 131_072
PDF = "application/pdf"

SUFFIXES: dict[str, Format] = {
    "csv": "csv", "tsv": "csv", "tab": "csv",
    "json": "json", "jsonl": "json", "ndjson": "json", "geojson": "json",
    "md": "markdown", "markdown": "markdown", "mkd": "markdown",
    "txt": "text", "log": "text", "text": "text", "rst": "text",
}  # fmt: skip
MIMES: dict[str, Format] = {
    "text/csv": "csv", "text/tab-separated-values": "csv",
    "application/json": "json", "application/x-ndjson": "json", "application/jsonl": "json",
    "text/markdown": "markdown",
}  # fmt: skip
MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF8", "GIF image"),
    (b"%PDF-", "PDF document"),
    (b"PK\x03\x04", "ZIP archive (or an office document, which is one)"),
    (b"\x1f\x8b", "gzip archive"),
)
BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
ENCODING_NAMES = {"utf-8-sig": "UTF-8", "utf-8": "UTF-8", "utf-16": "UTF-16", "cp1252": "Windows-1252"}


@dataclass(slots=True)
class Document:
    """One thing that was read: an attachment or the message itself.

    `problem` is a sentence's end where it could not be read as what it claims to be; `tables` are those found
    in it, with the path to each ("$" for the whole).
    """

    name: str
    format: Format
    bytes: int
    complete: bool = True
    encoding: str = ""
    problem: str = ""
    text: str = ""
    prose: TextProfile | None = None
    structure: Structure | None = None
    tables: list[tuple[str, Table]] = field(default_factory=list)


def read_document(name: str, mime: str, content: bytes) -> Document:
    """Read an attachment; never raises for any content."""
    if not content:
        return Document(name, "empty", 0, problem="it is empty")
    document = Document(name, "text", len(content), complete=len(content) <= SAMPLE_BYTES)
    decoded = decode(content)
    if decoded is None:
        document.format, document.problem = "binary", _binary(content)
        return document
    document.text, document.encoding = decoded
    if not document.text.strip():
        document.format, document.problem = "empty", "it holds nothing but blanks"
        return document
    document.format = recognise(name, mime, document.text, document.complete)
    if document.format == "json":
        _read_json(document)
    elif document.format == "csv":
        _read_table(document)
    if document.format in ("text", "markdown"):
        document.prose = profile_text(document.text)
    return document


def read_pages(name: str, count: int, pdf: PdfText) -> Document:
    """Read the text of a PDF as prose; `count` is the file's bytes."""
    if not pdf.text.strip():
        return Document(name, "binary", count, problem=pdf.problem or "it has no text")
    text = printable(pdf.text)
    complete = pdf.read >= pdf.pages and not pdf.problem
    return Document(name, "text", count, complete, encoding="PDF", text=text, prose=profile_text(text))


def read_message(text: str, name: str = "your message") -> Document:
    """Read a message as a document."""
    text = printable(text)
    if not text.strip():
        return Document(name, "empty", 0, problem="it is empty")
    count = len(text.encode())
    return Document(name, "text", count, encoding="UTF-8", text=text, prose=profile_text(text))


def read_value(value: Any, name: str) -> Document:
    """Read a JSON value that is one already (a message's payload)."""
    document = Document(name, "json", 0)
    document.structure = describe(value)
    document.tables = tables_in(value)
    return document


def decode(content: bytes) -> tuple[str, str] | None:
    """Return the sample's text and its encoding, None for what is no text."""
    sample = content[:SAMPLE_BYTES]
    for bom, codec in BOMS:
        if sample.startswith(bom):
            return _clean(sample.decode(codec, "replace")), ENCODING_NAMES[codec]
    if _looks_binary(sample):
        return None
    try:
        decoder = codecs.getincrementaldecoder("utf-8")()
        # Not final: the sample may end inside a character.
        return _clean(decoder.decode(sample, final=len(content) == len(sample))), "UTF-8"
    except UnicodeDecodeError:
        return _clean(sample.decode("cp1252", "replace")), "Windows-1252"


def recognise(name: str, mime: str, text: str, complete: bool = True) -> Format:
    """Tell what a text is: by its name, else by its type, else by how it looks."""
    suffix = name.rpartition(".")[2].lower() if "." in name else ""
    known = SUFFIXES.get(suffix) or MIMES.get(mime.partition(";")[0].strip().lower())
    if known is not None and known != "text":
        return known
    opening = text[:4096].strip()
    inside = '"' in opening or opening[1:2] in "[{]}0123456789-"
    if opening[:1] in ("{", "[") and inside and (_has_json_lines(text) or _is_json(text, complete)):
        return "json"
    if known == "text":
        return "text"
    lines = [line for line in opening.split("\n")[:10] if line.strip()]
    if any(line.startswith(("# ", "## ", "```", "| ")) for line in lines):
        return "markdown"
    delimiter = sniff_delimiter(text) if len(lines) > 2 else ""
    # Prose has commas too: a table's lines hold no sentences.
    if delimiter and not any(line.rstrip().endswith((".", "!", "?")) or ", " in line for line in lines):
        return "csv"
    return "text"


def _read_json(document: Document) -> None:
    try:
        value, whole = _json_value(document)
    except JsonUnreadable as error:
        document.problem = f"it is not JSON that can be read: {error}"
        document.format = "text"
        return
    document.structure = describe(value, whole)
    document.tables = tables_in(value)
    for _, table in document.tables:
        table.complete = table.complete and whole


def _json_value(document: Document) -> tuple[Any, bool]:
    """Read a document, or one value per line where the name says so or the first line is one."""
    if document.name.lower().endswith((".jsonl", ".ndjson")) or _has_json_lines(document.text):
        return read_json_lines(document.text, document.complete)
    return read_json(document.text, document.complete)


def _is_json(text: str, complete: bool) -> bool:
    try:
        read_json(text, complete)
    except JsonUnreadable:
        return False
    return True


def _has_json_lines(text: str) -> bool:
    """Tell whether the first of several lines is a whole object or array."""
    first, _, rest = text.strip().partition("\n")
    if not rest or first[:1] not in ("{", "["):
        return False
    return rest.lstrip()[:1] in ("{", "[") and _is_json(first, True)


def _read_table(document: Document) -> None:
    delimiter = "\t" if document.name.lower().endswith((".tsv", ".tab")) else ""
    try:
        table = read_delimited(document.text, delimiter, document.complete)
    except TableUnreadable as error:
        document.problem = f"it cannot be read as a table: {error}"
        document.format = "text"
        return
    document.tables = [("$", table)]


def _clean(text: str) -> str:
    """Make a text printable piece by piece, which lets other threads run."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    pieces = range(0, len(text), CLEAN_CHARACTERS)
    return "".join(printable(text[start : start + CLEAN_CHARACTERS]) for start in pieces)


def _looks_binary(sample: bytes) -> bool:
    if any(sample.startswith(magic) for magic, _ in MAGIC):
        return True
    opening = sample[:8192]
    controls = sum(1 for byte in opening if byte < 9 or 13 < byte < 32)
    return b"\0" in opening or controls > len(opening) * 0.05


def _binary(content: bytes) -> str:
    """Say what a binary file is, as far as its first bytes tell."""
    kind = next((name for magic, name in MAGIC if content.startswith(magic)), "")
    if not kind:
        return f"it is a binary file of {size(len(content))}"
    if kind == "PNG image" and len(content) >= 24:
        width, height = struct.unpack(">II", content[16:24])
        return f"it is a PNG image of {width:,} × {height:,} pixels"
    if kind == "GIF image" and len(content) >= 10:
        width, height = struct.unpack("<HH", content[6:10])
        return f"it is a GIF image of {width:,} × {height:,} pixels"
    return f"it is a {kind}"
