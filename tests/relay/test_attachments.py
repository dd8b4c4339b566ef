"""Attachments: sniffed, named safely, within their limits, or refused as a whole."""

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from hypothesis import given
from hypothesis import strategies as st
from pytest_django.fixtures import Settings

from comm.turns.incoming import IncomingFile
from relay.conf import MIB
from relay.exceptions import AttachmentRefused, MessageTooLarge
from relay.ingress.attachments import NAME_CHARACTERS, accept_files, safe_name
from relay.ingress.parsing import FileHint

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 20
PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"
ZIP = b"PK\x03\x04" + b"\0" * 20


def take(name: str, content: bytes, mime: str = "", *, hint: str = "", text: str = "") -> IncomingFile:
    upload = SimpleUploadedFile(name, content, mime)
    (file,) = accept_files([upload], lambda index, name: FileHint(mime=hint), text)
    return file


def refusal(*uploads: tuple[str, bytes], hint: str = "") -> AttachmentRefused:
    files = [SimpleUploadedFile(name, content, "application/octet-stream") for name, content in uploads]
    with pytest.raises(AttachmentRefused) as caught:
        accept_files(files, lambda index, name: FileHint(mime=hint), "")
    return caught.value


@pytest.mark.parametrize(
    ("name", "content", "mime"),
    [
        ("a.png", PNG, "image/png"),
        ("a.jpg", JPEG, "image/jpeg"),
        ("misnamed.png", JPEG, "image/jpeg"),
        ("a.gif", b"GIF89a\0", "image/gif"),
        ("a.webp", b"RIFF\0\0\0\0WEBPVP8 \0", "image/webp"),
        ("a.pdf", PDF, "application/pdf"),
        ("scanned.pdf", b"\0junk\n" + PDF, "application/pdf"),
        ("a.txt", b"Hello", "text/plain"),
        ("A.CSV", b"a,b\n1,2\n", "text/csv"),
        ("a.md", "# Größe".encode(), "text/markdown"),
        ("a.md", b"A PDF begins with %PDF-1.7", "text/markdown"),
        ("a.json", b"{}", "application/json"),
        ("a.html", b"<script>alert(1)</script>", "text/plain"),
        ("a.svg", b"<svg onload='alert(1)'/>", "text/plain"),
        ("a.docx", ZIP, "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        ("a.zip", ZIP, "application/zip"),
        ("a.bin", b"\0\1\2", "application/octet-stream"),
        ("noname", b"\xff\xfe", "application/octet-stream"),
    ],
)
def test_the_type_is_that_of_the_content(name: str, content: bytes, mime: str) -> None:
    file = take(name, content, "application/octet-stream")
    assert (file.mime, file.content) == (mime, content)


def test_a_claim_chooses_among_kinds_of_text_where_the_name_does_not() -> None:
    assert take("table", b"a,b", hint="text/csv").mime == "text/csv"
    assert take("table", b"a,b", "text/csv; charset=utf-8").mime == "text/csv"
    assert take("page", b"<p>", hint="text/html").mime == "text/plain"
    assert take("drawing.svg", b"<svg/>", "image/svg+xml").mime == "text/plain"


@pytest.mark.parametrize(
    ("name", "content", "hint", "word"),
    [
        ("a.png", b"Hello", "", "image"),
        ("a", b"Hello", "image/jpeg", "image"),
        ("a.pdf", b"Hello", "", "PDF"),
        ("a", PNG, "application/pdf", "PDF"),
        ("a.csv", PNG, "", "UTF-8"),
        ("a.txt", "Größe".encode("latin-1"), "", "UTF-8"),
        ("a", b"a\0b", "text/plain", "UTF-8"),
    ],
)
def test_a_file_that_is_not_what_it_is_said_to_be_is_refused(
    name: str, content: bytes, hint: str, word: str
) -> None:
    error = refusal((name, content), hint=hint)
    assert error.status == 400
    assert error.data["attachments"][0]["reason"] == "type_mismatch"
    assert str(error).startswith(f"{name} is said to be")
    assert word in str(error)


@pytest.mark.parametrize(
    ("name", "content", "limit"),
    [
        ("a.png", PNG + b"\0" * (5 * MIB), "an image may have 5 MiB"),
        ("a.pdf", PDF + b"\0" * (10 * MIB), "a PDF may have 10 MiB"),
    ],
)
def test_each_kind_has_its_limit(name: str, content: bytes, limit: str) -> None:
    error = refusal((name, content))
    assert limit in str(error)
    assert error.data["attachments"][0]["reason"] == "too_large"


def test_other_files_have_their_own_limit(settings: Settings) -> None:
    settings.RELAY = {"FILE_BYTES": 3}
    assert "a file may have" in str(refusal(("a.txt", b"1234")))
    assert take("a.txt", b"123").content == b"123"


def test_one_bad_file_refuses_all_and_every_bad_one_is_named() -> None:
    error = refusal(("good.txt", b"Hello"), ("bad.png", b"Hello"), ("worse.pdf", b"Hello"))
    assert [item["filename"] for item in error.data["attachments"]] == ["bad.png", "worse.pdf"]
    assert [notice.type for notice in error.notices] == ["rate_limit.attachment_failure"] * 2
    messages = [notice.data["attachment"]["user_message"] for notice in error.notices]
    assert messages == [
        "bad.png is said to be an image, but its content is none.",
        "worse.pdf is said to be a PDF, but its content is none.",
    ]


def test_empty_parts_are_skipped_and_hints_keep_their_places() -> None:
    files = [SimpleUploadedFile("empty", b""), SimpleUploadedFile("second", b"a,b")]
    hints = [FileHint(mime="image/png"), FileHint(mime="text/csv")]
    taken = accept_files(files, lambda index, name: hints[index], "")
    assert [(file.filename, file.mime) for file in taken] == [("second", "text/csv")]


def test_text_and_files_together_have_a_limit(settings: Settings) -> None:
    settings.RELAY = {"MESSAGE_BYTES": 10}
    assert take("a.txt", b"12345", text="12345").content == b"12345"
    with pytest.raises(MessageTooLarge) as caught:
        take("a.txt", b"12345", text="1234é")
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\notes.txt", "notes.txt"),
        (".htaccess", "htaccess"),
        ("a\0b\r\n.txt", "ab.txt"),
        ("gpj\u202efdp.exe", "gpjfdp.exe"),
        ("Gro\u0308ße.csv", "Größe.csv"),
        ("...", "attachment"),
        ("", "attachment"),
        ("x" * 300 + ".csv", "x" * (NAME_CHARACTERS - 4) + ".csv"),
    ],
)
def test_names_are_safe(name: str, safe: str) -> None:
    assert safe_name(name) == safe


@given(st.text(max_size=300))
def test_any_name_becomes_one_that_can_be_stored(name: str) -> None:
    safe = safe_name(name)
    assert 0 < len(safe) <= NAME_CHARACTERS
    assert "/" not in safe
    assert "\\" not in safe
    assert "\0" not in safe
    assert safe not in (".", "..")
    safe.encode()
