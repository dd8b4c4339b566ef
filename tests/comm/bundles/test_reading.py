"""Reading of attachments: what is recognised, what is counted, and that nothing is too odd for it."""

import asyncio
import json
import time
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comm.bundles.demo.charts import bar_chart, histogram, intervals, line_chart, markdown_table
from comm.bundles.demo.prose import blocks, numbers_in, occurrences, profile_text
from comm.bundles.demo.questions import split_question, understand
from comm.bundles.demo.reading import SAMPLE_BYTES, read_document, read_message, read_value
from comm.bundles.demo.report import compose
from comm.bundles.demo.speech import chunks, line_chunks
from comm.bundles.demo.structures import JsonUnreadable, describe, read_json
from comm.bundles.demo.tables import Column, parse_number, profile_column, read_delimited
from comm.bundles.demo.wording import code, duration, number, printable, size
from comm.envelope import ConversationContext, Envelope, Event, ServiceContext

pytestmark = pytest.mark.wire
patient = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def column(*cells: str | None) -> Column:
    return profile_column(Column("c", list(cells)))


@pytest.mark.parametrize(
    ("name", "mime", "content", "format"),
    [
        ("a.csv", "", b"a,b\n1,2\n", "csv"),
        ("a", "text/csv; charset=utf-8", b"a,b\n1,2\n", "csv"),
        ("a.tsv", "", b"a\tb\n1\t2\n", "csv"),
        ("a", "text/plain", b"day;sold\nMo;3\nTu;5\n", "csv"),
        ("a.json", "", b"{}", "json"),
        ("a.txt", "", b'{"a": 1}', "json"),
        ("a", "", b'{"a": 1}\n{"a": 2}\n', "json"),
        ("a.jsonl", "", b'{"a": 1}\n{"a": 2}\n', "json"),
        ("a.md", "", b"Words.", "markdown"),
        ("a", "", b"# Title\n\nWords.", "markdown"),
        ("a.txt", "", b"Well, yes.\nNo, never.\nSo, it is.\n", "text"),
        ("a.txt", "", "Grüße".encode("utf-16"), "text"),
        ("a.txt", "", "Grüße".encode("cp1252"), "text"),
        ("a.zip", "", b"PK\x03\x04rest", "binary"),
        ("a.csv", "", b"", "empty"),
    ],
)
def test_documents_are_recognised(name: str, mime: str, content: bytes, format: str) -> None:
    assert read_document(name, mime, content).format == format


def test_text_in_any_encoding_keeps_its_words() -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252"):
        prose = read_document("a.txt", "", "Grüße aus Köln".encode(encoding)).prose
        assert prose is not None
        assert prose.counts["grüße"] == 1


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_found(delimiter: str) -> None:
    text = "\n".join(delimiter.join(row) for row in (["name", "said"], ["a", '"x, y; z"'], ["b", "q"]))

    table = read_delimited(text)

    assert [item.name for item in table.columns] == ["name", "said"]
    assert table.columns[1].cells == ["x, y; z", "q"]


def test_table_without_header_numbers_its_columns() -> None:
    table = read_delimited("1,x\n2,y\n")

    assert [item.name for item in table.columns] == ["column 1", "column 2"]
    assert table.rows == 2


def test_uneven_rows_are_kept_and_counted() -> None:
    table = read_delimited("a,b\n1,2\n3\n4,5,6\n")

    assert [item.cells for item in table.columns] == [["1", "3", "4"], ["2", None, "5"]]
    assert table.uneven == 2


def test_number_column_has_its_figures() -> None:
    numbers = read_delimited("a,b\n1,x\n2,x\nNA,x\n10,x\n,x\n").columns[0]

    assert (numbers.kind, numbers.count, numbers.missing) == ("number", 3, 2)
    assert (numbers.minimum, numbers.maximum, numbers.median) == (1, 10, 2)
    assert numbers.total == 13
    assert column(*["1"] * 19, "none of it").odd == 1


@pytest.mark.parametrize(
    ("cell", "decimal", "value"),
    [
        ("1,240.50", ".", 1240.5),
        ("€ 3", ".", 3.0),
        ("12 %", ".", 12.0),
        ("-1e3", ".", -1000.0),
        ("1.240,50", ",", 1240.5),
        ("3,5", ",", 3.5),
        ("1,24", ".", None),
        ("1e400", ".", None),
        ("12 apples", ".", None),
        ("٣", ".", None),
    ],
)
def test_numbers_are_read_as_people_write_them(cell: str, decimal: str, value: float | None) -> None:
    assert parse_number(cell, decimal) == value


def test_columns_with_decimal_commas_are_numbers() -> None:
    prices = read_delimited("item;price\na;1,50\nb;2,25\nc;1.000,00\n").columns[1]

    assert (prices.kind, prices.total) == ("number", 1003.75)


def test_postal_codes_are_no_numbers() -> None:
    assert column("01067", "10115").kind == "text"


@pytest.mark.parametrize(
    "cells",
    [
        ("2026-02-01", "2026-01-15"),
        ("2026-02-01T10:00:00Z", "2026-01-15 09:00"),
        ("01.02.2026", "15.01.2026"),
        ("02/01/2026", "01/15/2026"),
    ],
)
def test_dates_are_recognised_and_ordered(cells: tuple[str, str]) -> None:
    dates = column(*cells)

    assert (dates.kind, dates.first, dates.last) == ("date", cells[1], cells[0])


def test_numbers_in_prose_leave_out_dates_and_names() -> None:
    assert numbers_in("On 2026-01-05 at 10:30 we sold 1,240 of B2B for -3.5, v1.2.3 and 7.") == [
        1240,
        -3.5,
        7,
    ]


def test_prose_is_counted() -> None:
    profile = profile_text("One two. Three four!\n\nFive, Mr. smith?\n")

    assert (profile.words, profile.sentences, profile.paragraphs, profile.lines) == (7, 3, 2, 2)


def test_markdown_is_counted() -> None:
    profile = profile_text("# Top\n\n- a\n- b\n\n## Next ##\n\n[x](http://y)\n\n```\n# not a heading\n```\n")

    assert profile.headings == [(1, "Top"), (2, "Next")]
    assert (profile.list_items, profile.links, profile.code_blocks) == (2, 1, 1)


def test_word_is_found_whole_in_any_case() -> None:
    assert occurrences("Rain, rain; trains and RAIN-coats.", "rain") == 3


@given(st.text(max_size=400), st.integers(1, 50))
@patient
def test_blocks_and_chunks_lose_nothing(text: str, length: int) -> None:
    assert "".join(blocks(text, length)) == text
    assert "".join(chunks(text)) == printable(text)
    assert "".join(line_chunks(text, length)) == text


def test_large_json_is_read_piece_by_piece() -> None:
    items = [{"id": place, "name": "ä" * (place % 50), "deep": {"a": [1, [2]]}} for place in range(9_000)]
    value: Any = {"meta": {"count": 12345.5}, "items": items, "end": [True, None]}
    text = json.dumps(value, ensure_ascii=False, indent=1)
    assert len(text) > 1_000_000

    assert read_json(text) == (value, True)


def test_large_json_that_is_cut_off_gives_what_came_before() -> None:
    text = json.dumps([{"id": place} for place in range(100_000)])[:600_000]

    value, whole = read_json(text, complete=False)

    assert not whole
    assert value[:2] == [{"id": 0}, {"id": 1}]
    assert len(value) > 9_000


def test_large_broken_json_names_the_line() -> None:
    lines = ["["] + [f'{{"id": {place}}},' for place in range(9_000)] + ['{"id" 3}]', " " * 300_000]

    with pytest.raises(JsonUnreadable, match="line 9002"):
        read_json("\n".join(lines))


@pytest.mark.parametrize("text", ["[NaN]", "[1,]", "{1: 2}", "[" * 200_000, "9" * 5000, '{"a":' * 50_000])
def test_json_that_is_none_is_told(text: str) -> None:
    with pytest.raises(JsonUnreadable):
        read_json(text)


def test_structure_is_counted() -> None:
    structure = describe({"a": [1, {"b": None}], "c": "x"})

    assert structure.depth == 3
    assert dict(structure.kinds) == {"object": 2, "array": 1, "number": 1, "null": 1, "string": 1}
    assert structure.members == [("a", "array of 2 items"), ("c", "string")]


PEOPLE = b"""name;age;city;joined
Ann;34;Oslo;01.02.2020
Bob;;Rome;15.03.2021
Cid;41;Oslo;20.01.2019
Dee;30;Oslo;11.11.2022
"""


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (
            "total age where city is Oslo",
            "The sum of `age` in `people.csv` where `city` is `Oslo` is **105**",
        ),
        ("How many people live in Oslo?", "**3 rows** where `city` is `Oslo` in `people.csv`, of 4."),
        ("What is Ann's age?", "| age |\n| --- |\n| 34 |"),
        ("How old is Cid?", "| Cid | 41 | Oslo | 20.01.2019 |"),
        ("How many cities are there?", "`city` has **2 different values**"),
        ("What is the average age per city?", "| Oslo | 35 |"),
        ("What is the latest date?", "goes from **20.01.2019** to **11.11.2022**: 1,391 days."),
        ("Who has the lowest age?", "It stands in row 4: `name` `Dee`"),
        ("What is missing?", "`people.csv` lacks **1 value**: `age` (1)."),
        ("Which fields are there?", "`people.csv` has **4 columns**: `name` (text), `age` (number)"),
        ("How many rows does people.csv have?", "`people.csv` has **4 rows**."),
        ("Tell me about joined", "`joined` goes from **20.01.2019** to **11.11.2022**."),
    ],
)
def test_question_about_a_table_is_answered_before_its_description(asked: str, answer: str) -> None:
    report = compose(understand(asked), [read_document("people.csv", "", PEOPLE)])

    assert answer in report.answer.partition("### people.csv")[0]


@pytest.mark.parametrize("asked", ["Who is the oldest?", "Why is the sky blue?"])
def test_question_that_is_not_understood_gets_no_guess(asked: str) -> None:
    report = compose(understand(asked), [read_document("people.csv", "", PEOPLE)])

    assert report.answer.startswith("I found nothing in `people.csv`")
    assert not report.answered


def test_question_is_told_from_its_text() -> None:
    assert split_question("How many words?\nOne two") == ("How many words?", "One two")
    assert split_question("One two\nHow many words?") == ("How many words?", "One two")
    assert split_question("Count the words: one two three four five") == (
        "Count the words",
        "one two three four five",
    )
    assert split_question("Hello") == ("Hello", "Hello")


def test_drawings_hold_negative_and_constant_values() -> None:
    for drawing in (
        bar_chart("<&\"'>", [("a\0<", -3.0), ("b", 5.5)]),
        bar_chart("", []),
        line_chart("x", [("only", 7.0)]),
        line_chart("none", []),
        histogram("same", [4.0] * 10),
        histogram("tiny", [1e-320, 2e-320]),
        histogram("wide", [-1e99, 1e99]),
    ):
        assert ElementTree.fromstring(drawing).get("role") == "img"


@given(st.lists(st.floats(-1e99, 1e99), min_size=1, max_size=200))
@patient
def test_histogram_counts_every_value(values: list[float]) -> None:
    assert sum(count for _, count in intervals(values)) == len(values)


def test_table_cells_cannot_break_the_table() -> None:
    assert (
        markdown_table(["a|b"], [["x\ny"], ["<i>"]], [0]) == "| a\\|b |\n| ---: |\n| x y |\n| \\&lt;i\\> |\n"
    )


def test_values_are_worded_for_people() -> None:
    assert [number(value) for value in (1234567, 2.5, 0.25, 1e20, -0.0, 1e-9)] == [
        "1,234,567", "2.50", "0.25", "1e+20", "0", "1e-09",
    ]  # fmt: skip
    assert [size(count) for count in (1, 2048, 26_214_400)] == ["1 byte", "2.0 KB", "25.0 MB"]
    assert [duration(seconds) for seconds in (0, 90, 19_800)] == ["1 second", "2 minutes", "5.50 hours"]
    assert code("a`b") == "``a`b``"


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # lone surrogates too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(ANY_TEXT, inner, max_size=6),
    max_leaves=30,
)
CELLS = st.sampled_from(
    ["", "1", "-2.5", "3,5", "2026-01-01", "0001-01-01T00:00+14:00", "9999-12-31", "x", '"', "é", "1e99"]
)
CSV = st.lists(st.lists(CELLS, max_size=5), max_size=8).map(
    lambda rows: "\n".join(map(",".join, rows)).encode()
)
CONTENT = st.binary(max_size=300) | st.text(max_size=300).map(lambda t: t.encode("utf-8", "replace")) | CSV
QUESTIONS = st.sampled_from(
    [
        "average per column 1?",
        "how many different values, min and max?",
        "summarise the headings and links, which keys?",
        "missing rows where x is é, most frequent",
        "range of the longest word, how often does “x” occur?",
    ]
)


@given(
    st.sampled_from(["a.csv", "a.json", "a.jsonl", "a.md", "a.txt", "a"]),
    CONTENT,
    QUESTIONS | st.text(max_size=80),
)
@patient
def test_no_attachment_is_too_odd(name: str, content: bytes, text: str) -> None:
    assert_reported(compose(understand(text), [read_document(name, "", content)]))


@given(JSON, QUESTIONS)
@patient
def test_no_json_value_is_too_odd(value: Any, text: str) -> None:
    content = json.dumps(value).encode()
    assert_reported(
        compose(understand(text), [read_document("a.json", "", content), read_value(value, "payload")])
    )


@given(st.text(st.characters(exclude_categories=()), max_size=300))
@patient
def test_no_message_is_too_odd(text: str) -> None:
    assert_reported(compose(understand(text), [read_message(text)]))


def assert_reported(report: Any) -> None:
    """What is said can be encoded and drawn, and three questions are offered."""
    texts = [report.answer, report.reasoning, *report.timeline, *report.followups]
    texts += [artifact.text for artifact in report.artifacts]
    envelope = Envelope(
        type="custom",
        timestamp="",
        ts=0,
        service=ServiceContext(),
        conversation=ConversationContext(),
        event=Event(),
        data={"said": [printable(text) for text in texts], "profile": report.profile},
    )
    envelope.encode()
    for artifact in report.artifacts:
        if artifact.format == "svg":
            ElementTree.fromstring(artifact.text)
    assert report.answer.strip()
    assert len(report.followups) == 3


HUGE = 25 * 1024 * 1024


def huge_csv() -> bytes:
    row = b"2026-01-01,North,12.50,some words here\n"
    return b"date,region,price,note\n" + row * (HUGE // len(row))


HUGE_FILES = {
    "rows.csv": huge_csv,
    "quote.csv": lambda: b'a,b\n"' + b"x" * HUGE,
    "commas.csv": lambda: b"a,b\n" + b"," * HUGE,
    "items.json": lambda: b"[" + b'{"id": 1, "name": "x"},' * (HUGE // 23) + b'{"id": 2}]',
    "string.json": lambda: b'{"a": "' + b"x" * HUGE + b'"}',
    "line.txt": lambda: b"x" * HUGE,
    "words.txt": lambda: b"Many words stand here, 12 of them. " * (HUGE // 35),
    "zeros.txt": lambda: b"0" * HUGE,
    "marks.md": lambda: b"[" * HUGE,
    "spaces.md": lambda: b"# " + b" " * HUGE + b"x",
    "dots.txt": lambda: b". " * (HUGE // 2),
}


@pytest.mark.parametrize("name", HUGE_FILES)
async def test_huge_file_is_read_in_bounded_time_beside_a_running_loop(name: str) -> None:
    content = HUGE_FILES[name]()
    waits: list[float] = []

    async def watch() -> None:
        while True:
            # Not waiting for anything: this is the loop whose pauses are measured, by what this process computed
            # meanwhile: when the machine has others to serve, that is no pause of the reading's making.
            before = time.process_time()
            await asyncio.sleep(0.001)
            waits.append(time.process_time() - before)

    watching = asyncio.create_task(watch())
    started = time.perf_counter()
    document = await asyncio.to_thread(read_document, name, "", content)
    report = await asyncio.to_thread(compose, understand("How many rows and words?"), [document])
    took = time.perf_counter() - started
    watching.cancel()

    assert len(content) > SAMPLE_BYTES
    assert report.answer.strip()
    assert took < 20
    # One call that searches or sorts all of it at once would hold the loop for a second.
    assert max(waits) < 0.5
