"""The recording API of a communicator: what a bundle calls to record what it says, and to hand it on."""

from collections.abc import Sequence
from typing import Any

from asgiref.sync import async_to_sync

from comm.envelope import Envelope, ServiceContext
from comm.history import Position
from comm.publisher import refuse_on_loop

from .handover import Handover
from .items import Item
from .rules import SHARED, Asker, Rule
from .scope import Form, RecordingScope, in_form
from .selectors import Filter, Selector
from .sinks import EventSink, SendResult
from .store import Recording


class Recordable:
    """What a communicator has said, on request: recorded after the filters, within bounds, handed to a sink.

    Several recordings may be at work at once. An event that several want is kept once. Nothing here holds up or
    breaks the turn: a selector or sink that fails is logged and counted.
    """

    def __init__(self, service: ServiceContext) -> None:
        self._asker = Asker(service.user_type, service.user)
        self._recording = Recording()
        self._handover = Handover(self._recording)

    def record(
        self,
        filter: Filter = None,
        *,
        scope: Any = None,
        mode: str = "append",
        max_events: int | None = None,
    ) -> RecordingScope:
        """Keep the events that go out from now on and that `filter` means (see comm.recording.selectors).

        `scope` is a JSON value that says whose wish this is; it stands with each event. `append` adds to what is
        recorded already, `replace` stops every other recording and forgets what there is. The newest `max_events`
        (1,000) are kept. Data and text are kept only where the selector's `privacy` says so. The same filter and
        scope again are the same recording. Returns a handle on this recording alone. Errors: ValueError names
        what is wrong.
        """
        rule = Rule(filter, scope, max_events)
        if _replaces(mode):
            self._recording.begin_anew()
        return self._scope(self._recording.begin_once(rule))

    def recording(
        self,
        filter: Filter = None,
        *,
        scope: Any = None,
        mode: str = "append",
        max_events: int | None = None,
        sink: EventSink | None = None,
        send_on_exit: bool = False,
        send_filter: Filter = None,
        clear_on_success: bool = True,
    ) -> RecordingScope:
        """Record for the length of a block: `with comm.recording(…) as rec`; the events stay afterwards.

        With `send_on_exit` the block's events that `send_filter` means go to `sink` (else the communicator's) at
        its end, and `rec.result` says what became of them; on an event loop that takes `async with`. Within the
        block, `sink` stands in for the communicator's.
        """
        return self._scope(
            Rule(filter, scope, max_events, private=sink is not None),
            replaces=_replaces(mode),
            sink=sink,
            send_on_exit=send_on_exit,
            send_filter=send_filter,
            clear_on_success=clear_on_success,
        )

    def stop_recording(self) -> None:
        """Record nothing more; what was recorded stays until it is cleared or sent."""
        self._recording.stop(self._recording.rules)

    def recording_config(self) -> dict[str, Any]:
        """Return what is recorded, as plain values.

        `{enabled, filter, scopes: [{scope, filter, max_events, recorded, dropped}], max_events, max_bytes,
        recorded, bytes, dropped, truncated, sink_failures}`; `dropped` counts what the bounds have cost.
        """
        return {**self._recording.config(), "sink_failures": self._handover.failures}

    def export_recorded_events(self, filter: Filter = None, *, form: Form = "items") -> list[Item]:
        """Return copies of the recorded events that `filter` means, in the order of delivery, as plain JSON values.

        `items` are those of comm.recording.items; `messages` have the shape of the relay message that carried the
        event: `{target_sid, session_id, event, data, timestamp, position}`. A filter with a `privacy` shows no more
        than that. Where events were lost, the first item says how many: `recording.dropped_before`.
        """
        return in_form(form, self._recording.export(Selector(filter), self._asker))

    def clear_recorded_events(self, filter: Filter = None) -> int:
        """Forget the recorded events that `filter` means, all without one; return how many."""
        return self._recording.clear(Selector(filter), self._asker)

    def merge_recorded_events(self, items: Sequence[Item]) -> int:
        """Add events that another communicator has exported, once each; return how many were new.

        Errors: ValueError names the first that is no recorded event; nothing is added then.
        """
        return self._recording.merge(items)

    def set_event_sink(self, sink: EventSink | None, *, live: bool = False) -> None:
        """Name who takes the recorded events: `sink(batch, comm=…, filter=…)`, sync or async; None for nobody.

        `send_recorded_events()` calls it. A `live` one is handed what is recorded by itself, in small batches while
        the turn goes on, and the rest when the turn ends. An async sink runs on the event loop, any other on a
        thread of its own.
        """
        self._handover.set(sink, self._send_live if live and sink is not None else None)

    async def send_recorded_events(
        self, filter: Filter = None, *, clear_on_success: bool = True, sink: EventSink | None = None
    ) -> SendResult:
        """Hand the recorded events that `filter` means to the sink, as one batch.

        Nothing is raised when the sink fails or takes longer than COMM["EVENT_SINK_SECONDS"]: the result has
        `ok` false, and the events stay. They stay as well without a sink (`disabled`), and when it takes
        fewer than all. Errors: ValueError for what is no selector.
        """
        return await self._handover.send(filter, self._asker, comm=self, sink=sink, clear=clear_on_success)

    def send_recorded_events_sync(
        self, filter: Filter = None, *, clear_on_success: bool = True, sink: EventSink | None = None
    ) -> SendResult:
        """Hand over recorded events from synchronous code, at once, also in a transaction."""
        refuse_on_loop()
        return async_to_sync(self.send_recorded_events)(filter, clear_on_success=clear_on_success, sink=sink)

    async def aclose(self) -> None:
        """Hand the last events to a live sink, and stop it; whoever made the communicator calls this at its end."""
        await self._handover.aclose()

    def _record(self, envelope: Envelope, target_sid: str | None, position: Position | None) -> None:
        """Note an event that was published; called from a coroutine."""
        if self._recording.saw(envelope, target_sid, position):
            self._handover.stir()

    async def _send_live(self) -> SendResult:
        return await self._handover.send(None, self._asker, comm=self, view=SHARED)

    def _scope(self, rule: Rule, **block: Any) -> RecordingScope:
        return RecordingScope(self, self._asker, self._recording, self._handover, rule, **block)


def _replaces(mode: str) -> bool:
    if mode not in ("append", "replace"):
        raise ValueError(f"mode: is {mode!r}; expected append or replace")
    return mode == "replace"
