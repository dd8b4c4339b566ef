"""Reading PDF files: their text, or a sentence on why there is none; whoever made them."""

import asyncio
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pypdf import PdfReader, PdfWriter

from comm.bundles.pdf import read_pdf, reading
from tests.attachments import pdf

pytestmark = pytest.mark.wire


async def test_the_text_of_every_page_is_read() -> None:
    found = await read_pdf(pdf("First page", "Second page"))
    assert (found.pages, found.read, found.problem) == (2, 2, "")
    assert found.text.split("\n\n") == ["First page", "Second page"]


async def test_a_file_without_text_says_so() -> None:
    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    buffer = io.BytesIO()
    writer.write(buffer)
    found = await read_pdf(buffer.getvalue())
    assert (found.text, found.problem) == ("", "it has no text, only pictures of it")


async def test_an_encrypted_file_says_so() -> None:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("Secret"))))
    writer.encrypt("password", algorithm="RC4-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    assert (await read_pdf(buffer.getvalue())).problem == "it is encrypted"


@pytest.mark.parametrize("content", [b"", b"%PDF-1.7 ...", b"\x00" * 1000, pdf("Hello")[:200]])
async def test_a_broken_file_says_so(content: bytes) -> None:
    found = await read_pdf(content)
    assert found.text == ""
    assert found.problem


async def test_only_so_many_pages_and_characters_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_PAGES", 2)
    found = await read_pdf(pdf("one", "two", "three"))
    assert (found.pages, found.read) == (3, 2)
    monkeypatch.setattr(reading, "MOST_CHARACTERS", 2)
    assert (await read_pdf(pdf("one", "two"))).text == "on"


async def test_a_file_that_is_never_done_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "WALL_SECONDS", 0.01)
    assert (await read_pdf(pdf(*["page"] * 200))).problem == "reading it takes too long"


async def test_a_file_that_wants_too_much_memory_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MEMORY_BYTES", 16 * 1024 * 1024)
    assert "too much memory" in (await read_pdf(pdf("Hello"))).problem


async def test_a_cancelled_reading_leaves_no_process() -> None:
    task = asyncio.create_task(read_pdf(pdf(*["page"] * 200)))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # Its place is free again: the next one is read.
    assert (await read_pdf(pdf("Next"))).text == "Next"


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=300), st.integers(0, 400))
def test_garbage_in_a_file_is_a_sentence(garbage: bytes, place: int) -> None:
    whole = pdf("Hello")
    found = asyncio.run(read_pdf(whole[:place] + garbage + whole[place + len(garbage) :]))
    assert found.text or found.problem
