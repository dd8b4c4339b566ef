"""What a message's `config` may ask of the demo bundle."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_PACE_MS = 60_000
MOST_DELTAS = 100_000
"""About 80 MB of envelopes; a turn of a day at the longest pace is the asker's own wish."""


class OptionInvalid(Exception):
    """A field of `config` has a value that means nothing; the message names the field."""

    def __init__(self, field: str, wanted: str, value: object) -> None:
        super().__init__(f"{field} must be {wanted}, not {str(value)[:40]!r}")
        self.field = field


@dataclass(frozen=True, slots=True)
class Options:
    """`pace_seconds` between deltas (0: as fast as can be), and at least so many answer `deltas`."""

    pace_seconds: float = 0.015
    deltas: int = 0


def read_options(config: Mapping[str, Any], default: Options | None = None) -> Options:
    """Read `config.pace_ms` and `config.deltas`, over the default. Errors: OptionInvalid."""
    default = default or Options()
    pace = config.get("pace_ms")
    deltas = config.get("deltas")
    if pace is not None and not (_is_number(pace) and 0 <= pace <= LONGEST_PACE_MS):
        raise OptionInvalid("config.pace_ms", f"a number of milliseconds from 0 to {LONGEST_PACE_MS}", pace)
    if deltas is not None and not (_is_number(deltas) and deltas % 1 == 0 <= deltas <= MOST_DELTAS):
        raise OptionInvalid("config.deltas", f"a whole number from 0 to {MOST_DELTAS}", deltas)
    return Options(
        default.pace_seconds if pace is None else pace / 1000,
        default.deltas if deltas is None else int(deltas),
    )


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) or math.isfinite(value)
