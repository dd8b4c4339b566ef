"""Direct answers in Markdown: what a question asks of a document or of the conversation."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from .figures import FIGURES, answer_table
from .prose import STOP_WORDS, TextProfile, occurrences
from .questions import Question, aside_from
from .reading import Document
from .wording import code, counted, duration, escaped, listed, number, shortened


class Said(Protocol):
    """One earlier message of the conversation."""

    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str: ...


def answer_document(question: Question, document: Document) -> list[str]:
    """Answer what is asked of one document; an empty list where nothing in it was asked for."""
    found: list[str] = []
    question = aside_from(question, document.name)
    for path, table in document.tables:
        where = code(document.name) if path == "$" else f"{code(path)} of {code(document.name)}"
        found = answer_table(question, table, where)
        if found:
            break
    if document.structure is not None and not found:
        found = answer_structure(question, document)
    if document.prose is not None and not found:
        found = answer_text(question, document)
    return found


def answer_structure(question: Question, document: Document) -> list[str]:
    """Answer about the keys and the nesting of a JSON document."""
    structure = document.structure
    if structure is None:
        return []
    where = code(document.name)
    if question.asks("depth"):
        return [f"{where} is nested **{counted(structure.depth, 'level')}** deep."]
    wanted = next((word for word in question.quoted if word in structure.keys), None)
    if wanted is not None:
        return [f"The key {code(wanted)} occurs **{counted(structure.keys[wanted], 'time')}** in {where}."]
    if question.asks("keys", "top", "columns") and structure.keys:
        top = listed(f"{code(key)} ({count:,})" for key, count in structure.keys.most_common(10))
        return [
            f"{where} has **{counted(len(structure.keys), 'different key')}**; the most frequent are {top}."
        ]
    return []


def answer_text(question: Question, document: Document) -> list[str]:
    """Answer what is asked of a text: a word, counts, numbers, key sentences."""
    profile = document.prose
    if profile is None:
        return []
    where = code(document.name) if "." in document.name else document.name
    found: list[str] = []
    if question.word:
        times = occurrences(document.text, question.word)
        if question.text.strip() and question.text.strip() == document.text.strip()[:2000]:
            times -= 1  # the question itself names it
        found.append(f"{code(question.word)} occurs **{counted(max(times, 0), 'time')}** in {where}.")
    found += _counts(question, profile, where)
    found += _numbers_of(question, profile, where)
    if question.asks("summary") and profile.key_sentences:
        lines = "\n".join(f"> {sentence}\n>" for sentence in map(_quoted, profile.key_sentences)).rstrip(
            "\n>"
        )
        found.append(f"The sentences of {where} that carry its most frequent words:\n\n{lines}")
    if question.asks("headings") and profile.headings:
        lines = "\n".join(f"{'  ' * (level - 1)}- {escaped(title)}" for level, title in profile.headings[:40])
        found.append(f"The headings of {where}:\n\n{lines}")
    return found


def _counts(question: Question, profile: TextProfile, where: str) -> list[str]:
    found = []
    counts = {
        "words": (profile.words, "word"),
        "sentences": (profile.sentences, "sentence"),
        "paragraphs": (profile.paragraphs, "paragraph"),
        "characters": (profile.characters, "character"),
        "rows": (profile.lines, "line"),
        "links": (profile.links, "link"),
    }
    counting = question.asks("count") and not question.asks("often", "top", "distinct", "longest")
    asked = [name for name in counts if counting and question.asks(name)]
    if asked:
        found.append(f"{_sentence(where)} has **{listed(counted(*counts[name]) for name in asked)}**.")
    if question.asks("distinct") and question.asks("words"):
        found.append(f"{_sentence(where)} has **{counted(len(profile.counts), 'different word')}**.")
    if question.asks("longest") and profile.longest_word:
        length = counted(len(profile.longest_word), "letter")
        found.append(f"The longest word of {where} is {code(profile.longest_word)} ({length}).")
    if question.asks("reading"):
        found.append(f"{_sentence(where)} takes about **{duration(profile.reading_seconds)}** to read.")
    if question.asks("top") and profile.counts and question.asks("words"):
        top = listed(f"{code(word)} ({count:,})" for word, count in profile.frequent(8))
        found.append(f"The most frequent words of {where} are {top}.")
    return found


def _numbers_of(question: Question, profile: TextProfile, where: str) -> list[str]:
    numbers = profile.numbers
    if numbers is None or not question.asks(*FIGURES):
        return []
    figures = {
        "sum": numbers.total,
        "mean": numbers.mean,
        "median": numbers.median,
        "max": numbers.maximum,
        "min": numbers.minimum,
    }
    parts = [
        f"the {FIGURES[name][0]} is **{number(value)}**"
        for name, value in figures.items()
        if question.asks(name)
    ]
    return [f"Of the {counted(numbers.count, 'number')} in {where}, {listed(parts)}."]


def answer_conversation(question: Question, history: Sequence[Said]) -> str:
    """Answer what was said before, from the conversation's earlier messages."""
    asked = [said.content for said in history if said.role == "user" and said.content.strip()]
    if not asked:
        return "This is the first message of our conversation: there is nothing before it."
    if " first " in question.plain:
        return f"Your first message was:\n\n> {_quoted(asked[0])}"
    if " last " in question.plain or " previous " in question.plain:
        return f"Your last message before this one was:\n\n> {_quoted(asked[-1])}"
    lines = [f"{place}. {_quoted(text)}" for place, text in enumerate(asked[-20:], max(1, len(asked) - 19))]
    replies = sum(said.role == "assistant" for said in history)
    opening = f"So far you sent {counted(len(asked), 'message')} and I answered {counted(replies, 'time')}."
    return f"{opening} You wrote:\n\n" + "\n".join(lines)


def answer_clock(now: datetime) -> str:
    """Say the time in the user's zone."""
    zone = now.tzname() or "UTC"
    return f"It is **{now:%A, %d %B %Y, %H:%M}** ({escaped(zone)})."


def _quoted(text: str) -> str:
    """Put a sentence of somebody else on one line of Markdown, at most 200 characters."""
    return shortened(text, 200).replace("<", "&lt;").replace("|", "\\|")


def _sentence(where: str) -> str:
    return where[:1].upper() + where[1:]


def is_meant(word: str) -> bool:
    """Whether a word carries meaning, so that it is worth a question."""
    return word not in STOP_WORDS and len(word) > 2
