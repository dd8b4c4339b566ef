"""Filters: in any written form, in order, fail-open."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from comm import ChatCommunicator, Decision, Envelope, EnvelopeInvalid, EventFilterInput, IEventFilter
from comm.filters import failures
from tests.comm.listening import Listener

Maker = Callable[..., ChatCommunicator]


class HideInternalSteps(IEventFilter):
    """As the platform's documents write one."""

    def allow_event(self, user_type: str, user_id: str, event: EventFilterInput) -> bool:
        if user_type == "privileged":
            return True
        return not (event.get("type") == "chat.step" and event.get("broadcast"))


class WithData(IEventFilter):
    def allow_event(self, user_type: str, user_id: str, event: Any, data: dict[str, Any]) -> bool:  # type: ignore[override]
        return not (user_type == "registered" and user_id == "ada" and data["event"]["step"] == "secret")


class WithOptionalData(IEventFilter):
    def allow_event(self, user_type: str, user_id: str, event: Any, data: Any = None) -> bool:
        return not (event.type == "chat.step" and data["event"]["step"] == "secret")


class OtherNames(IEventFilter):
    def allow_event(self, kind: str, who: str, what: Any) -> bool:  # type: ignore[override]
        return not (kind == "registered" and who == "ada" and what.step == "secret")


class OtherOrder(IEventFilter):
    def allow_event(self, event: Any, user_id: str, user_type: str) -> bool:  # type: ignore[override]
        return not (user_type == "registered" and user_id == "ada" and event.step == "secret")


class KeywordsOnly(IEventFilter):
    def allow_event(self, *, user_type: str, event: Any, user_id: str = "", **others: Any) -> bool:  # type: ignore[override]
        return not (user_type == "registered" and event.step == "secret" and "data" in others)


class Positions(IEventFilter):
    def allow_event(self, *args: Any) -> bool:
        user_type, user_id, event, data = args
        return not (
            (user_type, user_id) == ("registered", "ada") and event.step == data["event"]["step"] == "secret"
        )


class Anything(IEventFilter):
    def allow_event(self, *args: Any, **kwargs: Any) -> bool:
        return bool(kwargs["event"].step != "secret")


class MixedForm(IEventFilter):
    def allow_event(self, kind: str, who: str, *, event: Any) -> bool:  # type: ignore[override]
        return not (kind == "registered" and who == "ada" and event.step == "secret")


class OwnOption(IEventFilter):
    def allow_event(self, user_type: str, user_id: str, event: Any, strict: bool = True) -> bool:
        return not (strict is True and event.step == "secret")


class Asynchronous(IEventFilter):
    async def allow_event(self, user_type: str, user_id: str, event: Any) -> bool:  # type: ignore[override]
        await asyncio.sleep(0)
        return bool(event.step != "secret")


def plain_function(user_type: str, user_id: str, event: Any) -> bool:
    return bool(event["step"] != "secret")


FORMS = [
    WithData(),
    WithOptionalData(),
    OtherNames(),
    OtherOrder(),
    KeywordsOnly(),
    Positions(),
    Anything(),
    MixedForm(),
    OwnOption(),
    Asynchronous(),
    plain_function,
    WithData,
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: getattr(form, "__name__", type(form).__name__))
async def test_a_filter_is_called_in_the_form_it_is_written_in(
    make_comm: Maker, listener: Listener, form: Any
) -> None:
    before = failures.total
    comm = make_comm(event_filter=form)
    assert await comm.step(step="secret") is None
    await comm.step(step="public")
    assert (await listener.next()).envelope["event"]["step"] == "public"
    assert failures.total == before


async def test_the_documented_filter_hides_broadcast_steps_from_all_but_the_privileged(
    make_comm: Maker, listener: Listener
) -> None:
    registered = make_comm(event_filter=HideInternalSteps())
    privileged = make_comm(service={"user_type": "privileged"}, event_filter=HideInternalSteps())
    await registered.step("Hidden")
    await registered.step("For one peer", target_sid="sid-1")
    await registered.delta("answer", "text")
    await privileged.step("Seen")
    heard = [await listener.next() for _ in range(3)]
    assert [item.envelope["event"]["title"] for item in heard] == ["For one peer", "", "Seen"]


async def test_what_a_filter_is_told_answers_as_attribute_and_by_get(make_comm: Maker) -> None:
    told: list[EventFilterInput] = []

    def listen(user_type: str, user_id: str, event: EventFilterInput) -> bool:
        told.append(event)
        return True

    comm = make_comm(event_filter=listen, target_sid="mine")
    await comm.event(type="my.card", agent="viz", step="draw", status="completed", route="somewhere")
    await comm.service_event(type="chat.service", broadcast=True)
    await comm.delta("canvas", "x")
    card, service, delta = told
    assert (card.type, card.agent, card.step, card.status) == ("my.card", "viz", "draw", "completed")
    assert (card.route, card.socket_event, card.route_key) == ("somewhere", "chat_step", "somewhere")
    assert (card.broadcast, service.broadcast) == (False, True)
    assert (service.route_key, delta.route, delta.route_key) == ("chat_service", None, "chat_delta")
    assert (delta.marker, delta["marker"], service.get("marker", "none")) == ("canvas", "canvas", "none")
    assert all(card.get(name) == getattr(card, name) for name in card if name != "marker")
    assert card.get("nonsense", 7) == 7
    assert dict(card)["type"] == "my.card"
    with pytest.raises(KeyError):
        card["nonsense"]


class Sign(IEventFilter):
    """Adds its letter to the title: shows who came when."""

    def __init__(self, letter: str = "s") -> None:
        self.letter = letter

    def allow_event(self, user_type: str, user_id: str, event: EventFilterInput) -> Envelope:
        signed = msgspec.structs.replace(event.envelope.event, title=event.envelope.event.title + self.letter)
        return msgspec.structs.replace(event.envelope, event=signed)


async def test_several_filters_run_in_order_and_see_each_others_changes(
    make_comm: Maker, listener: Listener, settings: Any
) -> None:
    settings.COMM = {
        "EVENT_FILTERS": ["tests.comm.test_filters.Sign"],
        "FIREWALL": {"acme": {"deny": [{"step": "denied"}]}},
    }
    comm = make_comm(event_filter=[Sign("a"), Sign("b")])
    await comm.step("-", step="denied")
    await comm.step("-", step="fine")
    assert (await listener.next()).envelope["event"]["title"] == "-sab"


async def test_a_blocked_event_is_not_shown_to_later_filters(make_comm: Maker, listener: Listener) -> None:
    seen: list[str] = []

    def note(user_type: str, user_id: str, event: EventFilterInput) -> bool:
        seen.append(event.step)
        return True

    comm = make_comm(event_filter=[plain_function, note])
    await comm.step(step="secret")
    await comm.step(step="public")
    assert seen == ["public"]


@pytest.mark.parametrize(
    ("answer", "goes"),
    [
        (True, True),
        (None, True),
        (False, False),
        (0, False),
        (1, True),
        (Decision(True), True),
        (Decision(False), False),
    ],
)
async def test_each_answer_means_what_it_says(
    make_comm: Maker, listener: Listener, answer: Any, goes: bool
) -> None:
    comm = make_comm(event_filter=lambda user_type, user_id, event: answer)
    position = await comm.step("Working")
    assert (position is not None) is goes


async def test_a_decision_may_carry_a_changed_envelope(make_comm: Maker, listener: Listener) -> None:
    def redact(user_type: str, user_id: str, event: EventFilterInput) -> Decision:
        return Decision(True, msgspec.structs.replace(event.envelope, data={"redacted": True}))

    await make_comm(event_filter=redact).event(type="my.card", data={"card": "4242"})
    assert (await listener.next()).envelope["data"] == {"redacted": True}


async def test_a_filter_may_answer_with_the_envelope_as_a_dictionary(
    make_comm: Maker, listener: Listener
) -> None:
    def enrich(user_type: str, user_id: str, event: EventFilterInput, data: dict[str, Any]) -> dict[str, Any]:
        data["data"]["seen_by"] = user_id
        return data

    await make_comm(event_filter=enrich).event(type="my.card", data={"a": 1})
    assert (await listener.next()).envelope["data"] == {"a": 1, "seen_by": "ada"}


async def test_what_a_filter_does_to_its_dictionary_changes_nothing_unless_it_answers_with_it(
    make_comm: Maker, listener: Listener
) -> None:
    def meddle(user_type: str, user_id: str, event: EventFilterInput, data: dict[str, Any]) -> bool:
        data["data"]["nested"].clear()
        return True

    given = {"nested": {"kept": True}}
    await make_comm(event_filter=meddle).event(type="my.card", data=given)
    assert (await listener.next()).envelope["data"] == {"nested": {"kept": True}} == given


async def test_a_changed_type_takes_the_route_of_its_own(make_comm: Maker, listener: Listener) -> None:
    def as_error(user_type: str, user_id: str, event: EventFilterInput) -> Envelope:
        return msgspec.structs.replace(event.envelope, type="chat.step")

    comm = make_comm(event_filter=as_error)
    await comm.service_event(type="gateway.notice")
    heard = await listener.next()
    assert (heard.route, heard.envelope["type"]) == ("chat_step", "chat.step")
    assert "route" not in heard.envelope


async def test_a_filter_cannot_move_an_event_to_another_session_or_project(
    make_comm: Maker, listener: Listener
) -> None:
    def steal(user_type: str, user_id: str, event: EventFilterInput) -> Envelope:
        elsewhere = msgspec.structs.replace(event.envelope.conversation, session_id="session-2")
        other = msgspec.structs.replace(event.envelope.service, tenant="other")
        return msgspec.structs.replace(event.envelope, conversation=elsewhere, service=other)

    project = await Listener.on_project("acme", "shop")
    comm = make_comm(event_filter=steal)
    await comm.step("Working")
    await comm.project_event(type="bundle.updated")
    heard = await listener.next()
    assert heard.envelope["conversation"]["session_id"] == "session-1"
    assert heard.envelope["service"]["tenant"] == "acme"
    assert (await project.next()).envelope["type"] == "bundle.updated"


class Broken(IEventFilter):
    def allow_event(self, user_type: str, user_id: str, event: Any) -> bool:
        raise RuntimeError("broken")


class BrokenLater(IEventFilter):
    async def allow_event(self, user_type: str, user_id: str, event: Any) -> bool:  # type: ignore[override]
        await asyncio.sleep(0)
        raise RuntimeError("broken")


class Impossible(IEventFilter):
    def allow_event(self, one: Any) -> bool:  # type: ignore[override]
        return False


class Unsendable(IEventFilter):
    def allow_event(self, user_type: str, user_id: str, event: EventFilterInput) -> Envelope:
        return msgspec.structs.replace(event.envelope, data={"when": object()})


class NoEnvelope(IEventFilter):
    def allow_event(self, user_type: str, user_id: str, event: EventFilterInput) -> dict[str, str]:
        return {"type": "chat.step"}


@pytest.mark.parametrize("kind", [Broken, BrokenLater, Impossible, Unsendable, NoEnvelope])
async def test_a_filter_that_fails_lets_the_event_through_and_is_counted(
    make_comm: Maker, listener: Listener, kind: type[IEventFilter], caplog: pytest.LogCaptureFixture
) -> None:
    name = f"{__name__}.{kind.__name__}"
    before = failures.by_filter.get(name, 0)
    comm = make_comm(event_filter=[kind(), Sign("!")])
    await comm.event(type="my.card", title="as it was", data={"a": 1})
    heard = await listener.next()
    assert (heard.envelope["event"]["title"], heard.envelope["data"]) == ("as it was!", {"a": 1})
    assert failures.by_filter[name] == before + 1
    assert [record.exc_info is not None for record in caplog.records if name in record.getMessage()] == [True]


async def test_a_filter_that_fails_at_each_delta_does_not_flood_the_log(
    make_comm: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    class FailsAlways(Broken):
        pass

    comm = make_comm(event_filter=FailsAlways())
    for _ in range(300):
        await comm.delta("answer", "x")
    assert comm.final_answer == "x" * 300
    assert len([record for record in caplog.records if "FailsAlways" in record.getMessage()]) == 1


async def test_a_cancelled_turn_is_not_held_by_its_filter(make_comm: Maker) -> None:
    reached = asyncio.Event()

    async def stuck(user_type: str, user_id: str, event: Any) -> bool:
        reached.set()
        await asyncio.Event().wait()
        return True

    task = asyncio.ensure_future(make_comm(event_filter=stuck).step("Working"))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_event_that_cannot_be_encoded_is_not_blamed_on_a_filter(make_comm: Maker) -> None:
    before = failures.total
    comm = make_comm(event_filter=WithData())
    with pytest.raises(EnvelopeInvalid, match=r"data\.when"):
        await comm.event(type="my.card", data={"when": object()})
    assert failures.total == before


async def test_a_blocked_end_is_the_end(make_comm: Maker, listener: Listener) -> None:
    def no_end(user_type: str, user_id: str, event: EventFilterInput) -> bool:
        return event.type != "chat.complete"

    comm = make_comm(event_filter=no_end)
    await comm.complete()
    assert comm.ended == "complete"
    await comm.error("never said")
    await comm.event(type="conv.status")
    assert (await listener.next()).envelope["type"] == "conv.status"


async def test_the_answer_is_what_the_filters_made_of_it(make_comm: Maker, listener: Listener) -> None:
    def shout(user_type: str, user_id: str, event: EventFilterInput) -> Envelope | None:
        envelope = event.envelope
        if isinstance(envelope.delta, msgspec.UnsetType):
            return None
        text = envelope.delta.text.upper()
        return msgspec.structs.replace(
            envelope, delta=msgspec.structs.replace(envelope.delta, text=text), text=text
        )

    comm = make_comm(event_filter=shout)
    await comm.delta("answer", "quiet")
    await comm.complete()
    assert (await listener.until("chat.complete"))[-1].envelope["data"]["final_answer"] == "QUIET"
