"""A circuit breaker: after failures in a row it keeps callers away for a while, then lets one try.

It only counts; whatever it guards runs outside of its lock. (pybreaker's `call` holds its lock while the
call runs, which would put every accepted message of a process in one queue.)
"""

import threading
import time
from collections.abc import Callable


class Breaker:
    """Closed until `failures` in a row, then open for `reset_seconds`; then one caller at a time may try."""

    def __init__(
        self, failures: int, reset_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._failures = failures
        self._reset_seconds = reset_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._open_until = 0.0

    def seconds_left(self) -> float:
        """Return 0 when the caller may go ahead, else for how long it may not.

        The first who asks after the time is up may go ahead; those behind it wait for how that ends.
        """
        with self._lock:
            if self._in_a_row < self._failures:
                return 0.0
            now = self._clock()
            if now < self._open_until:
                return self._open_until - now
            self._open_until = now + self._reset_seconds
            return 0.0

    def succeeded(self) -> None:
        """Close: what is guarded works."""
        with self._lock:
            self._in_a_row = 0

    def failed(self) -> None:
        """Count a failure; at the last one allowed, open."""
        with self._lock:
            self._in_a_row += 1
            if self._in_a_row >= self._failures:
                self._open_until = self._clock() + self._reset_seconds
