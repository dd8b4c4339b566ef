"""The demo bundle's turns, from the message to the last envelope."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import pytest

from comm.bundles import HistoryMessage, TurnAttachment, TurnMessage, get_bundle
from comm.bundles.demo import DemoBundle
from comm.models import Attachment, Conversation, Message, Turn
from tests.attachments import pdf
from tests.comm.bundles.talking import Talk

MakeTalk = Callable[..., Talk]
Attach = Callable[..., TurnAttachment]

SALES = b"""date,region,product,unit_price,quantity
2026-01-01,North,Chair,12.50,3
2026-01-02,South,Table,99.90,1
2026-01-03,North,Lamp,20,2
2026-01-04,East,Chair,12.50,7
2026-01-05,South,Lamp,19.50,
"""


def test_demo_is_the_default_bundle() -> None:
    assert isinstance(get_bundle(""), DemoBundle)


async def test_question_about_a_column_is_answered_first(make_talk: MakeTalk, attach: Attach) -> None:
    talk = make_talk("What is the average unit price per region?", attachments=[attach("sales.csv", SALES)])

    answer = (await talk.run()).text()

    first, _, rest = answer.partition("### sales.csv")
    assert "is highest for `South`: **59.70**" in first
    assert "| North | 16.25 |" in first
    assert "**5 rows** and **5 columns**" in rest


async def test_turn_streams_every_marker_and_closes_it(make_talk: MakeTalk, attach: Attach) -> None:
    talk = await make_talk(
        "Which product is the most expensive?", attachments=[attach("sales.csv", SALES)]
    ).run()

    for marker in ("thinking", "answer", "timeline_text"):
        deltas = talk.deltas(marker)
        assert [delta["delta"]["index"] for delta in deltas] == list(range(len(deltas)))
        assert [delta["delta"]["completed"] for delta in deltas] == [False] * (len(deltas) - 1) + [True]
        assert talk.text(marker).strip()
    assert "Read sales.csv" in talk.text("timeline_text")


async def test_steps_show_the_progress_of_each_attachment(make_talk: MakeTalk, attach: Attach) -> None:
    files = [attach("sales.csv", SALES), attach("note.txt", b"One line.")]

    talk = await make_talk("Look at these", attachments=files).run()

    steps = [(step["event"]["step"], step["event"]["status"], step["data"]) for step in talk.of("chat.step")]
    for name in ("read.1", "read.2"):
        states = [(status, data["progress"]) for step, status, data in steps if step == name]
        assert states == [("started", 0.0), ("running", 0.5), ("completed", 1.0)]
    assert ("analyse", "completed", {"progress": 1.0}) in steps


async def test_canvas_holds_a_drawing_and_a_table_each_completed_once(
    make_talk: MakeTalk, attach: Attach
) -> None:
    talk = await make_talk("unit_price per region", attachments=[attach("sales.csv", SALES)]).run()

    artifacts = talk.artifacts()
    assert list(artifacts) == ["chart-1", "table-2"]
    drawing = ElementTree.fromstring(artifacts["chart-1"])
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    assert "| unit\\_price | number |" in artifacts["table-2"]
    for name in artifacts:
        ends = [d["delta"]["completed"] for d in talk.deltas("canvas") if d["extra"]["artifact_name"] == name]
        assert ends == [False] * (len(ends) - 1) + [True]
    formats = {delta["extra"]["artifact_name"]: delta["extra"]["format"] for delta in talk.deltas("canvas")}
    assert formats == {"chart-1": "svg", "table-2": "markdown"}


async def test_widget_carries_the_profile_as_json(make_talk: MakeTalk, attach: Attach) -> None:
    talk = await make_talk("Look", attachments=[attach("sales.csv", SALES)]).run()

    [widget] = talk.deltas("subsystem")
    assert widget["extra"]["sub_type"] == "data.profile"
    assert widget["delta"]["completed"] is True
    [document] = json.loads(widget["delta"]["text"])["documents"]
    columns = {column["name"]: column for column in document["tables"][0]["columns"]}
    assert columns["quantity"]["total"] == 13
    assert columns["quantity"]["missing"] == 1
    assert columns["region"]["top"][0] == {"value": "North", "count": 2}


async def test_usage_counts_words_and_costs_nothing(make_talk: MakeTalk) -> None:
    talk = await make_talk("Seven words are here, and two numbers: 3 and 4.").run()

    [usage] = talk.of("accounting.usage")
    assert usage["event"]["step"] == "accounting"
    assert usage["data"]["cost_total_usd"] == 0.0
    [row] = usage["data"]["breakdown"]
    streamed = sum(
        len(talk.text(marker).split()) for marker in ("thinking", "answer", "canvas", "timeline_text")
    )
    assert (
        usage["event"]["markdown"]
        == f"Token usage: {row['input_tokens']:,} in / {row['output_tokens']:,} out"
    )
    assert row["input_tokens"] > 10
    assert 0.8 * streamed < row["output_tokens"] < 1.5 * streamed


async def test_message_without_files_is_analysed_itself(make_talk: MakeTalk) -> None:
    text = "We sold 120 chairs and 30 tables. Chairs sell well. What is the total?"

    answer = (await make_talk(text).run()).text()

    assert answer.startswith("Of the 2 numbers in your message, the sum is **150**.")
    assert "3 sentences" in answer
    assert "`chairs` (2)" in answer


async def test_word_is_counted_in_the_text_below_the_question(make_talk: MakeTalk) -> None:
    text = 'How often does "rain" occur?\nRain in spring, rain in May.\nNo trains, no rain.'

    answer = (await make_talk(text).run()).text()

    assert answer.startswith("`rain` occurs **3 times** in your message.")


async def test_question_that_nothing_answers_is_told_so(make_talk: MakeTalk) -> None:
    answer = (await make_talk("Who painted the ceiling?").run()).text()

    assert answer.startswith("I found nothing in your message that answers this directly")


async def test_empty_message_gets_a_sentence(make_talk: MakeTalk) -> None:
    talk = await make_talk("").run()

    assert "it is empty" in talk.text()
    assert talk.of("chat.error") == []


HISTORY = [
    HistoryMessage("user", "How tall is the tower?"),
    HistoryMessage("assistant", "I cannot know."),
    HistoryMessage("user", "It has 24 floors of 3 metres."),
    HistoryMessage("assistant", "Thank you."),
]


async def test_conversation_is_recalled_from_its_history(make_talk: MakeTalk) -> None:
    first = await make_talk("What did I ask first?", history=HISTORY).run()
    whole = await make_talk("Summarise our conversation", history=HISTORY).run()

    assert first.text().startswith("Your first message was:\n\n> How tall is the tower?")
    assert "you sent 2 messages and I answered 2 times" in whole.text()
    assert "2. It has 24 floors of 3 metres." in whole.text()


async def test_previous_message_can_be_asked_about(make_talk: MakeTalk) -> None:
    talk = await make_talk("What is the sum of the numbers in my previous message?", history=HISTORY).run()

    assert talk.text().startswith("Of the 2 numbers in your previous message, the sum is **27**.")


async def test_clock_is_told_in_the_users_zone(make_talk: MakeTalk) -> None:
    talk = await make_talk("What time is it?").run()

    told = re.search(r"It is \*\*(.+?)\*\* \(JST\)", talk.text())
    assert told is not None
    assert (
        abs(
            (
                datetime.strptime(told[1], "%A, %d %B %Y, %H:%M") - datetime.now(UTC).replace(tzinfo=None)
            ).total_seconds()
            - 9 * 3600
        )
        < 3600
    )


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"pace_ms": "fast"}, "config.pace_ms"),
        ({"pace_ms": -1}, "config.pace_ms"),
        ({"pace_ms": True}, "config.pace_ms"),
        ({"deltas": 2.5}, "config.deltas"),
        ({"deltas": [3]}, "config.deltas"),
        ({"deltas": 10**9}, "config.deltas"),
        ({"deltas": 10**400}, "config.deltas"),
        ({"pace_ms": float("nan")}, "config.pace_ms"),
    ],
)
async def test_wrong_option_ends_the_turn_with_an_error_that_names_it(
    make_talk: MakeTalk, config: dict[str, Any], field: str
) -> None:
    talk = await make_talk("Hello", config=config).run()

    [error] = talk.of("chat.error")
    assert error["data"]["error"].startswith(f"{field} must be")
    assert error["data"]["error_type"] == "config_invalid"
    assert talk.of("chat.delta") == []


async def test_wanted_number_of_deltas_is_reached_and_each_is_numbered(make_talk: MakeTalk) -> None:
    talk = await make_talk("Walk through these words", config={"deltas": 3000}).run()

    spoken = [delta["delta"]["text"] for delta in talk.deltas("answer")][:-1]
    assert len(spoken) == 3000
    numbered = [int(found[1]) for text in spoken if (found := re.match(r"\[(\d+)\] ", text))]
    assert numbered == list(range(numbered[0], 3001))
    assert numbered[0] < 200
    assert talk.turn.communicator.final_answer == "".join(spoken)


async def test_stopped_turn_says_no_more(make_talk: MakeTalk) -> None:
    talk = make_talk("Walk", config={"deltas": 3000})
    emit = talk.turn.communicator.delta

    async def delta(*args: Any, **kwargs: Any) -> Any:
        position = await emit(*args, **kwargs)
        if args[0] == "answer" and kwargs.get("text", args[1]).startswith("[500]"):
            talk.turn.ring_stop(steered=False)
        return position

    talk.turn.communicator.delta = delta  # type: ignore[method-assign]
    await talk.run()

    assert talk.deltas("answer")[-1]["delta"]["text"].startswith("[500]")
    assert talk.of("accounting.usage") == []


async def test_pace_waits_between_deltas_and_a_stop_ends_the_wait(make_talk: MakeTalk) -> None:
    talk = make_talk("Slowly", config={"pace_ms": 60_000})
    talk.turn.ring_stop(steered=False)

    await talk.run()

    assert talk.of("chat.delta") == []


async def test_followup_is_answered_in_the_same_turn_about_the_same_file(
    make_talk: MakeTalk, attach: Attach
) -> None:
    followup = TurnMessage("What is the median quantity?", "turn-2", kind="followup", config={"pace_ms": "x"})
    talk = make_talk("Look at this", attachments=[attach("sales.csv", SALES)], followups=[followup])

    await talk.run()

    before, _, after = talk.text().partition("\n---\n")
    assert "median of `quantity`" not in before.partition("###")[0]
    assert "The median of `quantity` in `sales.csv` is **2.50**" in after
    assert "config.pace_ms must be" in after
    assert list(talk.artifacts()) == ["chart-1", "table-2", "chart-3", "table-4"]
    assert len(talk.of("accounting.usage")) == 1
    assert len(talk.of("chat.followups")) == 1


async def test_offered_questions_are_answered_about_the_file(make_talk: MakeTalk, attach: Attach) -> None:
    files = [attach("sales.csv", SALES)]
    [card] = (await make_talk("Look", attachments=files).run()).of("chat.followups")

    assert len(card["data"]["items"]) == 3
    for question in card["data"]["items"]:
        answer = (await make_talk(question, attachments=files).run()).text()
        assert not answer.startswith(("I found nothing", "###"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.csv", b"", "it is empty"),
        ("blank.json", b" \n", "nothing but blanks"),
        (
            "photo.csv",
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x02\x80\0\0\1\xe0",
            "a PNG image of 640 × 480 pixels",
        ),
        ("data.bin", bytes(range(256)), "a binary file of 256 bytes"),
        ("broken.json", b'{"a": [1, 2', "it is not JSON that can be read: Expecting"),
        ("deep.json", b"[" * 100_000, "nested too deeply"),
        ("bad.csv", b'a,b\n1,"' + b"x" * 200_000, "cannot be read as a table: line"),
    ],
)
async def test_unreadable_attachment_gets_a_sentence(
    make_talk: MakeTalk, attach: Attach, name: str, content: bytes, said: str
) -> None:
    talk = await make_talk("What is in it?", attachments=[attach(name, content)]).run()

    assert said in talk.text()
    assert talk.of("chat.error") == []
    assert talk.of("accounting.usage")


async def test_lost_file_costs_its_own_section_only(make_talk: MakeTalk, attach: Attach) -> None:
    lost = TurnAttachment("gone", "gone.txt", "text/plain", 12, "no-such-file.txt")

    talk = await make_talk("sum of quantity", attachments=[lost, attach("sales.csv", SALES)]).run()

    assert "The sum of `quantity` in `sales.csv` is **13**" in talk.text()
    assert "its content is not there any more" in talk.text()
    assert ("read.1", "error") in [(s["event"]["step"], s["event"]["status"]) for s in talk.of("chat.step")]


async def test_hostile_names_and_values_cannot_leave_their_place(make_talk: MakeTalk, attach: Attach) -> None:
    content = '<script>,"a|b"\n</svg><script>alert(1)</script>,1\n&"\ud800x,2\n'.encode(
        "utf-8", "surrogatepass"
    )

    talk = await make_talk("Look", attachments=[attach("odd.csv", content, "text/csv")]).run()

    drawing = ElementTree.fromstring(talk.artifacts()["chart-1"])
    assert all(not element.tag.endswith("script") for element in drawing.iter())
    outside_code = re.sub(r"`[^`\n]*`", "", talk.text())
    assert "<script" not in outside_code


async def test_payload_and_custom_events_are_read_as_data(make_talk: MakeTalk) -> None:
    payload = {"scores": [{"team": "red", "points": 3}, {"team": "blue", "points": 8}]}
    event = {"type": "event.sensor", "payload": {"inside": 21.5, "outside": 4}}

    talk = await make_talk("sum of points", payload=payload, external_events=[event]).run()

    assert "The sum of `points` in `scores` of `payload` is **11**" in talk.text()
    assert "### event 1" in talk.text()


@pytest.mark.django_db(transaction=True)
async def test_later_question_is_answered_from_the_file_of_an_earlier_turn(
    make_talk: MakeTalk, attach: Attach
) -> None:
    file = attach("sales.csv", SALES)
    conversation = await Conversation.objects.acreate(
        tenant="acme",
        project="shop",
        conversation_id="conv-1",
        owner="ada",
        session_id="session-1",
        bundle_id="demo",
    )
    turn = await Turn.objects.acreate(
        turn_id="turn-0", conversation=conversation, number=1, bundle_id="demo", session_id="session-1"
    )
    message = await Message.objects.acreate(
        conversation=conversation, turn=turn, role="user", content="Look at it"
    )
    await Attachment.objects.acreate(
        message=message, filename="sales.csv", mime="text/csv", size=len(SALES), path=file.path
    )
    history = [HistoryMessage("user", "Look at it"), HistoryMessage("assistant", "A table.")]

    about = await make_talk("Which row has the highest quantity in sales.csv?", history=history).run()
    other = await make_talk("Good morning to you", history=history).run()

    assert about.text().startswith("The highest value of `quantity` in `sales.csv` is **7**")
    assert "sales.csv" not in other.text()


async def test_the_text_of_a_pdf_is_read(make_talk: MakeTalk, attach: Attach) -> None:
    paper = pdf("The quarterly report counts seven parrots.", "Second page.")
    talk = await make_talk(
        "How many words?", attachments=[attach("report.pdf", paper, "application/pdf")]
    ).run()
    assert "**8 words**" in talk.text()
    broken = attach("broken.pdf", b"%PDF-1.4 nothing", "application/pdf")
    talk = await make_talk("Read it", attachments=[broken]).run()
    assert "it is broken" in talk.text()
