"""What the communicator's forms put on the wire, and whom they reach."""

import asyncio
import inspect
from collections.abc import Callable

import pytest

from comm import ChatCommunicator, EnvelopeInvalid, PublishFailed, TurnLost
from comm.envelope import Envelope, Event, stamp
from tests.comm.listening import Listener

Maker = Callable[..., ChatCommunicator]


async def test_the_standard_lifecycle_in_its_short_form(comm: ChatCommunicator, listener: Listener) -> None:
    await comm.start()
    await comm.step("Searching…")
    await comm.delta("thinking", "Hm. ")
    await comm.delta("answer", "Forty-")
    await comm.delta("answer", "two.")
    await comm.complete()
    heard = await listener.until("chat.complete")
    assert [item.route for item in heard] == [
        "chat_start",
        "chat_step",
        "chat_delta",
        "chat_delta",
        "chat_delta",
        "chat_complete",
    ]
    assert heard[0].envelope["event"] == {"agent": "", "step": "turn", "status": "started", "title": ""}
    assert heard[0].envelope["data"] == {"message": "", "queue_stats": {}}
    assert heard[1].envelope["event"]["title"] == "Searching…"
    assert heard[1].envelope["event"]["step"] == "searching"
    assert heard[3].envelope["delta"] == {
        "text": "Forty-",
        "index": 0,
        "marker": "answer",
        "completed": False,
    }
    assert heard[5].envelope["data"] == {"final_answer": "Forty-two."}


async def test_every_envelope_says_who_and_where(comm: ChatCommunicator, listener: Listener) -> None:
    await comm.step(step="search", status="completed")
    envelope = (await listener.next()).envelope
    assert envelope["service"] == {
        "request_id": "req-1",
        "tenant": "acme",
        "project": "shop",
        "user": "ada",
        "user_type": "registered",
    }
    assert envelope["conversation"] == {
        "session_id": "session-1",
        "conversation_id": "conv-1",
        "turn_id": "turn-1",
    }


async def test_the_keyword_form_of_existing_producers(comm: ChatCommunicator, listener: Listener) -> None:
    await comm.start(message="Hi", queue_stats={"position": 1})
    await comm.step(
        step="search",
        status="completed",
        title="Searched",
        agent="retriever",
        data={"hits": 3},
        markdown="**3** hits",
    )
    await comm.delta(
        text="| a |",
        index=7,
        marker="canvas",
        agent="viz",
        completed=True,
        format="markdown",
        artifact_name="table",
    )
    start, step, delta = [(await listener.next()).envelope for _ in range(3)]
    assert start["data"] == {"message": "Hi", "queue_stats": {"position": 1}}
    assert step["event"] == {
        "agent": "retriever",
        "step": "search",
        "status": "completed",
        "title": "Searched",
        "markdown": "**3** hits",
    }
    assert step["data"] == {"hits": 3}
    assert delta["delta"] == {"text": "| a |", "index": 7, "marker": "canvas", "completed": True}
    assert (delta["text"], delta["idx"]) == ("| a |", 7)
    assert delta["extra"] == {"format": "markdown", "artifact_name": "table"}
    assert delta["event"]["agent"] == "viz"


async def test_indexes_count_per_marker_and_artifact(comm: ChatCommunicator, listener: Listener) -> None:
    await comm.delta("answer", "a")
    await comm.delta("thinking", "t")
    await comm.delta("answer", "b")
    await comm.delta("canvas", "x", artifact_name="one")
    await comm.delta("canvas", "y", artifact_name="two")
    await comm.delta("canvas", "z", artifact_name="one")
    await comm.delta("subsystem", "s", sub_type="shell")
    await comm.delta("subsystem", "s", sub_type="web")
    await comm.delta("answer", "c", index=9)
    await comm.delta("answer", "d")
    indexes = [(await listener.next()).envelope["idx"] for _ in range(10)]
    assert indexes == [0, 0, 1, 0, 0, 1, 0, 0, 9, 10]


async def test_a_delta_can_end_a_marker_without_text(comm: ChatCommunicator, listener: Listener) -> None:
    await comm.delta("answer", "all")
    await comm.delta("answer", completed=True)
    assert (await listener.next()).envelope["delta"]["completed"] is False
    assert (await listener.next()).envelope["delta"] == {
        "text": "",
        "index": 1,
        "marker": "answer",
        "completed": True,
    }


async def test_a_delta_with_one_positional_argument_is_refused_before_its_text_is_lost(
    comm: ChatCommunicator,
) -> None:
    with pytest.raises(TypeError, match="a marker and a text"):
        await comm.delta("Hello")


@pytest.mark.parametrize("text", [b"bytes", 5, ["a"]])
async def test_a_delta_whose_text_is_no_string_names_the_field(comm: ChatCommunicator, text: object) -> None:
    with pytest.raises(EnvelopeInvalid, match=r"delta\.text"):
        await comm.delta("answer", text)  # type: ignore[arg-type]


async def test_a_lone_surrogate_is_an_error_that_names_the_field_and_leaves_no_trace(
    comm: ChatCommunicator, listener: Listener
) -> None:
    with pytest.raises(EnvelopeInvalid, match=r"delta\.text"):
        await comm.delta("answer", "\ud800")
    await comm.complete()
    assert (await listener.next()).envelope["data"]["final_answer"] == ""


async def test_nan_in_data_is_an_error_that_names_the_field(comm: ChatCommunicator) -> None:
    with pytest.raises(EnvelopeInvalid, match=r"data\.mean"):
        await comm.event(type="chat.stats", data={"mean": float("nan")})


async def test_data_that_is_no_mapping_is_an_error_that_names_it(comm: ChatCommunicator) -> None:
    with pytest.raises(EnvelopeInvalid, match="data: must be a mapping, not list"):
        await comm.event(type="chat.stats", data=[1])  # type: ignore[arg-type]


async def test_an_event_reaches_the_session_unless_a_target_is_named(
    comm: ChatCommunicator, listener: Listener
) -> None:
    await comm.event(event_type="chat.service", data={"key": "status.update", "value": "processing"})
    await comm.event(event_type="chat.service", data={"key": "private"}, target_sid="sid-1")
    everyone, one = await listener.next(), await listener.next()
    assert (everyone.route, everyone.target_sid) == ("chat_service", None)
    assert (one.route, one.target_sid) == ("chat_service", "sid-1")
    assert one.envelope["data"] == {"key": "private"}


async def test_a_communicator_with_a_target_sends_there_unless_it_broadcasts(
    make_comm: Maker, listener: Listener
) -> None:
    comm = make_comm(target_sid="mine")
    await comm.step("Working")
    await comm.step("Working", broadcast=True)
    await comm.step("Working", target_sid="other")
    assert [(await listener.next()).target_sid for _ in range(3)] == ["mine", None, "other"]


@pytest.mark.parametrize(
    ("type", "route"),
    [
        ("chat.followups", "chat_step"),
        ("chat.citations", "chat_step"),
        ("accounting.usage", "chat_step"),
        ("my.own.card", "chat_step"),
        ("rate_limit.warning", "chat_service"),
        ("queue.followup_absorbed", "chat_service"),
        ("conv.status", "conv_status"),
    ],
)
async def test_the_type_decides_the_route(
    comm: ChatCommunicator, listener: Listener, type: str, route: str
) -> None:
    await comm.event(type=type)
    assert (await listener.next()).route == route


async def test_an_explicit_route_decides_only_where_clients_know_it(
    comm: ChatCommunicator, listener: Listener
) -> None:
    await comm.event(type="my.card", route="chat_service")
    await comm.event(type="my.card", route="somewhere")
    known, unknown = await listener.next(), await listener.next()
    assert (known.route, known.envelope["route"]) == ("chat_service", "chat_service")
    assert (unknown.route, unknown.envelope["route"]) == ("chat_step", "somewhere")


async def test_a_service_event_of_any_type_travels_on_the_service_route(
    comm: ChatCommunicator, listener: Listener
) -> None:
    await comm.service_event(type="accounting.usage", step="accounting", status="completed", data={"n": 1})
    heard = await listener.next()
    assert (heard.route, heard.envelope["type"]) == ("chat_service", "accounting.usage")


async def test_a_project_event_reaches_the_project_and_names_nobody(
    comm: ChatCommunicator, listener: Listener
) -> None:
    everyone = await Listener.on_project("acme", "shop")
    await comm.project_event(type="bundle.updated", data={"version": 2})
    await comm.step("After")
    heard = await everyone.next()
    assert heard.route == "chat_service"
    assert heard.envelope["data"] == {"version": 2}
    assert (heard.envelope["service"]["tenant"], heard.envelope["service"]["project"]) == ("acme", "shop")
    assert "session-1" not in str(heard.envelope)
    assert "ada" not in str(heard.envelope)
    assert (await listener.next()).envelope["event"]["title"] == "After"


async def test_two_different_types_for_one_event_are_refused(comm: ChatCommunicator) -> None:
    with pytest.raises(TypeError, match="two event types"):
        await comm.event("chat.files", type="chat.citations")
    with pytest.raises(TypeError, match="needs a type"):
        await comm.event(data={})


async def test_usage_is_worded_and_kept(comm: ChatCommunicator, listener: Listener) -> None:
    breakdown = [
        {"service": "llm", "usage": {"input_tokens": 1000, "output_tokens": 300}},
        {"service": "llm", "input_tokens": 240, "output_tokens": 80},
    ]
    await comm.event(type="accounting.usage", data={"breakdown": breakdown, "cost_total_usd": 0.01})
    event = (await listener.next()).envelope["event"]
    assert (event["step"], event["markdown"]) == ("accounting", "Token usage: 1,240 in / 380 out")
    assert comm.usage == {"breakdown": breakdown, "cost_total_usd": 0.01}


async def test_followups_are_a_card_and_travel_with_the_end(
    comm: ChatCommunicator, listener: Listener
) -> None:
    await comm.followups(["And by month?"])
    await comm.complete()
    card, end = (await listener.next()).envelope, (await listener.next()).envelope
    assert (card["type"], card["data"]) == ("chat.followups", {"items": ["And by month?"]})
    assert end["data"] == {"final_answer": "", "followups": ["And by month?"]}
    assert comm.followup_items == ["And by month?"]


async def test_complete_keeps_what_its_data_says(comm: ChatCommunicator, listener: Listener) -> None:
    await comm.delta("answer", "draft")
    await comm.complete(data={"final_answer": "polished", "score": 1})
    end = (await listener.until("chat.complete"))[-1].envelope
    assert end["data"] == {"final_answer": "polished", "score": 1}
    assert comm.final_answer == "polished"


async def test_an_error_says_what_went_wrong(comm: ChatCommunicator, listener: Listener) -> None:
    await comm.error(
        "Something went wrong", data={"error_type": "bundle_error"}, agent="solver", title="Oops"
    )
    heard = await listener.next()
    assert heard.route == "chat_error"
    assert heard.envelope["data"] == {"error": "Something went wrong", "error_type": "bundle_error"}
    assert heard.envelope["event"]["status"] == "error"
    assert comm.ended == "error"


async def test_a_turn_starts_once_and_ends_once(
    comm: ChatCommunicator, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    await comm.start()
    assert await comm.start() is None
    await comm.complete()
    await comm.error("too late")
    await comm.complete()
    await comm.event(type="conv.status", step="conv.state", status="idle")
    heard = await listener.until("conv.status")
    assert [item.envelope["type"] for item in heard] == ["chat.start", "chat.complete", "conv.status"]
    assert (comm.started, comm.ended) == (True, "complete")
    assert "chat.error is dropped" in caplog.text


async def test_of_two_simultaneous_ends_one_goes_out(make_comm: Maker, listener: Listener) -> None:
    async def slow(user_type: str, user_id: str, event: object) -> bool:
        await asyncio.sleep(0)
        return True

    comm = make_comm(event_filter=slow)
    await asyncio.gather(comm.complete(), comm.error("no"), comm.complete())
    await comm.event(type="conv.status")
    heard = await listener.until("conv.status")
    assert len(heard) == 2


async def test_positions_of_the_first_and_the_last_event_are_known(comm: ChatCommunicator) -> None:
    assert comm.first_position is None
    first = await comm.start()
    await comm.step("Working")
    last = await comm.complete()
    assert first is not None
    assert last is not None
    assert (comm.first_position, comm.last_position) == (first, last)
    assert last.seq == first.seq + 2


async def test_the_last_word_on_each_step_is_kept_in_order(comm: ChatCommunicator) -> None:
    await comm.step(step="read", status="started", title="Reading")
    await comm.step(step="count", status="started", title="Counting")
    await comm.step(step="read", status="completed", title="Read")
    assert [(step["step"], step["status"], step["title"]) for step in comm.steps] == [
        ("read", "completed", "Read"),
        ("count", "started", "Counting"),
    ]


async def test_a_lost_turn_says_nothing_more(make_comm: Maker, listener: Listener) -> None:
    lost = False

    def guard() -> None:
        if lost:
            raise TurnLost("the lease ended")

    comm = make_comm(guard=guard)
    await comm.delta("answer", "before")
    lost = True
    with pytest.raises(TurnLost):
        await comm.delta("answer", "after")
    with pytest.raises(TurnLost):
        await comm.complete()
    assert comm.ended is None
    lost = False
    await comm.complete()
    heard = await listener.until("chat.complete")
    assert len(heard) == 2
    assert heard[-1].envelope["data"]["final_answer"] == "before"


async def test_an_end_that_the_layer_did_not_take_can_be_tried_again(
    comm: ChatCommunicator, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    async def away(group: str, message: object) -> None:
        raise ConnectionError("the layer is away")

    with monkeypatch.context() as patch:
        patch.setattr(listener.layer, "group_send", away)
        with pytest.raises(PublishFailed):
            await comm.complete()
    assert comm.ended is None
    await comm.error("Something went wrong")
    assert (await listener.next()).envelope["type"] == "chat.error"


async def test_concurrent_deltas_fold_in_the_order_in_which_they_travel(
    comm: ChatCommunicator, listener: Listener
) -> None:
    async def stream(letter: str) -> None:
        for _ in range(20):
            await comm.delta("answer", letter, agent=letter)

    await asyncio.gather(*(stream(letter) for letter in "abc"))
    await comm.complete()
    heard = await listener.until("chat.complete")
    streamed = "".join(item.envelope["text"] for item in heard[:-1])
    assert len(streamed) == 60
    assert heard[-1].envelope["data"]["final_answer"] == streamed == comm.final_answer


async def test_an_envelope_made_elsewhere_goes_the_same_way(
    comm: ChatCommunicator, listener: Listener
) -> None:
    timestamp, ts = stamp()
    envelope = Envelope(
        type="chat.complete",
        timestamp=timestamp,
        ts=ts,
        service=comm.service,
        conversation=comm.conversation,
        event=Event(step="turn", status="completed"),
        data={"final_answer": "made elsewhere"},
    )
    await comm.emit(envelope, target_sid="sid-1")
    await comm.complete()
    await comm.event(type="conv.status")
    first, second = await listener.next(), await listener.next()
    assert (first.target_sid, first.envelope["data"]) == ("sid-1", {"final_answer": "made elsewhere"})
    assert second.envelope["type"] == "conv.status"


async def test_contexts_may_be_dictionaries_with_more_in_them(make_comm: Maker) -> None:
    comm = make_comm(service={"tenant": "t", "user": 7, "user_type": None, "bundle": "x"})
    assert (comm.service.tenant, comm.service.user, comm.service.user_type) == ("t", "7", "anonymous")


def test_methods_show_the_arguments_of_their_form() -> None:
    parameters = inspect.signature(ChatCommunicator.delta).parameters
    assert list(parameters)[:4] == ["self", "marker", "text", "index"]
    assert inspect.signature(ChatCommunicator.delta_sync).return_annotation is None
    assert "index=0" in (ChatCommunicator.delta.__doc__ or "")
