"""The queue that hands accepted turns to workers; there is none where the serving processes run them."""

from collections.abc import Awaitable, Callable, Sequence
from functools import cache

from django.core.signals import setting_changed
from django.dispatch import receiver
from django.utils.module_loading import import_string

from comm.conf import comm_settings

RunTurn = Callable[[str], Awaitable[None]]
"""Runs what is next in the conversation of a rung turn, and returns with its end."""


class TurnQueue:
    """Base class of queues, named in `COMM["TURN_QUEUE"]`.

    The queue only rings: whether a turn runs, its row decides. So it may ring twice, late, or for a turn that
    has ended; what it loses, a sweep rings again.
    """

    def ring(self, turn_ids: Sequence[str]) -> None:
        """Let some worker hear of these turns when the open transaction commits, at once where there is none.

        Synchronous, on Django's own connection. A turn that is rung already and not yet heard is not rung twice.
        """
        raise NotImplementedError

    async def work(self, run: RunTurn, concurrency: int) -> None:
        """Call `run` for each turn that is rung, so many at once; return when `stop()` was called and all have ended.

        Outlives a queue that is away for a while.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Hear of no more turns."""
        raise NotImplementedError


@cache
def turn_queue() -> TurnQueue | None:
    """Return the queue of the settings; None where turns run in the processes that serve."""
    path = comm_settings().TURN_QUEUE
    if not path:
        return None
    queue: TurnQueue = import_string(path)()
    return queue


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: object) -> None:
    if setting == "COMM":
        turn_queue.cache_clear()
