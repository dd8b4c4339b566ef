"""What a bundle may say, turned into envelopes: one builder per form, for the async and the sync methods."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from django.utils.text import slugify

from .envelope import (
    ANSWER,
    SERVICE_ROUTE,
    SUBSYSTEM,
    ConversationContext,
    Delta,
    Envelope,
    Event,
    ServiceContext,
    stamp,
)
from .exceptions import EnvelopeInvalid
from .progress import Progress

COUNTED_ARTIFACTS = 10_000
"""Artifacts whose chunks are counted at once; more in one turn are a producer that names each chunk."""


class Draft(NamedTuple):
    """An envelope before the filters, and whom it is for: a peer, the session (None), or the project."""

    envelope: Envelope
    target_sid: str | None
    to_project: bool = False


class Composer:
    """Builds the envelopes of one communicator; knows its contexts and what was said before.

    Every form takes `target_sid` (deliver to this peer alone) or `broadcast=True` (to the whole session,
    also where the communicator has a target of its own).
    """

    def __init__(
        self,
        service: ServiceContext,
        conversation: ConversationContext,
        target_sid: str | None,
        progress: Progress,
    ) -> None:
        self.service = service
        self.conversation = conversation
        self.target_sid = target_sid
        self._progress = progress
        self._indexes: dict[tuple[str, str], int] = {}

    def start(
        self,
        message: str = "",
        queue_stats: Mapping[str, Any] | None = None,
        *,
        agent: str | None = None,
        title: str | None = None,
        data: Mapping[str, Any] | None = None,
        target_sid: str | None = None,
        broadcast: bool = False,
    ) -> Draft:
        """Say that the turn begins (`chat_start`); a second start is nothing."""
        body = {
            "message": message,
            "queue_stats": _mapping("queue_stats", queue_stats),
            **_mapping("data", data),
        }
        event = _event(agent, "turn", "started", title)
        return self._draft("chat.start", event, body, target_sid, broadcast)

    def step(
        self,
        title: str | None = None,
        status: str = "running",
        *,
        step: str | None = None,
        type: str | None = None,
        agent: str | None = None,
        data: Mapping[str, Any] | None = None,
        markdown: str | None = None,
        timing: Mapping[str, Any] | None = None,
        target_sid: str | None = None,
        broadcast: bool = False,
    ) -> Draft:
        """Show progress (`chat_step`): `step("Searching…")`, or `step(step="search", status=…, title=…)`.

        A later call with the same `step` updates it; without one, the step is named after its title.
        `timing` travels as `data.timing`. `type` makes it a typed card.
        """
        if not title and not step:
            raise TypeError("step() needs a title or step=")
        name = step or slugify(title or "", allow_unicode=True) or str(title)
        body = _mapping("data", data)
        if timing is not None:
            body["timing"] = _mapping("timing", timing)
        event = _event(agent, name, status, title, markdown)
        return self._draft(type or "chat.step", event, body, target_sid, broadcast)

    def delta(
        self,
        /,
        marker: str = ANSWER,
        text: str | None = None,
        *,
        index: int | None = None,
        agent: str | None = None,
        completed: bool = False,
        target_sid: str | None = None,
        broadcast: bool = False,
        **extra: Any,
    ) -> Draft:
        """Stream text (`chat_delta`): `delta("answer", chunk)`, or `delta(text=…, index=…, marker=…)`.

        Without `index` the chunks of a marker and artifact are counted; `index=0` restarts an artifact.
        `completed=True` ends it, with or without a last text. Other keywords (format, artifact_name,
        sub_type, title, execution_id, language, …) travel as `extra`.
        """
        if text is None:
            if not completed:
                raise TypeError("delta() needs a marker and a text, or completed=True")
            text = ""
        elif not isinstance(text, str):
            raise EnvelopeInvalid("delta.text", f"must be a string, not {type(text).__name__}")
        if extra:
            extra = {name: value for name, value in extra.items() if value is not None}
        index = self._index(marker, extra, index)
        timestamp, ts = stamp()
        envelope = Envelope(
            type="chat.delta",
            timestamp=timestamp,
            ts=ts,
            service=self.service,
            conversation=self.conversation,
            event=Event(agent or "assistant", "stream", "completed" if completed else "running"),
            delta=Delta(text, index, marker, completed),
            text=text,
            idx=index,
            extra=extra or msgspec.UNSET,
        )
        return Draft(envelope, self._target(target_sid, broadcast))

    def complete(
        self,
        data: Mapping[str, Any] | None = None,
        *,
        agent: str | None = None,
        title: str | None = None,
        target_sid: str | None = None,
        broadcast: bool = False,
    ) -> Draft:
        """End the turn well (`chat_complete`); what comes after the first end is logged and dropped.

        What `data` leaves out is filled in: `final_answer` is the accumulated answer, `followups` the
        items offered before. `final_answer_truncated` is there when it was too long to be kept.
        """
        body = _mapping("data", data)
        if "final_answer" not in body:
            body["final_answer"] = self._progress.final_answer
            if self._progress.deltas.truncated(ANSWER):
                body["final_answer_truncated"] = True
        if self._progress.followup_items:
            body.setdefault("followups", list(self._progress.followup_items))
        return self._draft(
            "chat.complete", _event(agent, "turn", "completed", title), body, target_sid, broadcast
        )

    def error(
        self,
        message: str,
        data: Mapping[str, Any] | None = None,
        *,
        agent: str | None = None,
        step: str | None = None,
        title: str | None = None,
        target_sid: str | None = None,
        broadcast: bool = False,
    ) -> Draft:
        """End the turn with an error (`chat_error`); `error_type` and `reason` go into data."""
        body = {"error": message, **_mapping("data", data)}
        return self._draft(
            "chat.error", _event(agent, step or "turn", "error", title), body, target_sid, broadcast
        )

    def event(
        self,
        event_type: str | None = None,
        data: Mapping[str, Any] | None = None,
        *,
        type: str | None = None,
        agent: str | None = None,
        title: str | None = None,
        step: str | None = None,
        status: str = "update",
        markdown: str | None = None,
        auto_markdown: bool = True,
        route: str | None = None,
        timing: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        target_sid: str | None = None,
        broadcast: bool = False,
    ) -> Draft:
        """Emit an event of any type, named by `event_type` or `type`; the type decides the route.

        `route` stays on the envelope and decides where it names a route that clients know.
        `auto_markdown` words `accounting.usage` where no markdown is given.
        """
        name = _one_type(event_type, type)
        body = _mapping("data", data)
        if timing is not None:
            body["timing"] = _mapping("timing", timing)
        is_usage = name == "accounting.usage"
        if is_usage and auto_markdown and not markdown:
            markdown = usage_markdown(body)
        event = _event(agent, step or ("accounting" if is_usage else "event"), status, title, markdown)
        return self._draft(
            name, event, body, target_sid, broadcast, route=route, extra=extra, metadata=metadata
        )

    def service_event(
        self,
        event_type: str | None = None,
        data: Mapping[str, Any] | None = None,
        *,
        type: str | None = None,
        step: str = "event",
        status: str = "update",
        title: str | None = None,
        agent: str | None = None,
        markdown: str | None = None,
        auto_markdown: bool = True,
        target_sid: str | None = None,
        broadcast: bool = False,
    ) -> Draft:
        """Emit an event of any type on the service route (`chat_service`)."""
        return self.event(
            event_type,
            data,
            type=type,
            step=step,
            status=status,
            title=title,
            agent=agent,
            markdown=markdown,
            auto_markdown=auto_markdown,
            route=SERVICE_ROUTE,
            target_sid=target_sid,
            broadcast=broadcast,
        )

    def project_event(
        self,
        event_type: str | None = None,
        data: Mapping[str, Any] | None = None,
        *,
        type: str | None = None,
        step: str = "event",
        status: str = "update",
        title: str | None = None,
        agent: str | None = None,
        markdown: str | None = None,
    ) -> Draft:
        """Emit a service event to every stream of the tenant and project that asked for such events.

        It says nothing of who caused it: other users receive it, and whoever knows an anonymous session's
        id holds that session.
        """
        draft = self.event(
            event_type,
            data,
            type=type,
            step=step,
            status=status,
            title=title,
            agent=agent,
            markdown=markdown,
            route=SERVICE_ROUTE,
            broadcast=True,
        )
        nobody = ServiceContext(tenant=self.service.tenant, project=self.service.project, user_type="")
        envelope = msgspec.structs.replace(draft.envelope, service=nobody, conversation=ConversationContext())
        return Draft(envelope, None, to_project=True)

    def followups(
        self,
        items: Sequence[Any],
        *,
        agent: str | None = None,
        title: str | None = None,
        target_sid: str | None = None,
        broadcast: bool = False,
    ) -> Draft:
        """Offer what the user may ask next: a `chat.followups` card with `data.items`."""
        event = _event(agent, "followups", "completed", title)
        return self._draft("chat.followups", event, {"items": list(items)}, target_sid, broadcast)

    def _draft(
        self,
        type: str,
        event: Event,
        data: dict[str, Any],
        target_sid: str | None,
        broadcast: bool,
        *,
        route: str | None = None,
        extra: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Draft:
        timestamp, ts = stamp()
        envelope = Envelope(
            type=type,
            timestamp=timestamp,
            ts=ts,
            service=self.service,
            conversation=self.conversation,
            event=event,
            data=data,
            extra=_mapping("extra", extra) or msgspec.UNSET,
            route=route or msgspec.UNSET,
            metadata=_mapping("metadata", metadata) or msgspec.UNSET,
        )
        return Draft(envelope, self._target(target_sid, broadcast))

    def _target(self, target_sid: str | None, broadcast: bool) -> str | None:
        # An empty sid is no peer: `target_sid=request.headers.get(…, "")` means the session.
        return target_sid or (None if broadcast else self.target_sid)

    def _index(self, marker: str, extra: dict[str, Any], given: int | None) -> int:
        """Return the given index, or the next one of this marker and artifact."""
        artifact = extra.get("artifact_name") or (marker == SUBSYSTEM and extra.get("sub_type")) or ""
        key = (marker, str(artifact))
        index = self._indexes.get(key, 0) if given is None else given
        if not isinstance(index, int):
            raise EnvelopeInvalid("delta.index", f"must be a whole number, not {type(index).__name__}")
        self._indexes[key] = index + 1
        if len(self._indexes) > COUNTED_ARTIFACTS:
            del self._indexes[next(iter(self._indexes))]
        return index


def usage_markdown(data: Mapping[str, Any]) -> str | None:
    """Word the token usage in `data.breakdown`: `Token usage: 1,240 in / 380 out`; None without one."""
    breakdown = data.get("breakdown")
    listed = breakdown if isinstance(breakdown, (list, tuple)) else ()
    rows = [row for row in listed if isinstance(row, Mapping)]
    if not rows:
        return None
    return f"Token usage: {_tokens(rows, 'input_tokens'):,} in / {_tokens(rows, 'output_tokens'):,} out"


def _tokens(rows: list[Mapping[str, Any]], name: str) -> int:
    """Sum a count over rows that hold it themselves or under `usage`."""
    total = 0
    for row in rows:
        usage = row.get("usage")
        value = usage.get(name) if isinstance(usage, Mapping) and name in usage else row.get(name)
        total += value if isinstance(value, int) else 0
    return total


def _event(
    agent: str | None, step: str, status: str, title: str | None, markdown: str | None = None
) -> Event:
    return Event(agent or "", step, status, title or "", markdown or msgspec.UNSET)


def _mapping(name: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise EnvelopeInvalid(name, f"must be a mapping, not {type(value).__name__}")
    return dict(value)


def _one_type(event_type: str | None, type: str | None) -> str:
    if event_type and type and event_type != type:
        raise TypeError(f"two event types were given: {event_type} and {type}")
    name = event_type or type
    if not name:
        raise TypeError("an event needs a type: event_type= or type=")
    return name
