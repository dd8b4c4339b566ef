"""The second tier of history: what a session's log no longer holds, read back from an archive."""

from django.utils.module_loading import import_string

from .conf import comm_settings
from .history import Entry, Position


class Archive:
    """Base class of an archive; `COMM["ARCHIVE"]` names the one in use.

    This one keeps nothing, so it can vouch for nothing.
    """

    async def read(self, session_id: str, after: Position, upto: Position, limit: int) -> list[Entry] | None:
        """Return the oldest `limit` entries with `after < position <= upto`, without a gap.

        An empty list says that nothing lies between the two; None says that the archive cannot vouch
        for what does (rows are missing, or `after` never was a position of this session).
        """
        return None

    async def fold_text(self, session_id: str, turn_id: str, marker: str) -> str:
        """Return the concatenated delta text of one marker of a turn, as far as it is kept."""
        return ""


_archives: dict[str, Archive] = {}


def get_archive() -> Archive:
    """Return the process's archive, made on first use."""
    path = comm_settings().ARCHIVE
    if path not in _archives:
        _archives[path] = import_string(path)()
    return _archives[path]
