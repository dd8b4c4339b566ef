"""Analysis of plain text and Markdown: words, sentences, reading time, numbers, headings, key sentences."""

import heapq
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from .wording import shortened

WORDS_PER_MINUTE = 238
"""Silent reading of English non-fiction (Brysbaert 2019, a meta-analysis of 190 studies)."""

BLOCK_CHARACTERS = 32_768
"""Text is searched in blocks: one search through all of it would hold the interpreter and the event loop."""

KEPT_NUMBERS = 50_000
KEPT_SENTENCES = 2_000
DIFFERENT_WORDS = 200_000
"""More different words are no language; the counts of those seen first stay true."""

WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")
_NUMBER = re.compile(r"(?<![\w.,])[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,18})(?:\.\d{1,18})?(?![\w]|[.,]\d)")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)]*\s+(?=[^a-z\s])")
_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(\S.*)$")
_LINK = re.compile(r"\[[^\[\]]{0,300}\]\([^()\s]{1,300}")
_LIST_ITEM = re.compile(r"^\s{0,12}(?:[-*+]|\d{1,4}[.)])\s")

_STOP_WORDS = """
a about above after again all also am an and any are as at be because been before being below between both
but by can could did do does doing down during each few for from further had has have having he her here
hers him his how i if in into is it it's its just me more most my no nor not of off on once only or other
our out over own please same she should so some such than that the their them then there these they this
those through to too under until up us very was we were what when where which while who whom why will with
would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""English words that say nothing of what a text is about."""


@dataclass(frozen=True, slots=True)
class NumberSummary:
    """The numbers found in a text."""

    count: int
    total: float
    mean: float
    median: float
    minimum: float
    maximum: float


@dataclass(slots=True)
class TextProfile:
    """What a text is made of; `counts` is word → occurrences in lower case."""

    characters: int = 0
    words: int = 0
    lines: int = 0
    paragraphs: int = 0
    sentences: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    longest_word: str = ""
    numbers: NumberSummary | None = None
    headings: list[tuple[int, str]] = field(default_factory=list)
    links: int = 0
    list_items: int = 0
    fences: int = 0
    key_sentences: list[str] = field(default_factory=list)

    @property
    def code_blocks(self) -> int:
        """Fenced code blocks; one that is never closed is one too."""
        return (self.fences + 1) // 2

    @property
    def reading_seconds(self) -> float:
        """How long an adult reads at it, in seconds."""
        return self.words / WORDS_PER_MINUTE * 60

    def frequent(self, limit: int) -> list[tuple[str, int]]:
        """The most frequent words that carry meaning, most frequent first; ties in alphabetical order."""
        meant = [(word, n) for word, n in self.counts.items() if word not in STOP_WORDS and len(word) > 1]
        meant = meant or list(self.counts.items())
        return heapq.nsmallest(limit, meant, key=lambda item: (-item[1], item[0]))


def profile_text(text: str) -> TextProfile:
    """Analyse a text; never raises, and takes time in proportion to its length."""
    profile = TextProfile(characters=len(text))
    found: list[float] = []
    sentences: list[str] = []
    goes_on = False
    for block in blocks(text):
        _count_words(block, profile)
        if len(found) < KEPT_NUMBERS:
            found += numbers_in(block)
        paragraphs = [part for part in re.split(r"\n[ \t]*\n", block) if part.strip()]
        profile.paragraphs += len(paragraphs) - (1 if goes_on and paragraphs else 0)
        goes_on = bool(paragraphs) and not block.endswith("\n\n")
        for paragraph in paragraphs:
            parts = split_sentences(paragraph)
            profile.sentences += len(parts)
            sentences += parts[: max(0, KEPT_SENTENCES - len(sentences))]
        _count_markup(block, profile)
    profile.numbers = summarise_numbers(found[:KEPT_NUMBERS])
    profile.key_sentences = key_sentences(sentences, profile.counts, 3)
    return profile


def blocks(text: str, length: int = BLOCK_CHARACTERS) -> Iterator[str]:
    """Cut a text into blocks that end at a paragraph, else a sentence, a line or a space, if there is one."""
    start = 0
    while start < len(text):
        end = min(start + length, len(text))
        if end < len(text):
            floor = start + length // 2
            for separator in ("\n\n", ". ", "\n", " "):
                cut = text.rfind(separator, floor, end)
                if cut > 0:
                    end = cut + len(separator)
                    break
        yield text[start:end]
        start = end


def numbers_in(text: str) -> list[float]:
    """Find the numbers of a text: `12`, `-3.5`, `1,240`; digits inside words, dates and versions are none."""
    found = []
    for match in _NUMBER.finditer(text):
        before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 2]
        # 2024-05-01, 10:30, 1/2: parts of dates, times and fractions are no quantities.
        dated = before in {"-", "/", ":"} or (after[:1] in {"-", "/", ":"} and after[1:2].isdigit())
        if not dated and not (match[0][0] in "+-" and before.isdigit()):
            found.append(float(match[0].replace(",", "")))
    return found


def summarise_numbers(values: list[float]) -> NumberSummary | None:
    """Sum and order numbers; None where there are none."""
    if not values:
        return None
    total = math.fsum(values)
    return NumberSummary(
        len(values), total, total / len(values), statistics.median(values), min(values), max(values)
    )


def split_sentences(paragraph: str) -> list[str]:
    """Cut a paragraph into sentences, each on one line; a heading or a list item is one of its own."""
    found: list[str] = []
    running: list[str] = []
    for line in [*paragraph.split("\n"), ""]:
        own = bool(_HEADING.match(line) or _LIST_ITEM.match(line) or line.startswith(("|", "```")))
        if (own or not line.strip()) and running:
            found += _SENTENCE_END.split(" ".join(running))
            running = []
        if own:
            found.append(line)
        elif line.strip():
            running.append(line.strip())
    return [sentence for sentence in found if any(character.isalnum() for character in sentence)]


def key_sentences(sentences: list[str], counts: Counter[str], limit: int) -> list[str]:
    """Choose the sentences whose words are the most frequent ones of the text, in the text's own order."""
    scored = []
    seen: set[str] = set()
    for place, sentence in enumerate(sentences):
        words = [word.lower() for word in WORD.findall(sentence[:1000])]
        meant = {word for word in words if word not in STOP_WORDS}
        plain = not sentence.lstrip().startswith(("#", "[", "|", "`")) and "](" not in sentence
        if plain and len(meant) >= 3 and len(sentence) <= 400 and sentence not in seen:
            seen.add(sentence)
            scored.append((-sum(counts[word] for word in meant) / (len(words) + 5), place))
    chosen = sorted(place for _, place in sorted(scored)[:limit])
    return [shortened(sentences[place], 400) for place in chosen]


def occurrences(text: str, wanted: str) -> int:
    """Count a word or phrase in a text, as a whole word, in any case."""
    pattern = re.compile(rf"(?<!\w){re.escape(wanted)}(?!\w)", re.IGNORECASE)
    return sum(sum(1 for _ in pattern.finditer(block)) for block in blocks(text))


def _count_words(block: str, profile: TextProfile) -> None:
    words = WORD.findall(block)
    profile.words += len(words)
    if words:
        longest = max(words, key=len)
        if len(longest) > len(profile.longest_word):
            profile.longest_word = longest
    for word in words:
        lower = word.lower()
        if lower in profile.counts or len(profile.counts) < DIFFERENT_WORDS:
            profile.counts[lower] += 1


def _count_markup(block: str, profile: TextProfile) -> None:
    in_code = profile.fences % 2 == 1
    for line in block.split("\n"):
        profile.lines += bool(line.strip())
        if line.lstrip().startswith("```"):
            profile.fences += 1
            in_code = not in_code
        elif not in_code and len(line) < 2000:
            heading = _HEADING.match(line)
            if heading and len(profile.headings) < 1000:
                profile.headings.append((len(heading[1]), shortened(heading[2].rstrip("# \t"), 120)))
            profile.list_items += bool(_LIST_ITEM.match(line))
            profile.links += sum(1 for _ in _LINK.finditer(line))
