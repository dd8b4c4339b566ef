"""Publishing: positions in the order of calls, from any thread or loop, and on commit."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.layers import get_channel_layer
from django.db import transaction

from comm import ChatCommunicator, EnvelopeInvalid, PublishFailed, publisher, sinks
from comm.groups import session_group
from comm.history import Position
from tests.comm.listening import Listener

Maker = Callable[..., ChatCommunicator]

KEPT: list[sinks.Published] = []


class KeepingSink(sinks.Sink):
    """Keeps what it is shown."""

    def accept(self, published: sinks.Published) -> None:
        KEPT.append(published)


class FailingSink(sinks.Sink):
    """Fails at everything."""

    def accept(self, published: sinks.Published) -> None:
        raise RuntimeError("full")

    async def aclose(self) -> None:
        raise RuntimeError("stuck")


@pytest.fixture
async def home() -> AsyncIterator[asyncio.AbstractEventLoop]:
    """Make this test's loop the owner of the channel layer, as a serving process does."""
    loop = asyncio.get_running_loop()
    publisher.set_home_loop(loop)
    yield loop
    publisher.set_home_loop(None)


@pytest.fixture
async def kept(settings: Any) -> AsyncIterator[list[sinks.Published]]:
    """What a sink was shown, beside one that fails at everything."""
    settings.COMM = {
        "SINKS": ["tests.comm.test_publisher.FailingSink", "tests.comm.test_publisher.KeepingSink"],
    }
    KEPT.clear()
    await sinks.start_sinks()
    yield KEPT
    await sinks.aclose_sinks()


async def test_positions_count_up_in_the_order_of_calls(comm: ChatCommunicator) -> None:
    positions = [await comm.delta("answer", "x") for _ in range(5)]
    assert all(position is not None for position in positions)
    assert [position.seq for position in positions if position] == [1, 2, 3, 4, 5]


async def test_a_published_envelope_can_be_read_back_from_its_position(comm: ChatCommunicator) -> None:
    position = await comm.step("Working")
    assert position is not None
    before = Position(position.epoch, position.seq - 1)
    log = await get_channel_layer().group_read(session_group("session-1"), before, 10)
    assert [entry.position for entry in log.entries] == [position]
    assert log.entries[0].message["route"] == "chat_step"


async def test_sinks_see_what_was_published_and_where_it_stands(
    comm: ChatCommunicator, kept: list[sinks.Published], listener: Listener
) -> None:
    position = await comm.step("Working", target_sid="sid-1")
    heard = await listener.next()
    (seen,) = kept
    assert (seen.position, seen.session_id, seen.target_sid, seen.route) == (
        position,
        "session-1",
        "sid-1",
        "chat_step",
    )
    assert seen.envelope.event.title == heard.envelope["event"]["title"] == "Working"


async def test_sinks_see_nothing_that_the_layer_did_not_take(
    comm: ChatCommunicator, kept: list[sinks.Published], listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(group: str, message: object) -> None:
        raise ConnectionError("the layer is away")

    with monkeypatch.context() as patch:
        patch.setattr(listener.layer, "group_send", away)
        with pytest.raises(PublishFailed, match="the layer is away"):
            await comm.step("Lost")
    await comm.step("Taken")
    assert [published.envelope.event.title for published in kept] == ["Taken"]


async def test_a_project_event_has_no_position(comm: ChatCommunicator, kept: list[sinks.Published]) -> None:
    assert await comm.project_event(type="bundle.updated") is None
    assert [(published.position, published.session_id) for published in kept] == [(None, "")]


async def test_a_loop_of_its_own_publishes_through_the_loop_that_owns_the_layer(
    comm: ChatCommunicator, home: asyncio.AbstractEventLoop, listener: Listener
) -> None:
    def elsewhere() -> None:
        asyncio.run(comm.step("From another loop"))

    await asyncio.get_running_loop().run_in_executor(None, elsewhere)
    assert (await listener.next()).envelope["event"]["title"] == "From another loop"


async def test_every_sync_twin_says_what_its_async_method_says(
    make_comm: Maker, home: asyncio.AbstractEventLoop, listener: Listener
) -> None:
    comm = make_comm()

    def speak() -> None:
        comm.start_sync("Hi")
        comm.step_sync("Searching…")
        comm.delta_sync("answer", "Yes.")
        comm.event_sync(type="my.card", data={"n": 1}, target_sid="sid-1")
        comm.service_event_sync(type="my.notice")
        comm.followups_sync(["More?"])
        comm.complete_sync()
        comm.error_sync("too late")

    await sync_to_async(speak)()
    heard = await listener.until("chat.complete")
    assert [(item.envelope["type"], item.route, item.target_sid) for item in heard] == [
        ("chat.start", "chat_start", None),
        ("chat.step", "chat_step", None),
        ("chat.delta", "chat_delta", None),
        ("my.card", "chat_step", "sid-1"),
        ("my.notice", "chat_service", None),
        ("chat.followups", "chat_step", None),
        ("chat.complete", "chat_complete", None),
    ]
    assert heard[-1].envelope["data"] == {"final_answer": "Yes.", "followups": ["More?"]}
    assert (comm.ended, comm.first_position is not None) == ("complete", True)


async def test_an_envelope_made_elsewhere_has_a_sync_twin_too(
    comm: ChatCommunicator, home: asyncio.AbstractEventLoop, kept: list[sinks.Published]
) -> None:
    await comm.step("Once")
    await sync_to_async(comm.emit_sync)(kept[0].envelope, target_sid="sid-1")
    assert kept[1].envelope == kept[0].envelope
    assert [published.target_sid for published in kept] == [None, "sid-1"]


async def test_a_sync_project_event_reaches_the_project(
    comm: ChatCommunicator, home: asyncio.AbstractEventLoop, listener: Listener
) -> None:
    project = await Listener.on_project("acme", "shop")
    await sync_to_async(comm.project_event_sync)(type="bundle.updated")
    assert (await project.next()).envelope["type"] == "bundle.updated"


async def test_filters_and_guard_hold_for_sync_twins_too(
    make_comm: Maker, home: asyncio.AbstractEventLoop, listener: Listener
) -> None:
    guarded: list[bool] = []

    async def no_steps(user_type: str, user_id: str, event: Any) -> bool:
        await asyncio.sleep(0)
        return bool(event.type != "chat.step")

    comm = make_comm(event_filter=no_steps, guard=lambda: guarded.append(True))
    await sync_to_async(comm.step_sync)("Hidden")
    await sync_to_async(comm.delta_sync)("answer", "Seen")
    assert (await listener.next()).envelope["text"] == "Seen"
    assert guarded == [True]


@pytest.mark.django_db(transaction=True)
async def test_a_sync_twin_in_a_transaction_sends_on_commit(
    comm: ChatCommunicator, home: asyncio.AbstractEventLoop, listener: Listener
) -> None:
    written = threading.Event()
    go_on = threading.Event()

    def write() -> None:
        with transaction.atomic():
            comm.delta_sync("answer", "inside ")
            comm.delta_sync("answer", "the transaction")
            comm.complete_sync()
            written.set()
            assert go_on.wait(10)
        # The executor's thread outlives the test; its connection must not.
        transaction.get_connection().close()

    writing = asyncio.get_running_loop().run_in_executor(None, write)
    await asyncio.get_running_loop().run_in_executor(None, written.wait, 10)
    assert comm.ended is None
    # It would have come before this one, had it been sent already.
    await comm.step("Outside")
    go_on.set()
    await writing
    heard = await listener.until("chat.complete")
    assert [item.envelope["type"] for item in heard] == [
        "chat.step",
        "chat.delta",
        "chat.delta",
        "chat.complete",
    ]
    assert heard[-1].envelope["data"]["final_answer"] == "inside the transaction"
    assert comm.ended == "complete"


@pytest.mark.django_db(transaction=True)
async def test_a_rolled_back_transaction_sends_nothing_and_ends_nothing(
    comm: ChatCommunicator, home: asyncio.AbstractEventLoop, listener: Listener
) -> None:
    def fail() -> None:
        with transaction.atomic():
            comm.step_sync("Never")
            comm.complete_sync()
            raise LookupError

    with pytest.raises(LookupError):
        await sync_to_async(fail)()
    await comm.error("Something went wrong")
    assert (await listener.next()).envelope["type"] == "chat.error"


@pytest.mark.django_db(transaction=True)
async def test_two_ends_in_one_transaction_are_one(
    comm: ChatCommunicator, home: asyncio.AbstractEventLoop, listener: Listener
) -> None:
    def twice() -> None:
        with transaction.atomic():
            comm.complete_sync()
            comm.error_sync("and again")

    await sync_to_async(twice)()
    await comm.step("After")
    heard = [await listener.next(), await listener.next()]
    assert [item.envelope["type"] for item in heard] == ["chat.complete", "chat.step"]


async def test_a_thread_without_a_database_can_emit(
    comm: ChatCommunicator, home: asyncio.AbstractEventLoop, listener: Listener
) -> None:
    thread = threading.Thread(target=comm.step_sync, args=("From a thread",))
    thread.start()
    assert (await listener.next()).envelope["event"]["title"] == "From a thread"
    await asyncio.get_running_loop().run_in_executor(None, thread.join)


async def test_a_sync_twin_on_the_event_loop_is_told_to_await(
    comm: ChatCommunicator, home: asyncio.AbstractEventLoop, listener: Listener
) -> None:
    for emit in (comm.delta_sync, comm.step_sync):
        with pytest.raises(RuntimeError, match="await the async method"):
            emit("answer", "never said")
    await comm.complete()
    assert (await listener.next()).envelope["data"] == {"final_answer": ""}
    assert comm.steps == []


async def test_an_envelope_of_no_session_is_an_error_that_names_the_field(make_comm: Maker) -> None:
    with pytest.raises(EnvelopeInvalid, match=r"conversation\.session_id"):
        await make_comm(conversation={}).step("Working")


async def test_a_field_that_cannot_be_encoded_is_an_error_where_it_was_made(comm: ChatCommunicator) -> None:
    with pytest.raises(EnvelopeInvalid, match=r"data\.mean"):
        await sync_to_async(comm.event_sync)(type="my.card", data={"mean": float("inf")})


async def test_a_busy_loop_is_not_waited_for_and_sends_nothing_late(
    comm: ChatCommunicator, home: asyncio.AbstractEventLoop, listener: Listener, settings: Any
) -> None:
    settings.COMM = {"SYNC_PUBLISH_TIMEOUT_SECONDS": 0.05}
    failed = threading.Event()
    errors: list[Exception] = []

    def speak() -> None:
        try:
            comm.complete_sync()
        except PublishFailed as error:
            errors.append(error)
        failed.set()

    thread = threading.Thread(target=speak)
    thread.start()
    # The loop stands still until the emitter has given up.
    assert failed.wait(10)
    thread.join()
    assert "in time" in str(errors[0])
    await comm.step("After")
    assert (await listener.next()).envelope["event"]["title"] == "After"
    assert comm.ended is None


def test_without_a_serving_process_a_sync_twin_publishes_by_itself(make_comm: Maker) -> None:
    comm = make_comm()
    comm.start_sync()
    comm.complete_sync()
    assert comm.first_position is not None
    assert comm.last_position is not None
    log = async_to_sync(get_channel_layer().group_read)(
        session_group("session-1"), Position(comm.first_position.epoch, 0), 10
    )
    assert [entry.message["route"] for entry in log.entries] == ["chat_start", "chat_complete"]
