"""Turn ids: `turn_YYYY-MM-DD-HH-MM-SS-mmm` in UTC, unique."""

import threading
import time
from datetime import UTC, datetime

_lock = threading.Lock()
_last_ms = 0


def mint_turn_id() -> str:
    """Return an id that this process never gave out before: the present, or the next free millisecond.

    Another process may have given it out; the database's constraint tells, and the caller mints again.
    """
    global _last_ms
    with _lock:
        _last_ms = max(time.time_ns() // 1_000_000, _last_ms + 1)
        ms = _last_ms
    moment = datetime.fromtimestamp(ms // 1000, UTC)
    return f"turn_{moment:%Y-%m-%d-%H-%M-%S}-{ms % 1000:03d}"
