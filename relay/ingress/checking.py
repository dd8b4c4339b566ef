"""Checks that every body goes through, and the sentences that say what is wrong with one.

Whatever is wrong is a BadRequest whose sentence begins with the name of the field.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from relay.exceptions import BadRequest

Path = tuple[str | int, ...]

DEPTH_LIMIT = 64
"""Deeper JSON is nobody's message; encoders that store or forward it give up at some 1,000."""


def decode_json(body: bytes | str, field: str) -> Any:
    """Decode JSON; what is none is a BadRequest about `field`."""
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise BadRequest(field, "is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BadRequest(field, f"is not valid JSON ({error})") from None


def identifier(value: Any, field: str, limit: int = 100) -> str:
    """Check an id that came from a client; null is the empty string."""
    text: str = (convert(value, str | None, field) or "").strip()
    if len(text) > limit:
        raise BadRequest(field, f"has {len(text)} characters; at most {limit} are allowed")
    # A slash could not be written in the URLs that name conversations by their id.
    if not text.isprintable() or "/" in text:
        raise BadRequest(field, "has a control character or a slash")
    return text


_NAMES = {
    "str": "a string",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
    "null": "null",
}
_ERROR = re.compile(r"(?P<text>.*?)(?: - at `\$(?P<path>.*)`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(?P<expected>[^`]*)`, got `(?P<got>[^`]*)`")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")


def convert(value: Any, type: Any, field: str) -> Any:
    """Check a value against a type; `field` is its name, or a prefix that ends in a dot, or empty."""
    try:
        return msgspec.convert(value, type)
    except msgspec.ValidationError as error:
        raise _reworded(str(error), field) from None


def _reworded(error: str, field: str) -> BadRequest:
    """Turn msgspec's wording into ours: the field's name first, JSON's own words for types."""
    match = _ERROR.fullmatch(error)
    text, path = (match["text"], match["path"] or "") if match else (error, "")
    where = field.removesuffix(".") + path
    missing = _MISSING.fullmatch(text)
    if missing:
        return BadRequest(f"{where}.{missing['name']}".lstrip("."), "is missing")
    expected = _EXPECTED.match(text)
    if expected:
        wanted = [_NAMES.get(name, name) for name in expected["expected"].split(" | ") if name != "null"]
        text = f"expected {' or '.join(wanted)}, got {_NAMES.get(expected['got'], expected['got'])}"
    return BadRequest(where.lstrip(".") or "body", text)


def name_of(value: Any) -> str:
    """Say what kind of JSON value this is."""
    if value is None:
        return "null"
    kinds = {bool: "bool", str: "str", int: "int", float: "float", list: "array", dict: "object"}
    return _NAMES[kinds.get(type(value), "object")]


def check_storable(document: Any, root: Path = ()) -> None:
    """Refuse what a database or an envelope could not take: NUL, lone surrogates, NaN, giant numbers, depth.

    Iterative: a document that is nested too deeply must not break the check for it.
    """
    if not isinstance(document, (dict, list)):
        _check_scalar(document, root)
        return
    stack: list[tuple[Path, Any]] = [(root, document)]
    while stack:
        path, value = stack.pop()
        if len(path) > DEPTH_LIMIT:
            raise BadRequest(_written(path[:3]), f"is nested more than {DEPTH_LIMIT} levels deep")
        for key, part in _parts(value):
            _check_scalar(key, path, "a key with ")
            if isinstance(part, (dict, list)):
                stack.append(((*path, key), part))
            else:
                _check_scalar(part, path, key=key)


def _check_scalar(value: Any, path: Path, prefix: str = "", key: str | int | None = None) -> None:
    problem = _unstorable(value)
    if problem:
        raise BadRequest(_written(path if key is None else (*path, key)) or "body", f"has {prefix}{problem}")


def _parts(value: dict[Any, Any] | list[Any]) -> Iterator[tuple[Any, Any]]:
    return iter(value.items()) if isinstance(value, dict) else enumerate(value)


def _unstorable(value: Any) -> str:
    """Say what is wrong with a scalar; an empty string says nothing is."""
    if isinstance(value, str):
        if "\0" in value:
            return "a NUL character, which text cannot hold"
        try:
            value.encode()
        except UnicodeEncodeError:
            return "a lone surrogate, which is no character"
    elif isinstance(value, bytes) or not (value is None or isinstance(value, (bool, int, float))):
        return "binary content; files go beside the message"
    elif isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "a number beyond 64 bits"
    return ""


def _written(path: Path) -> str:
    """Write a path as people do: `message.payload.rows[3]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".").encode("utf-8", "replace").decode()
