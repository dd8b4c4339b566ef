"""Handing recorded events to a sink: which sink, which events, and what became of them."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from comm.conf import comm_settings

from .rules import ALL, Asker, View
from .selectors import Filter, Selector
from .sinks import EventSink, LiveSink, SendResult, SinkCall, sent_of
from .store import Recording

logger = logging.getLogger(__name__)


class Handover:
    """The sinks of one communicator: its own, and those that blocks put in its place for their length.

    An event is in one hand-over at a time. What a sink took whole is forgotten; what it did not take stays.
    """

    def __init__(self, recording: Recording) -> None:
        self.failures = 0
        self._recording = recording
        self._sink: EventSink | None = None
        self._blocks: list[tuple[object, EventSink]] = []
        self._call = SinkCall()
        self._live: LiveSink | None = None

    @property
    def sink(self) -> EventSink | None:
        """The sink that is asked where a caller names none."""
        return self._blocks[-1][1] if self._blocks else self._sink

    def set(self, sink: EventSink | None, send_live: Callable[[], Awaitable[SendResult]] | None) -> None:
        """Name the communicator's own sink; with `send_live` it is handed events as they are recorded."""
        if sink is not None and not callable(sink):
            raise TypeError(f"an event sink is a callable or None, not {sink!r:.80}")
        self._sink = sink
        if self._live is not None:
            self._live.send = send_live
        elif send_live is not None:
            self._live = LiveSink(send_live)

    def enter(self, block: object, sink: EventSink) -> None:
        """Put a block's sink in the place of the communicator's."""
        self._blocks.append((block, sink))

    def leave(self, block: object) -> None:
        """Take a block's sink away again, in whatever order blocks end."""
        self._blocks = [(owner, sink) for owner, sink in self._blocks if owner is not block]

    def stir(self) -> None:
        """Say that an event was recorded; from a coroutine."""
        if self._live is not None:
            self._live.stir()

    async def send(
        self,
        filter: Filter,
        asker: Asker,
        *,
        comm: Any,
        view: View = ALL,
        sink: EventSink | None = None,
        clear: bool = True,
    ) -> SendResult:
        """Hand the events that a selector means to a sink, as one batch. Errors: ValueError for no selector."""
        selector = Selector(filter)
        sink = sink or (self._sink if view.shared else self.sink)
        try:
            batch = self._recording.take(self._recording.export(selector, asker, view))
        except Exception as error:
            # A filter in code may fail in any way; it is no failure of the turn.
            logger.exception("Recorded events could not be chosen")
            return self._failed(error, 0)
        try:
            if sink is None or not batch:
                return _result(0, len(batch), None, disabled=sink is None)
            seconds = comm_settings().EVENT_SINK_SECONDS
            answer = await self._call(sink, batch, seconds, comm=comm, filter=filter)
            sent = sent_of(answer, len(batch))
            if clear and sent == len(batch):
                # What the communicator's own sink has, it need not get again from another recording.
                forgotten_by = ALL if sink is self._sink and not view.shared else view
                self._recording.hand_over(batch, view, forgotten_by=forgotten_by)
            return _result(sent, len(batch) - sent, answer)
        except Exception as error:
            # A sink's failure is no failure of the turn; the events stay for the next try.
            logger.exception("The event sink failed on %d events", len(batch))
            return self._failed(error, len(batch))
        finally:
            self._recording.give_back(batch)

    async def aclose(self) -> None:
        """Hand the last events to a live sink, and stop it."""
        live, self._live = self._live, None
        if live is not None:
            await live.aclose()

    def _failed(self, error: Exception, count: int) -> SendResult:
        self.failures += 1
        return {
            "ok": False, "sent": 0, "skipped": count, "disabled": False,
            "error": str(error) or type(error).__name__,
        }  # fmt: skip


def _result(sent: int, skipped: int, answer: Any, *, disabled: bool = False) -> SendResult:
    return {"ok": True, "sent": sent, "skipped": skipped, "disabled": disabled, "sink_result": answer}
