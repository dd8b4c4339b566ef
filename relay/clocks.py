"""The user's clock as a client tells it: in headers, in a query, in an auth message."""

from typing import NamedTuple

ZONE_CHARACTERS = 64
UTC_OFFSET_LIMIT_MIN = 14 * 60
"""No clock on earth is further from UTC."""


class Clock(NamedTuple):
    """A time zone by name (empty when unknown) and minutes east of UTC (None when unknown)."""

    timezone: str = ""
    utc_offset_min: int | None = None


def read_clock(zone: str, offset: str) -> Clock:
    """Read what a client says of its clock; what nobody's clock shows is as good as unsaid."""
    name = zone.strip()
    known = len(name) <= ZONE_CHARACTERS and name.isprintable()
    return Clock(name if known else "", _offset(offset))


def _offset(text: str) -> int | None:
    try:
        offset = int(text)
    except ValueError:
        return None
    return offset if abs(offset) <= UTC_OFFSET_LIMIT_MIN else None
