"""What a channel layer with history promises, beyond Channels' own specification.

The extension is called `history`. It applies to groups whose name begins with `session.` or `context.`: a
`group_send` to one gets the next position `(epoch, seq)`, is appended to the group's bounded log and is
handed to the group's channels in one atomic step. Other groups behave as the specification says.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from channels.layers import BaseChannelLayer

from comm.groups import HISTORY_PREFIXES
from comm.history import LogSlice, Position

Message = dict[str, Any]


class HistoryChannelLayer(BaseChannelLayer):
    """Base class of the channel layers with history.

    A message that arrives through a group with history carries two more keys: `group` (str) and
    `position` (Position). Order per group is the order of positions. A full channel drops the message,
    as the specification allows; whoever reads sees the hole by its position and reads the log.
    """

    extensions = ["groups", "flush", "history"]
    shared = False
    """Whether several processes hear each other through this layer."""

    @staticmethod
    def has_history(group: str) -> bool:
        """Tell whether sends to this group are numbered and kept."""
        return group.startswith(HISTORY_PREFIXES)

    async def group_send(self, group: str, message: Message) -> Position | None:  # type: ignore[override]
        """Send to every channel of the group; return the position where the group has a history.

        A CancelledError of this call has a cause where it is known what became of the message: an OSError where it
        was not sent, `comm.history.Taken` with its position where it was. A shared layer has a third argument,
        `until` (monotonic clock): what it has not taken by then it does not take, and an OSError says so.
        """
        raise NotImplementedError("group_send() not implemented (groups extension)")

    async def group_read(self, group: str, after: Position, limit: int) -> LogSlice:
        """Return up to `limit` kept entries after a position, with the log's bounds, in one step.

        When the log does not reach `after` (another epoch, or trimmed), the entries are its oldest ones
        and `LogSlice.reaches(after)` is false. Reading makes the log when there is none.
        """
        raise NotImplementedError("group_read() not implemented (history extension)")

    async def group_tail(self, group: str) -> Position:
        """Return the newest position of the group; makes the log when there is none."""
        raise NotImplementedError("group_tail() not implemented (history extension)")

    async def group_tails(self, groups: list[str]) -> list[Position]:
        """Return the newest positions of several groups, in one round trip where there is one."""
        raise NotImplementedError("group_tails() not implemented (history extension)")

    async def group_forget(self, group: str) -> None:
        """Drop the log of a group at once; the next one is of a later epoch."""
        raise NotImplementedError("group_forget() not implemented (history extension)")

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return the name of a channel that only this process receives from."""
        raise NotImplementedError("new_channel() should be implemented in a channel layer")

    def listen(self, channel: str, heard: Callable[[], None]) -> None:
        """Call `heard` when messages have come into a channel of this process, in the turn of the loop they came in.

        Whoever listens takes them with `take`, then or later; until `stop_listening` nobody else receives.
        """
        raise NotImplementedError("listen() not implemented (history extension)")

    def stop_listening(self, channel: str) -> None:
        """End `listen`; harmless when nobody listens."""
        raise NotImplementedError("stop_listening() not implemented (history extension)")

    def take(self, channel: str) -> Message | None:
        """Return the next message of a channel that is listened to, without waiting; None when there is none."""
        raise NotImplementedError("take() not implemented (history extension)")

    async def receive_many(self, channel: str) -> list[Message]:
        """Wait for at least one message of a channel, then return all that are waiting."""
        raise NotImplementedError("receive_many() not implemented (history extension)")

    async def resumed(self) -> None:
        """Wait until the layer was cut off from its store and is connected again: something may be missing."""
        await asyncio.get_running_loop().create_future()

    async def aclose(self) -> None:
        """Release what the layer holds in this process."""

    # --- what only a layer with a store has ---------------------------------------------------------

    async def recorder_lag(self) -> tuple[int, float] | None:
        """Return how many messages the recorder has yet to commit, and the age of the oldest in seconds.

        None where the layer keeps no stream for it.
        """
        return None

    async def recorded_up_to_now(self, timeout_seconds: float) -> bool:
        """Wait until the recorder has committed all that was sent before; False when it took too long."""
        return True

    async def tell_streams(self, streams: dict[str, bytes], seconds: float) -> None:
        """Tell every process which streams are open here: id → what to know of it, empty when it has closed.

        It is told for so many seconds; tell it again before they are over.
        """

    async def find_streams(self, stream_id: str, timeout_seconds: float) -> list[bytes]:
        """Return what each process, this one too, told of a stream."""
        return []
