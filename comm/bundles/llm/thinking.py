"""Telling reasoning from answer where a server leaves both in the content, between `<think>` tags."""

OPENING, CLOSING = "<think>", "</think>"


class ThinkSplitter:
    """Cuts a streamed content into reasoning and answer; a tag may be spread over pieces.

    Reasoning is what stands between the tags at the very beginning; later ones are text like any other.
    """

    def __init__(self) -> None:
        self._held = ""
        self._inside: bool | None = None
        self._at_beginning = False

    def feed(self, text: str) -> tuple[str, str]:
        """Return the reasoning and the answer that can be told by now."""
        reasoning = ""
        self._held += text
        if self._inside is None:
            self._begin()
        if self._inside:
            reasoning = self._reason()
        if self._inside is not False:
            return reasoning, ""
        answer, self._held = self._held, ""
        return reasoning, self._unindented(answer)

    def rest(self) -> tuple[str, str]:
        """Return what was held back: the end of the stream tells what it was."""
        held, self._held = self._held, ""
        return (held, "") if self._inside else ("", held)

    def _unindented(self, text: str) -> str:
        """Leave out the blank lines around the tags: they are nobody's."""
        if self._at_beginning:
            text = text.lstrip()
            self._at_beginning = not text
        return text

    def _begin(self) -> None:
        opening = self._held.lstrip()
        if opening.startswith(OPENING):
            self._inside = self._at_beginning = True
            self._held = opening[len(OPENING) :]
        elif not OPENING.startswith(opening):
            self._inside = False

    def _reason(self) -> str:
        before, tag, after = self._held.partition(CLOSING)
        if tag:
            self._inside, self._held = False, after
            reasoning = self._unindented(before)
            self._at_beginning = True
            return reasoning
        kept = _tail_of_tag(self._held)
        said, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return self._unindented(said)


def _tail_of_tag(text: str) -> int:
    """Count the characters at the end that may be the beginning of the closing tag."""
    return next((count for count in range(len(CLOSING) - 1, 0, -1) if text.endswith(CLOSING[:count])), 0)
