"""What a bundle imports to talk to its user. It knows no socket and no request.

A bundle is handed a `turn`, and speaks through `turn.communicator`:

    await communicator.start()                       # chat_start, once
    await communicator.step("Searching…")            # chat_step: visible progress
    await communicator.delta("thinking", "Hm. ")     # chat_delta: streamed text, per marker
    await communicator.delta("answer", chunk)
    await communicator.complete()                    # chat_complete, with the accumulated answer
    await communicator.error("Something went wrong") # or chat_error; exactly one of the two ends a turn

Markers: `answer`, `thinking`, `canvas` (grouped by `artifact_name=`), `timeline_text`, `subsystem` (grouped
by `sub_type=`), and any that your client knows. Keyword forms say the same in full:

    await communicator.step(step="search", status="completed", title="Searched", agent="retriever", data={…})
    await communicator.delta(text=chunk, index=3, marker="canvas", artifact_name="report", format="markdown")

`index` counts per marker and artifact when it is not given; `index=0` restarts an artifact;
`completed=True` ends it.

Typed events choose their route by their type; nothing else does:

    await communicator.event(event_type="chat.citations", data={"items": […]})
    await communicator.event(type="accounting.usage", data={"breakdown": […], "cost_total_usd": 0.0021})
    await communicator.service_event(type="status.update", data={"value": "processing"})
    await communicator.followups(["And by month?", "Show the outliers"])

Who receives it: the whole session (each tab of the user), unless `target_sid=` names one peer. A communicator
with a `target_sid` of its own sends there, unless `broadcast=True`. `project_event()` reaches the streams of
the tenant and project that asked for such events, and carries no trace of the user.

Each method returns once the channel layer has taken the event, with its position. From synchronous code use
the twin of the same name with `_sync`: it sends when the open transaction commits, at once without one.

`AIBEmitters(communicator)` offers the same through payload objects.

Filters decide what goes out: subclass `IEventFilter`, hand it to the bundle as `event_filter=`. Those named
in `COMM["EVENT_FILTERS"]` and the tenant's firewall (`COMM["FIREWALL"]`, see `comm.firewall`) come first.

    class NoInternalSteps(IEventFilter):
        def allow_event(self, user_type, user_id, event):
            return user_type == "privileged" or event.get("type") != "chat.step"

Answer with a changed envelope (`msgspec.structs.replace(event.envelope, …)`) to change or enrich it. A filter
that raises lets the event through, is logged and counted.

What goes out can be recorded, after the filters and within bounds, and handed on as a batch:

    communicator.record({"include": {"types": ["accounting.usage", "chat.*"]}}, max_events=200)
    communicator.export_recorded_events("chat.step")      # plain JSON values; or clear_…, stop_recording()
    communicator.set_event_sink(sink)                     # sink(batch, comm=…, filter=…), sync or async
    await communicator.send_recorded_events()             # to the sink; live=True sends as events are recorded
    async with communicator.recording("chat.step", sink=sink, send_on_exit=True) as recording: …

Kinds, places and numbers are kept; data and text only where the selector's `privacy` asks for them. Several
recordings may be at work at once, each with a handle of its own (`comm.recording`, docs/recording.md).

Bundles themselves (`Bundle`, `TurnContext`) are exported by `comm.bundles`: they need Django's models.
"""

from .communicator import ChatCommunicator
from .emitters import (
    AIBEmitters,
    CompletePayload,
    DeltaPayload,
    ErrorPayload,
    EventPayload,
    StartPayload,
    StepPayload,
)
from .envelope import (
    ANSWER,
    CANVAS,
    MARKERS,
    SUBSYSTEM,
    THINKING,
    TIMELINE_TEXT,
    ConversationContext,
    Delta,
    Envelope,
    Event,
    ServiceContext,
)
from .exceptions import CommError, EnvelopeInvalid, PublishFailed, TurnLost
from .filters import Decision, EventFilterInput, IEventFilter
from .history import Position
from .recording import EventSink, RecordingScope, SendResult

__all__ = [
    "ANSWER",
    "CANVAS",
    "MARKERS",
    "SUBSYSTEM",
    "THINKING",
    "TIMELINE_TEXT",
    "AIBEmitters",
    "ChatCommunicator",
    "CommError",
    "CompletePayload",
    "ConversationContext",
    "Decision",
    "Delta",
    "DeltaPayload",
    "Envelope",
    "EnvelopeInvalid",
    "ErrorPayload",
    "Event",
    "EventFilterInput",
    "EventPayload",
    "EventSink",
    "IEventFilter",
    "Position",
    "PublishFailed",
    "RecordingScope",
    "SendResult",
    "ServiceContext",
    "StartPayload",
    "StepPayload",
    "TurnLost",
]
