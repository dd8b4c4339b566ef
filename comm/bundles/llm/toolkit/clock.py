"""The clock: what a model cannot know."""

from typing import Annotated
from zoneinfo import ZoneInfo

from comm.bundles.llm.tools import ToolError, tool
from comm.turns.context import TurnContext


@tool
async def current_time(
    turn: TurnContext,
    timezone: Annotated[str, "An IANA name such as Europe/Rome; leave it out for the user's own zone."] = "",
) -> str:
    """Tell the present date, weekday and time. Use it wherever "today", "now" or an age matters."""
    now = turn.now()
    if timezone:
        try:
            now = now.astimezone(ZoneInfo(timezone))
        except (KeyError, ValueError, OSError):
            raise ToolError(f"there is no time zone {timezone[:60]!r}; names are like Europe/Rome") from None
    week = now.isocalendar().week
    return f"{now:%A}, {now.isoformat(timespec='seconds')} ({timezone or now.tzname()}), ISO week {week}"
