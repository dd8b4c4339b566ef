"""Puts an answer together: what was asked first, then what each document holds, with artifacts and questions.

Pure: documents in, Markdown out. It may take a second for large documents; call `compose` in a thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .answers import answer_document
from .artifacts import Artifact, artifacts_of
from .questions import Question
from .reading import Document
from .sections import section
from .suggestions import suggest
from .tables import Column, Table
from .wording import code, counted, listed, printable, size

PROFILED_COLUMNS = 40


@dataclass(slots=True)
class Report:
    """Everything that is said about one message."""

    reasoning: str = ""
    answer: str = ""
    answered: bool = False
    artifacts: list[Artifact] = field(default_factory=list)
    timeline: list[str] = field(default_factory=list)
    profile: dict[str, Any] = field(default_factory=dict)
    followups: list[str] = field(default_factory=list)
    words_read: int = 0


def compose(
    question: Question, documents: Sequence[Document], *, opening: str = "", first_artifact: int = 1
) -> Report:
    """Write the report on documents; `opening` is what was answered already, from elsewhere.

    Artifacts are numbered from `first_artifact`, so that several reports of one turn have names of their own.
    """
    report = Report()
    direct = [opening] if opening else []
    for document in documents:
        direct += answer_document(question, document)
    report.answered = bool(direct)
    parts = direct or _nothing_found(question, documents)
    key_sentences = not question.asks("summary")
    parts = [*parts, *(section(document, key_sentences=key_sentences) for document in documents)]
    report.answer = "\n\n".join(part.strip("\n") for part in parts if part) + "\n"
    for document in documents:
        report.artifacts += artifacts_of(question, document, first_artifact + len(report.artifacts))
        report.timeline.append(_read_line(document))
    report.timeline += [f"Made {artifact.title} ({artifact.format})." for artifact in report.artifacts]
    report.reasoning = _reasoning(documents, report)
    report.profile = {"documents": [profile_of(document) for document in documents]}
    report.followups = suggest(documents)
    report.words_read = sum(_words(document) for document in documents)
    return report


def outline(document: Document) -> str:
    """Say in a few words what a document is: `a table of 12 rows and 3 columns`."""
    if document.format in ("binary", "empty"):
        return document.problem.removeprefix("it is ")
    if document.format == "csv":
        table = document.tables[0][1]
        return f"a table of {counted(table.rows, 'row')} and {counted(len(table.columns), 'column')}"
    if document.structure is not None:
        return f"JSON, {document.structure.top}"
    kind = "Markdown" if document.format == "markdown" else "text"
    return f"{kind} of {counted(document.prose.words if document.prose else 0, 'word')}"


def profile_of(document: Document) -> dict[str, Any]:
    """Describe a document as data, for a widget."""
    profile: dict[str, Any] = {
        "name": printable(document.name),
        "format": document.format,
        "bytes": document.bytes,
        "complete": document.complete,
        "problem": document.problem,
    }
    if document.tables:
        profile["tables"] = [_table_profile(path, table) for path, table in document.tables]
    if document.structure is not None:
        profile["structure"] = {
            "top": document.structure.top,
            "depth": document.structure.depth,
            "kinds": dict(document.structure.kinds),
        }
    if document.prose is not None:
        prose = document.prose
        profile["text"] = {
            "words": prose.words,
            "sentences": prose.sentences,
            "lines": prose.lines,
            "reading_seconds": round(prose.reading_seconds, 1),
            "frequent": [{"word": word, "count": count} for word, count in prose.frequent(10)],
        }
    return profile


def _table_profile(path: str, table: Table) -> dict[str, Any]:
    columns = [_column_profile(column) for column in table.columns[:PROFILED_COLUMNS]]
    return {"path": printable(path), "rows": table.rows, "complete": table.complete, "columns": columns}


def _column_profile(column: Column) -> dict[str, Any]:
    profile: dict[str, Any] = {
        "name": column.name,
        "kind": column.kind,
        "count": column.count,
        "missing": column.missing,
        "distinct": column.distinct,
    }
    if column.kind == "number":
        figures = {"minimum": column.minimum, "maximum": column.maximum, "mean": column.mean}
        profile |= figures | {"median": column.median, "total": column.total}
    elif column.kind == "date":
        profile |= {"first": column.first, "last": column.last}
    else:
        profile["top"] = [{"value": value[:120], "count": count} for value, count in column.top(5)]
    return profile


def _nothing_found(question: Question, documents: Sequence[Document]) -> list[str]:
    """Say so when a question was asked and none of the documents answers it."""
    if not question.text.rstrip().endswith("?"):
        return []
    names = listed(code(document.name) if "." in document.name else document.name for document in documents)
    return [
        f"I found nothing in {names or 'your message'} that answers this directly: I compute answers from"
        " what I am sent, and know nothing else of the world. This is what is there."
    ]


def _reasoning(documents: Sequence[Document], report: Report) -> str:
    found = [f"{document.name} is {outline(document)}." for document in documents]
    if report.answered:
        found.append("That is enough to answer the question itself, so the answer comes first.")
    if report.artifacts:
        found.append(f"Worth showing beside the answer: {listed(a.title for a in report.artifacts)}.")
    return " ".join(found)


def _read_line(document: Document) -> str:
    if document.problem:
        return f"Looked at {document.name}: {document.problem}."
    part = "" if document.complete else ", its first part"
    return f"Read {document.name} ({size(document.bytes)}{part}): {outline(document)}."


def _words(document: Document) -> int:
    if document.prose is not None:
        return document.prose.words
    cells = sum(column.count for _, table in document.tables[:1] for column in table.columns)
    return cells or (document.structure.kinds.total() if document.structure else 0)
