"""The pure parts: what a chunk says, where reasoning ends, what of the history fits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comm.bundles import HistoryMessage
from comm.bundles.llm.chunks import MOST_CALLS, CallAssembler, Fragment, Tokens, read_piece
from comm.bundles.llm.history import budgeted_history, estimate_messages, estimate_tokens
from comm.bundles.llm.suggestions import questions_in
from comm.bundles.llm.thinking import ThinkSplitter

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "delta", "content", "tool_calls", "function", "index", "id", "name", "arguments",
             "usage", "prompt_tokens", "completion_tokens", "finish_reason", "reasoning", "text"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=25,
)  # fmt: skip


@given(JSON)
def test_chunk_of_any_shape_is_read(chunk: object) -> None:
    piece = read_piece(chunk)

    assert isinstance(piece.content + piece.reasoning + piece.finish, str)
    assembler = CallAssembler()
    for fragment in piece.fragments:
        assembler.add(fragment)


def test_usage_that_is_no_count_is_none() -> None:
    assert read_piece({"usage": {"prompt_tokens": 5, "completion_tokens": 2}}).tokens == Tokens(5, 2)
    assert read_piece({"usage": {"prompt_tokens": 5, "completion_tokens": -2}}).tokens is None
    assert read_piece({"usage": {"prompt_tokens": 5}}).tokens is None


def test_calls_are_bounded_and_names_may_come_in_pieces() -> None:
    assembler = CallAssembler()
    assembler.add(Fragment(0, "a", "calc", ""))
    assembler.add(Fragment(0, "", "ulate", ""))
    assembler.add(Fragment(0, "a", "", "{}"))
    for index in range(1, 100):
        assembler.add(Fragment(index, f"id-{index}", "x", "{}"))

    assert (assembler.calls[0].name, assembler.calls[0].arguments) == ("calculate", "{}")
    assert len(assembler.calls) == MOST_CALLS


def split(pieces: list[str]) -> tuple[str, str]:
    splitter = ThinkSplitter()
    told = [splitter.feed(piece) for piece in pieces] + [splitter.rest()]
    return "".join(reasoning for reasoning, _ in told), "".join(said for _, said in told)


@pytest.mark.parametrize(
    ("text", "reasoning", "said"),
    [
        ("Blue.", "", "Blue."),
        ("<think>Hm.</think>Blue.", "Hm.", "Blue."),
        ("\n<think>\nHm. a < b </ c\n</think>\n\nBlue.\n", "Hm. a < b </ c\n", "Blue.\n"),
        ("<think>Hm, no end </thi", "Hm, no end </thi", ""),
        ("<thin ice", "", "<thin ice"),
        ("<th", "", "<th"),
        ("  indented <think>no</think>", "", "  indented <think>no</think>"),
        ("<think></think>Blue.", "", "Blue."),
    ],
)
def test_reasoning_is_cut_out_wherever_the_stream_is_cut(text: str, reasoning: str, said: str) -> None:
    for width in range(1, len(text) + 1):
        pieces = [text[start : start + width] for start in range(0, len(text), width)]
        assert split(pieces) == (reasoning, said)


SAID = st.tuples(st.sampled_from(["user", "assistant", "event"]), st.text(max_size=80))


@given(st.lists(SAID, max_size=12), st.integers(1, 120))
def test_history_fits_alternates_and_begins_with_the_user(said: list[tuple[str, str]], budget: int) -> None:
    history = [HistoryMessage(role, text) for role, text in said]

    messages = budgeted_history(history, budget)

    roles = [message["role"] for message in messages]
    assert roles == [("user", "assistant")[place % 2] for place in range(len(roles))]
    # Merged messages share one overhead, and an event's label is not counted.
    assert estimate_messages(messages) <= budget + 4 * len(history)
    whole = {text for _, text in said}
    for message in messages:
        parts = message["content"].replace("[Event] ", "")
        assert any(text and text in parts for text in whole)


def test_newest_messages_stay_and_none_is_cut() -> None:
    history = [HistoryMessage("user", f"question {place} " * 10) for place in range(10)]

    [message] = budgeted_history(history, 100)

    assert message["content"] == f"{history[8].content}\n\n{history[9].content}"


def test_estimate_is_near_for_english_and_safe_for_others() -> None:
    assert 10 <= estimate_tokens("The quick brown fox jumps over the lazy dog.") <= 15
    assert estimate_tokens("素早い茶色の狐") >= 6
    assert estimate_tokens("\ud800") == 1
    assert estimate_tokens("") == 0


def test_questions_are_read_out_of_whatever_surrounds_them() -> None:
    text = 'Sure! Here you go:\n\n1) "Why?"\n(2) By month?\n• **Why?**\n-  And by year?\n\n3. Too many?\n'

    assert questions_in(text) == ["Why?", "By month?", "And by year?"]
    assert questions_in("") == questions_in("?\n" + "x" * 500) == []
