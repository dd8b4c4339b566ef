"""Reading of JSON, whole where it is small and piece by piece where it is large; its structure and tables."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from .tables import KEPT_COLUMNS, Table, build_table, text_cells, unique_names
from .wording import shortened

WHOLE_CHARACTERS = 262_144
"""JSON up to this length is parsed in one call, which holds the interpreter for about 3 ms."""

WINDOW_CHARACTERS = 65_536
KEPT_ITEMS = 10_000
"""Items per array of a large document: the garbage collector stops everybody while it looks at them."""

DEEPEST = 6
"""How far down a large document is taken apart; what lies below must fit into one window."""

WALKED_VALUES = 500_000


class JsonUnreadable(Exception):
    """Text is no JSON that can be read; the message is a sentence's end for people."""


@dataclass(slots=True)
class Structure:
    """What a JSON value is made of; `members` names its first keys (or its items) with what they hold."""

    top: str
    depth: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    members: list[tuple[str, str]] = field(default_factory=list)
    complete: bool = True


def read_json(text: str, complete: bool = True) -> tuple[Any, bool]:
    """Return the value and whether it is all of it; JsonUnreadable says what was wrong and where.

    `complete` False says that `text` is cut off. A large document is read up to KEPT_ITEMS items per array.
    """
    if complete and len(text) <= WHOLE_CHARACTERS:
        try:
            return json.loads(text, parse_constant=_no_constant), True
        except RecursionError as error:
            raise JsonUnreadable("it is nested too deeply to be read") from error
        except ValueError as error:
            raise JsonUnreadable(_where(error, text, 0)) from error
    pieces = _Pieces(text, complete)
    value = pieces.value(0)
    if pieces.whole and text[pieces.place :].strip():
        raise JsonUnreadable(f"there is more after its end, at line {_line(text, pieces.place)}")
    return value, pieces.whole


def read_json_lines(text: str, complete: bool = True) -> tuple[list[Any], bool]:
    """Read one JSON value per line (JSON Lines); errors as read_json's."""
    found: list[Any] = []
    lines = text.split("\n")
    if not complete:
        lines.pop()
    for number, line in enumerate(lines, 1):
        if len(found) == KEPT_ITEMS:
            return found, False
        if line.strip():
            try:
                found.append(json.loads(line, parse_constant=_no_constant))
            except RecursionError as error:
                raise JsonUnreadable(f"line {number} is nested too deeply to be read") from error
            except ValueError as error:
                raise JsonUnreadable(f"line {number} is not JSON") from error
    return found, complete


def describe(value: Any, complete: bool = True) -> Structure:
    """Count what a value is made of, without recursion; stops after WALKED_VALUES values."""
    structure = Structure(kind_of(value), complete=complete)
    structure.members = _members(value)
    stack: list[tuple[Any, int]] = [(value, 1)]
    walked = 0
    while stack and walked < WALKED_VALUES:
        item, depth = stack.pop()
        walked += 1
        structure.kinds[kind_of(item).split(" ")[0]] += 1
        if isinstance(item, dict):
            structure.keys.update(item.keys())
            stack += [(part, depth + 1) for part in item.values()]
        elif isinstance(item, list):
            stack += [(part, depth + 1) for part in item]
        structure.depth = max(structure.depth, depth if isinstance(item, (dict, list)) else depth - 1)
    structure.complete = complete and not stack
    return structure


def kind_of(value: Any) -> str:
    """Name what a value is: `object with 3 keys`, `array of 20 items`, `string`, `number`, `boolean`, …"""
    if isinstance(value, dict):
        return f"object with {len(value):,} key{'' if len(value) == 1 else 's'}"
    if isinstance(value, list):
        return f"array of {len(value):,} item{'' if len(value) == 1 else 's'}"
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    return "number" if isinstance(value, (int, float)) else "string"


def tables_in(value: Any) -> list[tuple[str, Table]]:
    """Find what can be read as a table, largest first: arrays of objects or of scalars, objects of numbers.

    Each comes with the path to it, `$` for the document itself, `data.items` for one inside.
    """
    found = [(path, table) for path, item in _containers(value) if (table := _table_of(item)) is not None]
    return sorted(found, key=lambda entry: -entry[1].rows * len(entry[1].columns))[:3]


def _containers(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the value and the containers in its first three levels of keys."""
    level: list[tuple[str, Any]] = [("$", value)]
    for _ in range(4):
        yield from level
        level = [
            (key if path == "$" else f"{path}.{key}", part)
            for path, item in level
            if isinstance(item, dict)
            for key, part in item.items()
            if isinstance(part, (dict, list)) and part
        ][:100]


def _table_of(value: Any) -> Table | None:
    if isinstance(value, dict):
        numbers = [
            part for part in value.values() if isinstance(part, (int, float)) and not isinstance(part, bool)
        ]
        if len(numbers) < 2 or len(numbers) < 0.8 * len(value):
            return None
        return _rows_of(["key", "value"], (list(pair) for pair in value.items()))
    if not isinstance(value, list) or not value:
        return None
    sample = value[:1000]
    if sum(isinstance(item, dict) and bool(item) for item in sample) >= 0.9 * len(sample):
        return _of_objects([item for item in value if isinstance(item, dict)])
    if len(value) > 1 and not any(isinstance(item, (dict, list)) for item in sample):
        return _rows_of(["value"], ([item] for item in value))
    return None


def _of_objects(items: list[dict[str, Any]]) -> Table:
    """Make a table of objects: a column per key; the scalars of an object inside become `key.part`."""
    keys = list(dict.fromkeys(key for item in items for key in _flattened(item)))[:KEPT_COLUMNS]
    flat = (_flattened(item) for item in items)
    return _rows_of(keys, ([item.get(key) for key in keys] for item in flat))


def _flattened(item: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in item.items():
        if isinstance(value, dict) and value and len(value) <= 20:
            flat.update({f"{key}.{part}": inner for part, inner in value.items()})
        else:
            flat[key] = value
    return flat


def _rows_of(names: list[str], rows: Iterable[list[Any]]) -> Table:
    return build_table(unique_names(names), (text_cells(row) for row in rows))


def _members(value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [(shortened(key, 80), kind_of(part)) for key, part in list(value.items())[:20]]
    if isinstance(value, list):
        kinds = Counter(kind_of(part).split(" ")[0] for part in value)
        return [(f"{count:,} ×", kind) for kind, count in kinds.most_common()]
    return []


class _Pieces:
    """Reads a large document value by value through a sliding window; no call holds the interpreter long."""

    def __init__(self, text: str, complete: bool) -> None:
        self.text = text
        self.complete = complete
        self.whole = True
        self.place = 0
        self._decoder = json.JSONDecoder(parse_constant=_no_constant)
        self._start = 0
        self._window = ""

    def value(self, depth: int) -> Any:
        """Read the value at `place`; `whole` becomes False where something was left out."""
        self._skip_space()
        opening = self.text[self.place : self.place + 1]
        found, value = self._small()
        if found:
            return value
        if opening not in ("{", "[") or depth == DEEPEST:
            self._give_up("a value")
        self.place += 1
        return self._object(depth) if opening == "{" else self._array(depth)

    def _small(self) -> tuple[bool, Any]:
        """Read a value that lies in the window, moving the window here once."""
        for fresh in (False, True):
            at = self.place - self._start
            if fresh or not 0 <= at < len(self._window):
                self._start, at = self.place, 0
                self._window = self.text[self.place : self.place + WINDOW_CHARACTERS]
            try:
                value, end = self._decoder.raw_decode(self._window, at)
            except RecursionError as error:
                raise JsonUnreadable("it is nested too deeply to be read") from error
            except ValueError:
                continue
            if end < len(self._window) or self._start + end == len(self.text):
                # A number that touches the window's end may go on behind it.
                self.place = self._start + end
                return True, value
        return False, None

    def _array(self, depth: int) -> list[Any]:
        items: list[Any] = []
        while not self._closed("]", bool(items)):
            if len(items) == KEPT_ITEMS or not self.whole:
                self.whole = False
                break
            try:
                items.append(self.value(depth + 1))
            except JsonCut:
                break
        return items

    def _object(self, depth: int) -> dict[str, Any]:
        members: dict[str, Any] = {}
        while self.whole and not self._closed("}", bool(members)):
            try:
                key = self.value(DEEPEST)
                self._skip_space()
                if not isinstance(key, str) or self.text[self.place : self.place + 1] != ":":
                    self._give_up("a key and a colon")
                self.place += 1
                members[key] = self.value(depth + 1)
            except JsonCut:
                break
        return members

    def _closed(self, bracket: str, has_items: bool) -> bool:
        """Step over a closing bracket (True) or the comma before the next item (False)."""
        self._skip_space()
        following = self.text[self.place : self.place + 1]
        if following == bracket:
            self.place += 1
            return True
        if not following and not self.complete:
            self.whole = False
            return True
        if has_items:
            if following != ",":
                raise JsonUnreadable(f"a comma is missing at line {_line(self.text, self.place)}")
            self.place += 1
        return False

    def _skip_space(self) -> None:
        while self.text[self.place : self.place + 1] in (" ", "\n", "\r", "\t"):
            self.place += 1

    def _give_up(self, wanted: str) -> NoReturn:
        near_end = len(self.text) - self.place <= WINDOW_CHARACTERS
        if not self.complete and near_end:
            self.whole = False
            raise JsonCut(f"it breaks off at line {_line(self.text, self.place)}")
        raise JsonUnreadable(f"{wanted} is expected at line {_line(self.text, self.place)}")


class JsonCut(JsonUnreadable):
    """The text ends inside a value because it was cut off."""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _where(error: ValueError, text: str, offset: int) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return str(error)[:120]


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1
