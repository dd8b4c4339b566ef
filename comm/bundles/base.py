"""The base class of bundles: chat workflows that answer a turn."""

from collections.abc import Sequence

from comm.filters import IEventFilter
from comm.turns.context import TurnContext


class Bundle:
    """A chat workflow: `run` is called once per turn and says what it has to say through the communicator.

    `event_filter` (a filter or several; of the class, or given to the constructor) sees every event of its
    turns. The runner emits `chat_start` before and ends the turn after `run`, unless the bundle did. An
    exception ends the turn with `chat_error`; its text stays in the log. When `turn.stopped` becomes true
    the bundle has STOP_GRACE_SECONDS to wrap up before it is cancelled. One instance serves many turns at
    once: what belongs to a turn belongs in local variables.
    """

    event_filter: IEventFilter | Sequence[IEventFilter] | None = None

    def __init__(self, *, event_filter: IEventFilter | Sequence[IEventFilter] | None = None) -> None:
        if event_filter is not None:
            self.event_filter = event_filter

    async def run(self, turn: TurnContext) -> None:
        """Answer one turn."""
        raise NotImplementedError("a bundle must have a run(turn) method")

    async def aclose(self) -> None:
        """Close what the bundle holds beyond a turn (clients, connections); the process stops."""
