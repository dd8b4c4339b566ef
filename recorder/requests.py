"""Following a replay request from outside the serving process."""

import time
from collections.abc import Callable, Iterator

from .models import ReplayRequest

TAKEN_WITHIN_SECONDS = 10.0
"""A serving process looks twice a second; one that has not by then is not there."""
LOOK_SECONDS = 0.2


class ReplayNotTaken(RuntimeError):
    """A replay was not shown to its end: no server took it, or it failed there."""


def watch(
    request: ReplayRequest,
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[int]:
    """Yield how many envelopes have been shown, until all are. Errors: ReplayNotTaken says why not."""
    began = now()
    while True:
        request.refresh_from_db()
        yield request.shown
        if request.state == ReplayRequest.State.DONE:
            return
        if request.state == ReplayRequest.State.FAILED:
            raise ReplayNotTaken(f"The replay was not shown to its end: {request.error}.")
        if (
            request.state == ReplayRequest.State.PENDING
            and now() - began > TAKEN_WITHIN_SECONDS
            and withdraw(request)
        ):
            raise ReplayNotTaken("No server took the replay: is one running on this database?")
        sleep(LOOK_SECONDS)


def withdraw(request: ReplayRequest) -> bool:
    """Withdraw a request that no server has taken; False when one has."""
    pending = ReplayRequest.objects.filter(pk=request.pk, state=ReplayRequest.State.PENDING)
    return bool(pending.update(state=ReplayRequest.State.WITHDRAWN))
