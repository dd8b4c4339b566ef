"""ChatCommunicator: the producer API. It composes, filters and publishes; the layer behind it delivers."""

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial, update_wrapper
from typing import Any, Concatenate, NamedTuple, ParamSpec

from asgiref.sync import async_to_sync

from .composer import Composer, Draft
from .deltas import DeltaAggregate
from .envelope import ConversationContext, Envelope, ServiceContext
from .exceptions import CommError
from .filters import FilterChain, IEventFilter, configured_filters
from .firewall import tenant_firewall
from .history import Position, Taken
from .progress import Ended, Progress, StepState
from .publisher import publish, publish_project, refuse_on_loop, run_after_commit
from .recording import Recordable

logger = logging.getLogger(__name__)

P = ParamSpec("P")
Guard = Callable[[], float | None]
"""Says until when (monotonic clock) what is published now may be taken, None for ever; raises when it may not."""
Observer = Callable[[Envelope, str | None, Position | None], None]
"""Hears of each event that was published: the envelope after the filters, its target, its position. Must not wait."""


class Sent(NamedTuple):
    """What became of a draft: the envelope as it went out, and its position in the session's log.

    `envelope` is None when nothing went out: a filter blocked it, or the turn had started or ended already.
    `position` is None for project events too.
    """

    envelope: Envelope | None
    position: Position | None


NOT_SENT = Sent(None, None)


def _emits(
    compose: Callable[Concatenate[Composer, P], Draft],
) -> Callable[Concatenate["ChatCommunicator", P], Coroutine[Any, Any, Position | None]]:
    """Make the async method of one form."""

    async def method(self: "ChatCommunicator", /, *args: P.args, **kwargs: P.kwargs) -> Position | None:
        return await self._send(compose(self._composer, *args, **kwargs))

    _present(method, compose, Position | None)
    return method


def _emits_sync(
    compose: Callable[Concatenate[Composer, P], Draft],
) -> Callable[Concatenate["ChatCommunicator", P], None]:
    """Make the synchronous twin of one form."""

    def method(self: "ChatCommunicator", /, *args: P.args, **kwargs: P.kwargs) -> None:
        self._send_sync(compose(self._composer, *args, **kwargs))

    _present(method, compose, None)
    return method


def _present(method: Callable[..., Any], compose: Callable[..., Draft], returns: Any) -> None:
    """Show a method as the form it was made of: name, docstring and arguments."""
    signature = inspect.signature(compose).replace(return_annotation=returns)
    vars(update_wrapper(method, compose))["__signature__"] = signature


class ChatCommunicator(Recordable):
    """What a turn says to its user: typed events, in order, to every tab of the session or to one peer.

    `service` and `conversation` say who and where; `target_sid` makes one peer the default receiver;
    `event_filter` is a filter or several, asked after those of the settings and the tenant's firewall;
    `guard` is called before every publish and may raise (the turn's lease has ended), or say until when a shared
    channel layer may take it; `observers` hear of each event after it was published.

    The methods return the event's position in the session's log, None when a filter blocked it. Each has a
    twin `…_sync` for synchronous code, which sends on commit when a transaction is open and returns nothing.
    A turn starts once and ends once, by `complete()` or `error()`: what comes after that is logged and
    dropped. Calls are published in the order in which they are made. Errors: EnvelopeInvalid names the
    field that can't be encoded, PublishFailed says that the channel layer did not take the event.
    """

    def __init__(
        self,
        *,
        service: ServiceContext | Mapping[str, Any],
        conversation: ConversationContext | Mapping[str, Any],
        target_sid: str | None = None,
        event_filter: IEventFilter | Sequence[IEventFilter] | None = None,
        guard: Guard | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        if isinstance(service, Mapping):
            service = ServiceContext(**_fields(service, ServiceContext.__struct_fields__))
        if isinstance(conversation, Mapping):
            conversation = ConversationContext(**_fields(conversation, ConversationContext.__struct_fields__))
        self.service = service
        self.conversation = conversation
        self.target_sid = target_sid
        self._progress = Progress()
        self._composer = Composer(self.service, self.conversation, target_sid, self._progress)
        self._filters = FilterChain(_in_order(self.service.tenant, event_filter))
        self._guard = guard
        self._observers = tuple(observers)
        super().__init__(self.service)

    start = _emits(Composer.start)
    step = _emits(Composer.step)
    delta = _emits(Composer.delta)
    complete = _emits(Composer.complete)
    error = _emits(Composer.error)
    event = _emits(Composer.event)
    service_event = _emits(Composer.service_event)
    project_event = _emits(Composer.project_event)
    followups = _emits(Composer.followups)

    start_sync = _emits_sync(Composer.start)
    step_sync = _emits_sync(Composer.step)
    delta_sync = _emits_sync(Composer.delta)
    complete_sync = _emits_sync(Composer.complete)
    error_sync = _emits_sync(Composer.error)
    event_sync = _emits_sync(Composer.event)
    service_event_sync = _emits_sync(Composer.service_event)
    project_event_sync = _emits_sync(Composer.project_event)
    followups_sync = _emits_sync(Composer.followups)

    async def emit(
        self, envelope: Envelope, *, target_sid: str | None = None, broadcast: bool = True
    ) -> Position | None:
        """Send an envelope that was made elsewhere, through the same filters."""
        return await self._send(Draft(envelope, target_sid or (None if broadcast else self.target_sid)))

    def emit_sync(self, envelope: Envelope, *, target_sid: str | None = None, broadcast: bool = True) -> None:
        """Send an envelope that was made elsewhere, from synchronous code."""
        self._send_sync(Draft(envelope, target_sid or (None if broadcast else self.target_sid)))

    @property
    def started(self) -> bool:
        """Whether `start()` went out."""
        return self._progress.started

    @property
    def ended(self) -> Ended | None:
        """How the turn ended: "complete", "error", or None while it goes on."""
        return self._progress.ended

    @property
    def error_data(self) -> dict[str, Any] | None:
        """The data of the error that ended the turn."""
        return self._progress.error

    @property
    def steps(self) -> list[StepState]:
        """The last word on each step, in the order of their first."""
        return list(self._progress.steps.values())

    @property
    def followup_items(self) -> list[Any]:
        """The items of the last `followups()`."""
        return self._progress.followup_items

    @property
    def usage(self) -> dict[str, Any] | None:
        """The data of the last `accounting.usage`."""
        return self._progress.usage

    @property
    def final_answer(self) -> str:
        """The answer that `complete()` carried, else the answer text streamed so far."""
        return self._progress.final_answer

    @property
    def first_position(self) -> Position | None:
        """The position of the first event that was published."""
        return self._progress.first_position

    @property
    def last_position(self) -> Position | None:
        """The position of the last event that was published."""
        return self._progress.last_position

    def get_delta_aggregates(
        self,
        *,
        conversation_id: str | None = None,
        turn_id: str | None = None,
        agent: str | None = None,
        marker: str | None = None,
        merge_text: bool = True,
    ) -> list[DeltaAggregate]:
        """Return what was streamed, per agent, marker and artifact, oldest first.

        `text` is empty unless merged. It holds what the filters let through, up to `deltas.KEPT_CHARACTERS`
        for one communicator.
        """
        return self._progress.deltas.view(conversation_id, turn_id, agent, marker, merge_text)

    def clear_delta_aggregates(
        self, *, conversation_id: str | None = None, turn_id: str | None = None
    ) -> None:
        """Forget streamed text, all of it where nothing narrows it down; `final_answer` stays."""
        self._progress.clear_deltas(conversation_id, turn_id)

    # --- sending --------------------------------------------------------------------------------------

    async def dispatch(self, draft: Draft) -> Sent:
        """Send a draft that was composed here or elsewhere; tell what became of it."""
        if self._progress.is_over(draft.envelope):
            return NOT_SENT
        sent = await self._carry(draft)
        if sent.envelope is None:
            # A blocked end is an end: nobody shall try again.
            self._progress.mark(draft.envelope)
        else:
            self._published(sent.envelope, draft.target_sid, sent.position, to_project=draft.to_project)
        return sent

    async def _carry(self, draft: Draft) -> Sent:
        """Take one draft to the outside, and tell what became of it: the seam between a communicator and the layer.

        Here the outside is filters, guard and channel layer. A communicator that lives elsewhere (in a sandbox)
        overrides this, and `_send_sync` with a call that waits for `dispatch`; the forms, the rule of one start
        and one end, recording and observers stay around it. Whoever overrides it calls `_settle` once with what
        goes out, in the order in which it goes out. Errors: CommError when it did not go out.
        """
        envelope = await self._judged(draft)
        if envelope is None:
            return NOT_SENT
        body, until = self._encoded(envelope)
        # From here to the layer nothing is awaited: what was folded and what was sent have one order.
        self._fold(draft, envelope)
        return await self._deliver(draft, envelope, body, until)

    def _settle(self, draft: Draft, envelope: Envelope) -> bool:
        """Note that a draft goes out as this envelope; False when the turn had started or ended already."""
        if not draft.to_project and not self._progress.begin(envelope):
            return False
        self._fold(draft, envelope)
        return True

    def _fold(self, draft: Draft, envelope: Envelope) -> None:
        if not draft.to_project:
            self._progress.observe(envelope)

    async def _send(self, draft: Draft) -> Position | None:
        return (await self.dispatch(draft)).position

    def _send_sync(self, draft: Draft) -> None:
        refuse_on_loop()
        if self._progress.is_over(draft.envelope):
            return
        envelope = async_to_sync(self._judged)(draft) if self._filters else draft.envelope
        if envelope is None:
            self._progress.mark(draft.envelope)
            return
        body, until = self._encoded(envelope)
        # Folded at once, so that code in a transaction reads its own words; they go out when it commits.
        self._fold(draft, envelope)
        run_after_commit(partial(self._deliver_late, draft, envelope, body, until))

    async def _judged(self, draft: Draft) -> Envelope | None:
        """Return what the filters leave of a draft's envelope, None when they block it."""
        if not self._filters:
            return draft.envelope
        return await self._filters.judge(draft.envelope, broadcast=draft.target_sid is None)

    def _encoded(self, envelope: Envelope) -> tuple[bytes, float | None]:
        """Encode what goes out, and ask the guard whether and until when it may."""
        body = envelope.encode()
        return body, None if self._guard is None else self._guard()

    async def _deliver(self, draft: Draft, envelope: Envelope, body: bytes, until: float | None) -> Sent:
        if draft.to_project:
            await publish_project(envelope, body=body, until=until)
            return Sent(envelope, None)
        if not self._progress.begin(envelope):
            return NOT_SENT
        try:
            position = await publish(envelope, target_sid=draft.target_sid, body=body, until=until)
        except (CommError, asyncio.CancelledError) as error:
            # A cancelled publish is in the layer's hands already, unless the layer says that it failed.
            cause = error.__cause__
            if isinstance(error, CommError) or isinstance(cause, OSError):
                self._progress.retract(envelope)
            elif isinstance(cause, Taken):
                self._published(envelope, draft.target_sid, cause.position)
            raise
        return Sent(envelope, position)

    async def _deliver_late(self, draft: Draft, envelope: Envelope, body: bytes, until: float | None) -> None:
        sent = await self._deliver(draft, envelope, body, until)
        if sent.envelope is not None:
            self._published(envelope, draft.target_sid, sent.position, to_project=draft.to_project)

    def _published(
        self,
        envelope: Envelope,
        target_sid: str | None,
        position: Position | None,
        *,
        to_project: bool = False,
    ) -> None:
        """Tell everyone who looks on that an event went out as this envelope; observers hear of the session's."""
        self._record(envelope, target_sid, position)
        if to_project:
            return
        self._progress.place(position)
        for observer in self._observers:
            try:
                observer(envelope, target_sid, position)
            except Exception:
                # Whoever looks on must not stop the turn.
                logger.exception("An observer failed on %s", envelope.type)


def _fields(given: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Take the known fields of a context given as a dictionary; producers' dictionaries hold more."""
    return {name: str(given[name]) for name in names if given.get(name) is not None}


def _in_order(tenant: str, own: IEventFilter | Sequence[IEventFilter] | None) -> list[Any]:
    """List the filters that see an event: the settings', the tenant's firewall, the bundle's own."""
    firewall = tenant_firewall(tenant)
    found = [*configured_filters(), *([firewall] if firewall else [])]
    if own is None:
        return found
    return [*found, *own] if isinstance(own, (list, tuple)) else [*found, own]
