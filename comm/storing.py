"""What bundles say, as rows can hold it: JSON as it went out, and text without the NUL that PostgreSQL refuses."""

from typing import Any

import msgspec

NUL, INSTEAD = "\0", "\N{REPLACEMENT CHARACTER}"

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()


def storable_text(text: str) -> str:
    """Return a text with a sign in the place of each NUL."""
    return text.replace(NUL, INSTEAD)


def storable_json(value: Any) -> Any:
    """Return what was encoded into an event as whoever received it read it, with `storable_text` for its texts.

    So a decimal is a text, and a moment too.
    """
    return _without_nul(_decoder.decode(_encoder.encode(value)))


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, list):
        return [_without_nul(each) for each in value]
    if isinstance(value, dict):
        return {storable_text(name): _without_nul(each) for name, each in value.items()}
    return value
