"""Questions worth asking next; each is tried on the documents before it is offered."""

from collections.abc import Iterator, Sequence

from .answers import answer_document, is_meant
from .questions import understand
from .reading import Document
from .tables import Table
from .wording import shortened

OFFERED = 3
ALWAYS = ("What did I ask first?", "Summarise our conversation", "What time is it?")
"""Questions that need no document."""


def suggest(documents: Sequence[Document]) -> list[str]:
    """Return three questions, about the documents as far as these answer any."""
    offered: list[str] = []
    for document in documents:
        for text in candidates(document):
            if text not in offered and answer_document(understand(text), document):
                offered.append(text)
            if len(offered) == OFFERED:
                return offered
    return [*offered, *ALWAYS][:OFFERED]


def candidates(document: Document) -> Iterator[str]:
    """Word questions that a document of this form may answer, the most telling first."""
    where = document.name if "." in document.name else "my previous message"
    for _, table in document.tables[:1]:
        yield from _of_table(table, where)
    if document.structure is not None:
        yield f"Which keys occur most often in {where}?"
        yield f"How deep is {where} nested?"
    if document.prose is not None:
        words = [word for word, _ in document.prose.frequent(1) if is_meant(word)]
        if words:
            yield f"How often does “{words[0]}” occur in {where}?"
        if document.prose.numbers is not None and document.prose.numbers.count > 1:
            yield f"What is the sum of the numbers in {where}?"
        if len(document.prose.headings) > 1:
            yield f"What are the headings of {where}?"
        if document.prose.sentences > 6:
            yield f"Which sentences matter most in {where}?"
        yield f"What is the longest word in {where}?"
        yield f"How many words and sentences are in {where}?"


def _of_table(table: Table, where: str) -> Iterator[str]:
    numbers = [shortened(column.name, 40) for column in table.of_kind("number")]
    texts = [column for column in table.of_kind("text") if column.distinct > 1]
    groups = [shortened(column.name, 40) for column in texts if column.distinct <= min(50, column.count / 2)]
    dates = [shortened(column.name, 40) for column in table.of_kind("date")]
    if numbers and groups:
        yield f"What is the average {numbers[0]} per {groups[0]} in {where}?"
    if numbers:
        yield f"Which row has the highest {numbers[-1]} in {where}?"
    if dates:
        yield f"What period does {dates[0]} cover in {where}?"
    if texts:
        yield f"How many different values does {shortened(texts[0].name, 40)} have in {where}?"
    if numbers:
        yield f"What is the median of {numbers[0]} in {where}?"
        yield f"What is the sum of {numbers[0]} in {where}?"
    yield f"How many values are missing in {where}?"
    yield f"Which columns does {where} have?"
    yield f"How many rows does {where} have?"
