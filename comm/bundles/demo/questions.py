"""What a message asks for, by its words (English): functions, columns, values, the conversation itself."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .tables import Column, Table

FUNCTIONS = {
    "mean": r"average|averages|mean|avg",
    "median": r"median",
    "max": r"max|maximum|highest|largest|biggest|greatest|most expensive",
    "min": r"min|minimum|lowest|smallest|least|cheapest",
    "sum": r"sum|sums|total|totals|altogether|add up|adds up",
    "missing": r"missing|empty|blank|blanks|incomplete",
    "distinct": r"distinct|unique|different",
    "top": r"most frequent|most common|most often|frequent|common|popular|top",
    "count": r"how many|count|number of",
    "range": r"range|period|span|cover|covers|from when|latest|newest|last date|earliest|first date",
    "rows": r"rows|row|records|entries|lines",
    "columns": r"columns|fields|headers",
    "words": r"words|word count",
    "sentences": r"sentences",
    "paragraphs": r"paragraphs",
    "characters": r"characters|letters",
    "headings": r"headings|outline|contents|chapters|sections",
    "links": r"links",
    "longest": r"longest word",
    "reading": r"reading time|how long|read it|read this|to read",
    "summary": r"summary|summarise|summarize|sum up|key sentences|main points|gist|sentences matter most",
    "often": r"how often|how many times|occurrences of|mentions of|occur",
    "keys": r"keys",
    "depth": r"deep|depth|nested|nesting",
    "chart": r"chart|plot|graph|draw|histogram|diagram",
}
_PATTERNS = {name: re.compile(rf"\b(?:{pattern})\b") for name, pattern in FUNCTIONS.items()}
_QUOTED = re.compile(
    r"\"([^\"\n]{1,80})\"|“([^”\n]{1,80})”|‘([^’\n]{1,80})’|`([^`\n]{1,80})`|(?<!\w)'([^'\n]{1,80})'(?!\w)"
)
_THE_WORD = re.compile(
    r"\b(?:word|term|name|phrase|times does|often does|often is|mentions of|occurrences of) ([^\W_]+)"
)
_CONVERSATION = re.compile(
    r"\b(?:what (?:did|have|had) (?:i|we|you)"
    r"|(?:summar\w+|recap|sum up)\b.{0,20}\b(?:conversation|chat|discussion|dialogue)"
    r"|(?:our|this|the) (?:conversation|chat|discussion) so far|what was my (?:first|last|previous|earlier)"
    r"|my (?:first|last|previous|earlier) question)"
)
_PREVIOUS = re.compile(r"\b(?:previous|last|earlier) (?:message|text|note)\b")
_FILE = re.compile(
    r"\b(?:file|files|table|data|dataset|csv|json|document|attachment|spreadsheet|column|columns|rows?|chart)\b"
)
_CLOCK = re.compile(
    r"\b(?:what time is it|what is the time|what day is it|what is the date|which day is it|today s date)\b"
)
_EACH = re.compile(r"\b(?:by|per|for each|in each|for every|in every|grouped by|across)(?: the)? ")

_UNNAMED_WORDS = """
a an and are as at be by do each false find for have how i in is it many me most much no not of on or per show
tell that the this to true us was we what when where which who with yes you
"""
_UNNAMED = frozenset(_UNNAMED_WORDS.split())
"""Values and column names that a sentence holds without meaning them."""


@dataclass(frozen=True, slots=True)
class Question:
    """A message as a question. `plain` is its text in lower case without punctuation, between blanks."""

    text: str
    plain: str
    functions: tuple[str, ...]
    quoted: tuple[str, ...]

    def asks(self, *functions: str) -> bool:
        """Tell whether any of these functions is asked for."""
        return any(name in self.functions for name in functions)

    @property
    def word(self) -> str:
        """The word or phrase that is asked about by name, "" for none."""
        if self.quoted:
            return self.quoted[0]
        named = _THE_WORD.search(self.plain) if self.asks("often") else None
        return named[1] if named else ""

    @property
    def about_conversation(self) -> bool:
        """Whether the conversation itself is asked about."""
        return bool(_CONVERSATION.search(self.plain)) and not self.about_previous

    @property
    def about_previous(self) -> bool:
        """Whether something is to be computed from the message before."""
        return bool(_PREVIOUS.search(self.plain)) and bool(self.functions or self.quoted)

    @property
    def about_file(self) -> bool:
        """Whether a file, a table or a part of one is spoken of."""
        return bool(_FILE.search(self.plain))

    @property
    def about_clock(self) -> bool:
        """Whether the time or the date is asked for."""
        return bool(_CLOCK.search(self.plain))


def aside_from(question: Question, name: str) -> Question:
    """The question without a file's name in it: `sales.csv` names no column `sales`."""
    if "." not in name or name.lower() not in question.text.lower():
        return question
    return understand(re.sub(re.escape(name), " ", question.text, flags=re.IGNORECASE))


def understand(text: str) -> Question:
    """Recognise what a message asks for; only its first 2,000 characters are looked at."""
    text = text[:2000]
    plain = plain_words(text)
    found = [(match.start(), name) for name, pattern in _PATTERNS.items() if (match := pattern.search(plain))]
    quoted = tuple(next(filter(None, groups)).strip() for groups in _QUOTED.findall(text))
    return Question(text, plain, tuple(name for _, name in sorted(found)), tuple(filter(None, quoted)))


def split_question(text: str) -> tuple[str, str]:
    """Tell the question of a message from the text that it is about; both are the whole if nothing tells."""
    first, _, rest = text.strip().partition("\n")
    if rest.strip() and first.rstrip().endswith((":", "?")) and len(first) < 300:
        return first, rest.strip()
    before, _, last = text.strip().rpartition("\n")
    if before.strip() and last.rstrip().endswith("?") and len(last) < 300:
        return last, before.strip()
    head, colon, body = text.strip().partition(": ")
    if colon and 5 < len(head) < 200 and len(body) > 20 and understand(head).functions:
        return head, body
    return text, text


def plain_words(text: str) -> str:
    """Reduce a text to lower-case words between single blanks, so that names can be looked for in it."""
    words = re.findall(r"[^\W_]+", text.lower())
    return f" {' '.join(words)} "


def names_in(question: Question, table: Table) -> list[Column]:
    """The columns that a question names, in its order; `unit_price` is named by "unit price"."""
    found: list[tuple[int, int, Column]] = []
    for column in table.columns:
        for form in forms_of(column.name):
            place = question.plain.find(form)
            if place >= 0:
                found.append((place, -len(form), column))
                break
    ordered = sorted(found, key=lambda item: item[:2])
    # "unit price" names `unit_price`, not also a column `price` inside of it.
    kept: list[Column] = []
    end = -1
    for place, minus_length, column in ordered:
        if place + 1 >= end:
            kept.append(column)
            end = place - minus_length
    return kept


def forms_of(name: str) -> list[str]:
    """The forms in which a column may be named: its words, in the singular or the plural."""
    plain = plain_words(name).strip()
    if not plain or plain in _UNNAMED:
        return []
    forms = [plain, plain + "s", plain + "es"]
    if plain.endswith("y"):
        forms.append(plain[:-1] + "ies")
    if plain.endswith("s") and len(plain) > 3:
        forms.append(plain[:-1])
    return [f" {form} " for form in forms]


def group_in(question: Question, columns: Sequence[Column]) -> Column | None:
    """The column by which a question wants its answer divided: "per region", "for each region"."""
    for each in _EACH.finditer(question.plain):
        rest = " " + question.plain[each.end() :]
        for column in columns:
            if any(rest.startswith(form) for form in forms_of(column.name)):
                return column
    return None


def value_in(question: Question, table: Table, besides: Column | None) -> tuple[Column, str] | None:
    """The value of a text column that a question names: "how many rows have North"; None for none.

    A value in quotes wins; longer values win over shorter ones.
    """
    quoted = {quote.casefold() for quote in question.quoted}
    unmeant = {form for column in table.columns for form in forms_of(column.name)}
    unmeant.update(f" {word} " for word in _UNNAMED)
    best: tuple[int, Column, str] | None = None
    for column in table.of_kind("text"):
        if column is besides or column.distinct > 2000:
            continue
        for value in column.counts:
            plain = plain_words(value[:100])
            is_quoted = value.casefold() in quoted
            named = len(plain) > 3 and plain in question.plain and plain not in unmeant
            rank = len(plain) + (1000 if is_quoted else 0)
            if (is_quoted or named) and (best is None or rank > best[0]):
                best = (rank, column, value)
    return (best[1], best[2]) if best else None
