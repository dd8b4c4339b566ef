"""Attachments: what of them the model is sent, and what their user is told."""

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from comm.bundles import HistoryMessage, TurnAttachment
from comm.bundles.llm.files import cut_at_line
from tests.attachments import pdf
from tests.comm.bundles.llm.conversing import LlmTalk
from tests.comm.bundles.llm.modelserver import ModelServer, says

MakeLlmTalk = Callable[..., LlmTalk]
Attach = Callable[..., TurnAttachment]
Configure = Callable[..., None]

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


async def test_text_file_is_sent_inline(server: ModelServer, talk: MakeLlmTalk, attach: Attach) -> None:
    server.plan(says("A list."))

    turn = await talk("What is it?", attachments=[attach("list.csv", b"a,b\n1,2\n", "text/csv")]).run()

    content = server.requests[0].messages[-1]["content"]
    assert content.startswith("What is it?\n\nAttached file list.csv (text/csv):\n```\na,b\n1,2\n")
    assert turn.states("attachment.1") == ["started", "completed"]


async def test_long_file_is_cut_at_a_line_and_both_are_told(
    server: ModelServer, talk: MakeLlmTalk, attach: Attach, configure: Configure
) -> None:
    configure(ATTACHMENT_TOKENS=100)
    rows = "".join(f"row {number}\n" for number in range(1000))
    files = [attach("one.txt", rows.encode(), "text/plain"), attach("two.txt", rows.encode(), "text/plain")]
    server.plan(says("Rows."))

    turn = await talk("", attachments=files).run()

    content = server.requests[0].messages[-1]["content"]
    assert 300 < len(content) < 700
    assert content.count("[The file goes on: these were the first") == 2
    assert content.count("row 10\n") == 2
    told = [step["event"]["markdown"] for step in turn.of("chat.step") if "markdown" in step["event"]]
    assert "the model is sent the first 172 of 7,890 characters" in told[0]


async def test_image_is_sent_as_a_data_url(server: ModelServer, talk: MakeLlmTalk, attach: Attach) -> None:
    server.plan(says("A dot."))

    await talk("What is it?", attachments=[attach("dot.png", PNG, "image/png")]).run()

    text, image = server.requests[0].messages[-1]["content"]
    assert text == {"type": "text", "text": "What is it?\n\n[Attached image: dot.png]"}
    assert image["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(PNG).decode()


async def test_image_joins_an_unanswered_question(
    server: ModelServer, talk: MakeLlmTalk, attach: Attach
) -> None:
    server.plan(says("A dot."))
    turn = talk(
        "And?", attachments=[attach("dot.png", PNG, "image/png")], history=[HistoryMessage("user", "Hm")]
    )

    await turn.run()

    content = server.requests[0].messages[-1]["content"]
    assert [part["type"] for part in content] == ["text", "text", "image_url"]
    assert content[0]["text"] == "Hm"


UNREAD: list[tuple[str, bytes, str, str]] = [
    ("report.pdf", b"%PDF-1.7 ...", "application/pdf", "it is broken"),
    ("song.mp3", b"ID3\x00\x01\x02" * 50, "application/octet-stream", "it is neither text nor an image"),
]


@pytest.mark.parametrize(("name", "content", "mime", "why"), UNREAD)
async def test_file_that_cannot_be_read_is_said_plainly(
    server: ModelServer, talk: MakeLlmTalk, attach: Attach, name: str, content: bytes, mime: str, why: str
) -> None:
    server.plan(says("I cannot read it."))

    turn = await talk("Read it", attachments=[attach(name, content, mime)]).run()

    assert why in server.requests[0].messages[-1]["content"]
    assert turn.states("attachment.1") == ["started", "error"]
    [step] = [step for step in turn.of("chat.step") if step["event"]["status"] == "error"]
    assert why in step["event"]["markdown"]
    assert turn.of("chat.error") == []


async def test_the_text_of_a_pdf_is_sent(server: ModelServer, talk: MakeLlmTalk, attach: Attach) -> None:
    server.plan(says("It says hello."))

    await talk("Read it", attachments=[attach("a.pdf", pdf("Hello from paper"), "application/pdf")]).run()

    assert "Hello from paper" in server.requests[0].messages[-1]["content"]


async def test_images_are_not_sent_where_the_model_reads_none(
    server: ModelServer, talk: MakeLlmTalk, attach: Attach, configure: Configure
) -> None:
    configure(IMAGES=False)
    server.plan(says("I see nothing."))

    files = [attach("dot.png", PNG, "image/png"), attach("note.txt", b"One line.", "text/plain")]
    await talk("What is it?", attachments=files).run()

    content = server.requests[0].messages[-1]["content"]
    assert "the model does not read images" in content
    assert "One line." in content


async def test_images_over_the_limit_are_named(
    server: ModelServer, talk: MakeLlmTalk, attach: Attach
) -> None:
    server.plan(says("Nine."))
    files = [attach(f"{place}.png", PNG, "image/png") for place in range(9)]

    turn = await talk("How many?", attachments=files).run()

    text, *images = server.requests[0].messages[-1]["content"]
    assert len(images) == 8
    assert "8.png (image/png) was not given to you: at most 8 images" in text["text"]
    assert turn.states("attachment.9") == ["started", "error"]


async def test_file_that_is_gone_does_not_end_the_turn(
    server: ModelServer, talk: MakeLlmTalk, attach: Attach
) -> None:
    server.plan(says("It is gone."))
    gone = replace(attach("note.txt", b"One line.", "text/plain"), path="nowhere/else")

    turn = await talk("Read it", attachments=[gone]).run()

    assert turn.text() == "It is gone."
    assert "not there any more" in server.requests[0].messages[-1]["content"]


@pytest.mark.django_db(transaction=True)
async def test_earlier_text_is_sent_again_and_earlier_images_only_named(
    server: ModelServer, talk: MakeLlmTalk, earlier_file: Callable[..., Any]
) -> None:
    server.plan(says("Two columns."))
    await earlier_file("list.csv", b"a,b\n1,2\n", "text/csv")
    await earlier_file("dot.png", PNG, "image/png")

    await talk(
        "How many columns?", history=[HistoryMessage("user", "Look"), HistoryMessage("assistant", "Yes")]
    ).run()

    content = server.requests[0].messages[-1]["content"]
    assert "(Sent earlier) Attached file list.csv" in content
    assert "a,b\n1,2" in content
    assert "[dot.png was sent earlier: an image, which you don't see again.]" in content


def test_cut_keeps_whole_characters_and_lines() -> None:
    assert cut_at_line("one\ntwo\nthree", 100) == "one\ntwo\nthree"
    assert cut_at_line("one\ntwo\nthree", 9) == "one\ntwo\n"
    assert cut_at_line("ééééé", 5) == "éé"
    assert cut_at_line("a\n" + "b" * 100, 50) == "a\n" + "b" * 48
    assert cut_at_line("text", 0) == cut_at_line("text", -5) == ""
