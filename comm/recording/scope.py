"""One recording of a communicator, as whoever asked for it holds it."""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Literal

from asgiref.sync import async_to_sync

from comm.publisher import refuse_on_loop

from .handover import Handover
from .items import Item, message_of
from .rules import Asker, Rule, View
from .selectors import Filter, Selector
from .sinks import EventSink, SendResult
from .store import Recording

Form = Literal["items", "messages"]


class RecordingScope(AbstractContextManager["RecordingScope"], AbstractAsyncContextManager["RecordingScope"]):
    """One recording: its events alone, each with as much of it as this recording has asked for.

    `comm.record()` returns one that is at work. `comm.recording()` returns one that is at work in its `with` block;
    blocks may overlap, each ends only itself. With `send_on_exit` the block's events go to its sink at the
    end, and `result` says what became of them; on an event loop that takes `async with`.
    """

    def __init__(
        self,
        comm: Any,
        asker: Asker,
        recording: Recording,
        handover: Handover,
        rule: Rule,
        *,
        replaces: bool = False,
        sink: EventSink | None = None,
        send_on_exit: bool = False,
        send_filter: Filter = None,
        clear_on_success: bool = True,
    ) -> None:
        self.result: SendResult | None = None
        self._comm = comm
        self._asker = asker
        self._recording = recording
        self._handover = handover
        self._rule = rule
        self._view = View(rule)
        self._replaces = replaces
        self._replaced: list[Rule] = []
        self._sink = sink
        self._send_on_exit = send_on_exit
        self._send_filter = send_filter
        self._clear_on_success = clear_on_success

    @property
    def active(self) -> bool:
        """Whether it is at work."""
        return self._rule in self._recording.rules

    @property
    def recorded(self) -> int:
        """How many events it holds."""
        return len(self._rule.record_ids)

    @property
    def dropped(self) -> int:
        """How many events its bounds have cost."""
        return self._rule.dropped

    def export(self, filter: Filter = None, *, form: Form = "items") -> list[Item]:
        """Return copies of its events, as `comm.export_recorded_events` does."""
        return in_form(form, self._recording.export(Selector(filter), self._asker, self._view))

    def clear(self, filter: Filter = None) -> int:
        """Forget its events, all without a filter; other recordings keep theirs. Return how many."""
        return self._recording.clear(Selector(filter), self._asker, self._view)

    async def send(
        self, filter: Filter = None, *, clear_on_success: bool = True, sink: EventSink | None = None
    ) -> SendResult:
        """Hand its events to the sink, as `comm.send_recorded_events` does."""
        return await self._handover.send(
            filter,
            self._asker,
            comm=self._comm,
            view=self._view,
            sink=sink or self._sink,
            clear=clear_on_success,
        )

    def send_sync(
        self, filter: Filter = None, *, clear_on_success: bool = True, sink: EventSink | None = None
    ) -> SendResult:
        """Hand its events to the sink from synchronous code, at once, also in a transaction."""
        refuse_on_loop()
        return async_to_sync(self.send)(filter, clear_on_success=clear_on_success, sink=sink)

    def stop(self) -> None:
        """Record nothing more; what it holds stays."""
        self._recording.stop([self._rule])

    def __enter__(self) -> "RecordingScope":
        if self._send_on_exit:
            # At its end the sink must be waited for, which would hold up every stream of the loop.
            refuse_on_loop()
        return self._enter()

    def __exit__(self, *exc: object) -> None:
        try:
            if self._send_on_exit:
                self.result = self.send_sync(self._send_filter, clear_on_success=self._clear_on_success)
        finally:
            self._leave()

    async def __aenter__(self) -> "RecordingScope":
        return self._enter()

    async def __aexit__(self, *exc: object) -> None:
        try:
            if self._send_on_exit:
                self.result = await self.send(self._send_filter, clear_on_success=self._clear_on_success)
        finally:
            self._leave()

    def _enter(self) -> "RecordingScope":
        if self.active:
            raise RuntimeError("this recording is at work already")
        if self._replaces:
            self._replaced = self._recording.begin_anew()
        self._recording.begin(self._rule)
        if self._sink is not None:
            self._handover.enter(self, self._sink)
        return self

    def _leave(self) -> None:
        self.stop()
        self._handover.leave(self)
        replaced, self._replaced = self._replaced, []
        for rule in replaced:
            self._recording.begin(rule)


def in_form(form: Form, items: list[Item]) -> list[Item]:
    """Return items as they are, or as relay messages. Errors: ValueError for another form."""
    if form not in ("items", "messages"):
        raise ValueError(f"form: is {form!r}; expected items or messages")
    return items if form == "items" else [message_of(item) for item in items]
