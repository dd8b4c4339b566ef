"""The part of an answer that says what one document holds, in Markdown."""

from .charts import markdown_table
from .figures import describe_column, group_figures
from .prose import TextProfile
from .reading import SAMPLE_BYTES, Document
from .structures import Structure
from .tables import Column, Table
from .wording import code, counted, duration, escaped, listed, number, shortened, size

SHOWN_COLUMNS = 30


def section(document: Document, *, key_sentences: bool = True) -> str:
    """Write the section on a document, with its heading; its key sentences only where they are wanted."""
    name = document.name[:1].upper() + document.name[1:] if is_said(document) else document.name
    heading = f"### {escaped(name)}"
    if document.format in ("binary", "empty"):
        known = " I read text, Markdown, CSV and JSON." if document.format == "binary" else ""
        return f"{heading}\n\nThere is nothing to compute here: {document.problem}.{known}"
    parts = [heading]
    if document.problem:
        parts.append(f"Its name or type promises more, but {document.problem}. So I read it as plain text.")
    if not document.complete:
        of = f"{size(SAMPLE_BYTES)} of {size(document.bytes)}"
        parts.append(f"It is large: what follows is about its first {of}.")
    if document.structure is not None:
        parts.append(_structure(document.structure, document))
    for path, table in document.tables:
        parts.append(_table(path, table, document))
    if document.prose is not None:
        parts.append(_prose(document.prose, document, key_sentences))
    return "\n\n".join(parts)


def is_said(document: Document) -> bool:
    """Whether the document is a message ("your message"), not a file."""
    return document.prose is not None and "." not in document.name


def column_rows(table: Table) -> list[list[str]]:
    """The rows of a table of columns, under COLUMN_HEAD."""
    return [_column_row(column) for column in table.columns[:SHOWN_COLUMNS]]


COLUMN_HEAD = ["column", "type", "values", "missing", "min", "max", "mean", "median", "most frequent"]
COLUMN_NUMERIC = (2, 3, 4, 5, 6, 7)


def _column_row(column: Column) -> list[str]:
    figures = ["", "", "", ""]
    if column.kind == "number":
        figures = [number(value) for value in (column.minimum, column.maximum, column.mean, column.median)]
    elif column.kind == "date":
        figures = [column.first, column.last, "", ""]
    top = column.top(1)
    frequent = f"{shortened(top[0][0], 30)} ({top[0][1]:,})" if top and top[0][1] > 1 else ""
    return [column.name, column.kind, f"{column.count:,}", f"{column.missing:,}", *figures, frequent]


def _table(path: str, table: Table, document: Document) -> str:
    """Describe a table: its size, its columns, and what stands out."""
    name = "A table" if path == "$" else f"{code(path)} is a table"
    note = f" ({table.note})" if table.note else ""
    parts = [
        f"{name} of **{counted(table.rows, 'row')}** and **{counted(len(table.columns), 'column')}**{note}."
    ]
    if not table.complete and document.complete:
        parts[0] += f" It has more; the figures are those of its first {counted(table.rows, 'row')}."
    if table.uneven:
        parts[0] += (
            f" {counted(table.uneven, 'row has', 'rows have')} more or fewer cells than there are columns."
        )
    parts.append(markdown_table(COLUMN_HEAD, column_rows(table), COLUMN_NUMERIC))
    if len(table.columns) > SHOWN_COLUMNS:
        parts.append(f"…and {counted(len(table.columns) - SHOWN_COLUMNS, 'more column', 'more columns')}.")
    remarks = _remarks(table)
    if remarks:
        parts.append("\n".join(f"- {remark}" for remark in remarks))
    return "\n\n".join(part.strip("\n") for part in parts)


def _remarks(table: Table) -> list[str]:
    """What stands out: the first number, the strongest group, the period, the gaps."""
    found = [describe_column(column) for column in table.of_kind("number")[:2]]
    numbers = table.of_kind("number")
    groups = [column for column in table.of_kind("text") if 2 <= column.distinct <= min(20, column.count / 2)]
    if numbers and groups:
        figures = group_figures(groups[0], numbers[0], "sum")
        if len(figures) > 1 and figures[0][1] > figures[-1][1]:
            (best, most), (worst, least) = figures[0], figures[-1]
            found.append(
                f"Of {code(groups[0].name)}, {code(best)} has the largest sum of {code(numbers[0].name)}"
                f" ({number(most)}), {code(worst)} the smallest ({number(least)})."
            )
    elif groups:
        found.append(describe_column(groups[0]))
    found += [describe_column(column) for column in table.of_kind("date")[:1]]
    lacking = [column for column in table.columns if column.missing]
    if lacking:
        found.append(f"Values are missing in {listed(code(column.name) for column in lacking[:8])}.")
    return found


def _structure(structure: Structure, document: Document) -> str:
    kinds = listed(
        f"{count:,} {kind}{'' if count == 1 else 's'}" for kind, count in structure.kinds.most_common()
    )
    article = "An" if structure.top[0] in "ao" else "A"
    text = f"{article} {structure.top}, {counted(structure.depth, 'level')} deep: {kinds}."
    if document.bytes:
        text = f"JSON of {size(document.bytes)}. {text}"
    if not structure.complete:
        text += " It has more; the figures are those of the part that was read."
    if structure.members:
        text += "\n\n" + "\n".join(f"- {code(name)}: {kind}" for name, kind in structure.members)
    return text


def _prose(profile: TextProfile, document: Document, key_sentences: bool) -> str:
    counts = [
        counted(profile.words, "word"),
        counted(profile.sentences, "sentence"),
        counted(profile.paragraphs, "paragraph"),
    ]
    time = duration(profile.reading_seconds)
    parts = [f"**{listed(counts)}**, {counted(profile.characters, 'character')}; about {time} to read."]
    if document.encoding not in ("UTF-8", ""):
        parts[0] += f" Its encoding is {document.encoding}."
    frequent = [(word, count) for word, count in profile.frequent(8)]
    if frequent:
        parts.append(
            f"Most frequent words: {listed(f'{code(word)} ({count:,})' for word, count in frequent)}."
        )
    numbers = profile.numbers
    if numbers is not None and numbers.count == 1:
        parts.append(f"There is one number in it: {number(numbers.total)}.")
    elif numbers is not None:
        parts.append(
            f"The {numbers.count:,} numbers in it sum up to **{number(numbers.total)}**: on average"
            f" {number(numbers.mean)}, from {number(numbers.minimum)} to {number(numbers.maximum)}."
        )
    parts += _markup(profile)
    if key_sentences and profile.sentences > 6 and profile.key_sentences:
        lines = "\n>\n".join(f"> {escaped_line(sentence)}" for sentence in profile.key_sentences)
        parts.append(f"The sentences that carry its most frequent words:\n\n{lines}")
    return "\n\n".join(parts)


def _markup(profile: TextProfile) -> list[str]:
    """What of Markdown a text has."""
    parts = [
        counted(count, noun)
        for count, noun in (
            (len(profile.headings), "heading"),
            (profile.list_items, "list item"),
            (profile.links, "link"),
            (profile.code_blocks, "code block"),
        )
        if count
    ]
    found = [f"It has {listed(parts)}."] if parts else []
    if len(profile.headings) > 1:
        titles = "\n".join(
            f"{'  ' * (level - 1)}- {escaped(title)}" for level, title in profile.headings[:20]
        )
        found.append(f"Its outline:\n\n{titles}")
    return found


def escaped_line(text: str) -> str:
    """Make a sentence harmless inside a quotation."""
    return shortened(text, 400).replace("<", "&lt;").replace("|", "\\|")
