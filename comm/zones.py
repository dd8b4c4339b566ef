"""The user's time zone, as clients tell it: by name, by offset, or not at all."""

from datetime import UTC, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAY_MIN = 24 * 60


def user_zone(name: str, utc_offset_min: int | None) -> tzinfo:
    """Return the named zone, else the offset (minutes east of UTC), else UTC.

    A name that nobody knows is as good as none: clients send what their platform calls it.
    """
    if name:
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            return user_zone("", utc_offset_min)
    if utc_offset_min is not None and abs(utc_offset_min) < DAY_MIN:
        return timezone(timedelta(minutes=utc_offset_min))
    return UTC
