"""What every channel layer owes to Channels' specification: channels, groups, capacity, expiry, names."""

import asyncio
import random
import string
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from channels.exceptions import ChannelFull
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from channels.layers import channel_layers
from channels.testing import WebsocketCommunicator

from comm.groups import session_group
from relay.layers.base import HistoryChannelLayer
from tests.contract.backends import BACKENDS, LayerFactory
from tests.contract.reading import drained, received
from tests.waiting import aeventually

# --- sending and receiving ----------------------------------------------------------------------------


async def test_a_sent_message_is_received(layer: HistoryChannelLayer) -> None:
    message = {"type": "test.message", "text": "Ahoy", "bytes": b"\x00\xff", "number": 1.5, "none": None}
    await layer.send("plain", message)
    assert await received(layer, "plain", 1) == [message]


async def test_messages_are_received_in_the_order_they_were_sent(layer: HistoryChannelLayer) -> None:
    for n in range(3):
        await layer.send("plain", {"type": "test.message", "n": n})
    assert [message["n"] for message in await received(layer, "plain", 3)] == [0, 1, 2]


async def test_a_receiver_that_waits_gets_what_is_sent_later(layer: HistoryChannelLayer) -> None:
    channel = await layer.new_channel()
    receiving = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    assert not receiving.done()
    await layer.send(channel, {"type": "test.message", "n": 1})
    assert (await asyncio.wait_for(receiving, 5))["n"] == 1


async def test_each_message_goes_to_one_of_several_receivers(make_layer: LayerFactory) -> None:
    layer = await make_layer()
    channel = await layer.new_channel()
    receiving = [asyncio.create_task(layer.receive(channel)) for _ in range(10)]
    await asyncio.sleep(0)
    for n in range(10):
        await layer.send(channel, {"type": "test.message", "n": n})
    messages = await asyncio.wait_for(asyncio.gather(*receiving), 5)
    assert sorted(message["n"] for message in messages) == list(range(10))


async def test_channels_with_one_process_prefix_do_not_mix(layer: HistoryChannelLayer) -> None:
    channels = [await layer.new_channel("same") for _ in range(20)]
    receiving = [asyncio.create_task(layer.receive(channel)) for channel in channels]
    await asyncio.sleep(0)
    for number in random.sample(range(20), 20):
        await layer.send(channels[number], {"type": "test.message", "n": number})
    messages = await asyncio.wait_for(asyncio.gather(*receiving), 5)
    assert [message["n"] for message in messages] == list(range(20))


async def test_changing_a_message_after_sending_changes_nothing(layer: HistoryChannelLayer) -> None:
    message: dict[str, Any] = {"type": "test.message", "list": [1]}
    await layer.send("plain", message)
    message["list"].append(2)
    message["more"] = True
    assert await received(layer, "plain", 1) == [{"type": "test.message", "list": [1]}]


async def test_a_message_must_be_a_dict(layer: HistoryChannelLayer) -> None:
    with pytest.raises(AssertionError):
        await layer.send("plain", "text")  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        await layer.group_send("group", ["text"])  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_channels_outlive_the_loop_they_were_sent_from(backend: Callable[[], HistoryChannelLayer]) -> None:
    """Synchronous code has a loop of its own for each call, as `async_to_sync` gives it."""
    layer = backend()
    first, second = asyncio.run(layer.new_channel()), asyncio.run(layer.new_channel())
    asyncio.run(layer.send(first, {"type": "test.message", "n": 1}))
    asyncio.run(layer.send(second, {"type": "test.message", "n": 2}))
    assert asyncio.run(layer.receive(second))["n"] == 2
    assert asyncio.run(layer.receive(first))["n"] == 1


# --- cancelling ---------------------------------------------------------------------------------------


async def test_a_cancelled_receiver_loses_no_message(make_layer: LayerFactory) -> None:
    layer = await make_layer(capacity=1000)
    channel = await layer.new_channel()
    got: list[int] = []
    for n in range(200):
        receiving = asyncio.create_task(layer.receive(channel))
        sending = asyncio.create_task(layer.send(channel, {"type": "test.message", "n": n}))
        for _ in range(n % 5):
            await asyncio.sleep(0)
        receiving.cancel()
        with suppress(asyncio.CancelledError):
            got.append((await receiving)["n"])
        await sending
    assert got, "no receiver was quick enough to make this a test"
    assert len(got) < 200, "no receiver was cancelled in time to make this a test"
    assert sorted(got + await drained(layer, channel)) == list(range(200))


async def test_a_receiver_cancelled_as_it_is_woken_leaves_the_message_to_another(
    layer: HistoryChannelLayer,
) -> None:
    channel = await layer.new_channel()
    first = asyncio.create_task(layer.receive(channel))
    second = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    await layer.send(channel, {"type": "test.message", "n": 1})
    first.cancel()
    assert (await asyncio.wait_for(second, 5))["n"] == 1
    assert first.cancelled()


async def test_a_receiver_that_is_about_to_end_is_passed_over(layer: HistoryChannelLayer) -> None:
    channel = await layer.new_channel()
    first = asyncio.create_task(layer.receive(channel))
    second = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    first.cancel()
    await layer.send(channel, {"type": "test.message", "n": 1})
    assert (await asyncio.wait_for(second, 5))["n"] == 1


async def test_a_cancelled_receiver_of_many_loses_no_message(layer: HistoryChannelLayer) -> None:
    channel = await layer.new_channel()
    receiving = asyncio.create_task(layer.receive_many(channel))
    await asyncio.sleep(0)
    await layer.send(channel, {"type": "test.message", "n": 1})
    await layer.send(channel, {"type": "test.message", "n": 2})
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert await drained(layer, channel) == [1, 2]


# --- capacity and expiry ------------------------------------------------------------------------------


async def test_a_full_channel_refuses_a_send(layer: HistoryChannelLayer) -> None:
    for n in range(3):
        await layer.send("plain", {"type": "test.message", "n": n})
    with pytest.raises(ChannelFull):
        await layer.send("plain", {"type": "test.message", "n": 3})
    assert [message["n"] for message in await received(layer, "plain", 3)] == [0, 1, 2]


async def test_a_channel_may_have_a_capacity_of_its_own(make_layer: LayerFactory) -> None:
    layer = await make_layer(capacity=3, channel_capacity={"one": 1, "many.*": 5})
    await layer.send("one", {"type": "test.message"})
    with pytest.raises(ChannelFull):
        await layer.send("one", {"type": "test.message"})
    many = await layer.new_channel("many")
    for _ in range(5):
        await layer.send(many, {"type": "test.message"})
    with pytest.raises(ChannelFull):
        await layer.send(many, {"type": "test.message"})


async def test_a_full_channel_has_room_again_once_received_from(layer: HistoryChannelLayer) -> None:
    for n in range(3):
        await layer.send("plain", {"type": "test.message", "n": n})
    await received(layer, "plain", 1)
    await layer.send("plain", {"type": "test.message", "n": 3})
    assert await drained(layer, "plain") == [1, 2, 3]


async def test_a_group_send_passes_over_a_full_channel(layer: HistoryChannelLayer) -> None:
    full, roomy = await layer.new_channel(), await layer.new_channel()
    for channel in (full, roomy):
        await layer.group_add("group", channel)
    for n in range(3):
        await layer.send(full, {"type": "test.message", "n": -n})
    await layer.group_send("group", {"type": "test.message", "n": 5})
    assert await drained(layer, roomy) == [5]
    assert await drained(layer, full) == [0, -1, -2]


async def test_an_expired_message_makes_room_and_is_never_received(make_layer: LayerFactory) -> None:
    layer = await make_layer(capacity=1, expiry=1)
    await layer.send("plain", {"type": "test.message", "n": "old"})

    async def send_new() -> bool:
        try:
            await layer.send("plain", {"type": "test.message", "n": "new"})
        except ChannelFull:
            return False
        return True

    assert not await send_new()
    await aeventually(send_new, what="the old message's expiry")
    assert (await received(layer, "plain", 1))[0]["n"] == "new"


async def test_an_expired_message_is_not_received_when_none_follows(make_layer: LayerFactory) -> None:
    layer = await make_layer(expiry=1)
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "test.message", "n": "old"})
    await asyncio.sleep(1.5)  # the expiry itself
    receiving = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    await layer.send(channel, {"type": "test.message", "n": "new"})
    assert (await asyncio.wait_for(receiving, 5))["n"] == "new"


async def test_a_message_within_its_time_survives_an_older_one_s_expiry(make_layer: LayerFactory) -> None:
    layer = await make_layer(capacity=2, expiry=1)
    await layer.send("plain", {"type": "test.message", "n": "old"})
    await asyncio.sleep(0.5)  # half of what the first one has
    await layer.send("plain", {"type": "test.message", "n": "new"})

    async def send_newest() -> bool:
        try:
            await layer.send("plain", {"type": "test.message", "n": "newest"})
        except ChannelFull:
            return False
        return True

    await aeventually(send_newest, what="the old message's expiry")
    assert [message["n"] for message in await received(layer, "plain", 2)] == ["new", "newest"]


# --- groups -------------------------------------------------------------------------------------------


async def test_a_group_send_reaches_the_members_and_nobody_else(layer: HistoryChannelLayer) -> None:
    first, left, third, stranger = [await layer.new_channel(f"chan-{n}") for n in range(4)]
    for channel in (first, left, third):
        await layer.group_add("group", channel)
    await layer.group_discard("group", left)
    assert await layer.group_send("group", {"type": "test.message", "n": 1}) is None
    assert await drained(layer, first) == [1]
    assert await drained(layer, third) == [1]
    assert await drained(layer, left) == []
    assert await drained(layer, stranger) == []


async def test_members_with_one_prefix_each_get_the_message(layer: HistoryChannelLayer) -> None:
    channels = [await layer.new_channel("same") for _ in range(30)]
    for channel in channels:
        await layer.group_add("group", channel)
    await layer.group_send("group", {"type": "test.message", "n": 1})
    assert [await drained(layer, channel) for channel in channels] == [[1]] * 30


async def test_a_channel_that_joins_twice_gets_a_message_once(layer: HistoryChannelLayer) -> None:
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.group_add("group", channel)
    await layer.group_send("group", {"type": "test.message", "n": 1})
    assert await drained(layer, channel) == [1]


async def test_a_channel_in_two_groups_gets_both_in_order(layer: HistoryChannelLayer) -> None:
    channel = await layer.new_channel()
    await layer.group_add("left", channel)
    await layer.group_add("right", channel)
    for n, group in enumerate(["left", "right", "left"]):
        await layer.group_send(group, {"type": "test.message", "n": n})
    assert await drained(layer, channel) == [0, 1, 2]


async def test_leaving_a_group_that_was_never_joined_is_harmless(layer: HistoryChannelLayer) -> None:
    channel, member = await layer.new_channel(), await layer.new_channel()
    await layer.group_add("group", member)
    await layer.group_discard("group", channel)
    await layer.group_discard("unknown", channel)
    await layer.group_send("group", {"type": "test.message", "n": 1})
    assert await drained(layer, member) == [1]


async def test_members_of_a_group_do_not_share_a_message(layer: HistoryChannelLayer) -> None:
    channels = [await layer.new_channel() for _ in range(2)]
    sent: dict[str, Any] = {"type": "test.message", "list": [1]}
    for channel in channels:
        await layer.group_add("group", channel)
    await layer.group_send("group", sent)
    sent["list"].append(2)
    for channel in channels:
        (message,) = await received(layer, channel, 1)
        assert message["list"] == [1]
        message["list"].append(3)


async def test_a_member_that_stopped_receiving_ends_after_the_group_expiry(make_layer: LayerFactory) -> None:
    layer = await make_layer(group_expiry=1)
    await layer.group_add("group", old := await layer.new_channel())
    await asyncio.sleep(1.5)  # the expiry itself
    await layer.group_add("group", new := await layer.new_channel())
    await layer.group_send("group", {"type": "test.message", "n": 1})
    assert await drained(layer, new) == [1]
    assert await drained(layer, old) == []


# --- names, flush -------------------------------------------------------------------------------------


async def test_new_channels_are_unique_whatever_the_random_seed(layer: HistoryChannelLayer) -> None:
    names = set()
    for _ in range(100):
        random.seed(1)
        names.add(await layer.new_channel())
    assert len(names) == 100


async def test_a_new_channel_is_named_for_its_prefix_and_its_process(make_layer: LayerFactory) -> None:
    layer, other = await make_layer(), await make_layer()
    name = await layer.new_channel("turns")
    process, _, local = name.partition("!")
    assert process.startswith("turns.")
    assert local
    assert set(name) <= set(string.ascii_letters + string.digits + "-_.!")
    assert (await layer.new_channel("turns")).partition("!")[0] == process
    assert (await other.new_channel("turns")).partition("!")[0] != process


@pytest.mark.parametrize("name", ["=+135!", "with space", "", "a/b", "ümlaut", "x" * 100, 5, None, b"bytes"])
async def test_an_invalid_name_is_a_type_error(layer: HistoryChannelLayer, name: Any) -> None:
    with pytest.raises(TypeError):
        await layer.send(name, {"type": "test.message"})
    with pytest.raises(TypeError):
        await layer.receive(name)
    with pytest.raises(TypeError):
        await layer.receive_many(name)
    with pytest.raises(TypeError):
        await layer.group_add("group", name)
    with pytest.raises(TypeError):
        await layer.group_add(name, "channel")
    with pytest.raises(TypeError):
        await layer.group_discard("group", name)
    with pytest.raises(TypeError):
        await layer.group_discard(name, "channel")
    with pytest.raises(TypeError):
        await layer.group_send(name, {"type": "test.message"})


@pytest.mark.parametrize("name", ["group!local", "session.a b", "session." + "x" * 92])
async def test_an_invalid_group_name_is_a_type_error(layer: HistoryChannelLayer, name: str) -> None:
    with pytest.raises(TypeError):
        await layer.group_send(name, {"type": "test.message"})
    with pytest.raises(TypeError):
        await layer.group_tail(name)


async def test_another_process_s_channel_is_not_received_from(make_layer: LayerFactory) -> None:
    layer, other = await make_layer(), await make_layer()
    theirs = await other.new_channel()
    with pytest.raises(AssertionError):
        await layer.receive(theirs)
    with pytest.raises(AssertionError):
        await layer.receive("not-our-prefix!local")


async def test_flush_forgets_messages_and_groups(layer: HistoryChannelLayer) -> None:
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.send(channel, {"type": "test.message", "n": 1})
    await layer.flush()
    await layer.group_send("group", {"type": "test.message", "n": 2})
    assert await drained(layer, channel) == []


async def test_a_receiver_that_waits_through_a_flush_still_receives(layer: HistoryChannelLayer) -> None:
    channel = await layer.new_channel()
    receiving = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    await layer.flush()
    await layer.send(channel, {"type": "test.message", "n": 1})
    assert (await asyncio.wait_for(receiving, 5))["n"] == 1


async def test_the_layer_names_its_extensions(layer: HistoryChannelLayer) -> None:
    assert {"groups", "flush", "history"} <= set(layer.extensions)


# --- Channels' consumers ------------------------------------------------------------------------------


class ChatConsumer(AsyncJsonWebsocketConsumer):
    """An ordinary chat room; what is said in it also goes to a group with history."""

    groups = ["chat.room"]

    async def connect(self) -> None:
        await self.channel_layer.group_add(session_group("chat"), self.channel_name)
        await self.accept()

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        await self.channel_layer.group_send("chat.room", {"type": "chat.said", "text": content["text"]})
        kept = {"type": "chat.kept", "text": content["text"]}
        await self.channel_layer.group_send(session_group("chat"), kept)

    async def chat_said(self, event: dict[str, Any]) -> None:
        await self.send_json({"said": event["text"]})

    async def chat_kept(self, event: dict[str, Any]) -> None:
        await self.send_json({"kept": event["text"], "seq": event["position"].seq})

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(session_group("chat"), self.channel_name)


# Channels looks after database connections at each message, so it wants to be let at them.
@pytest.mark.django_db(transaction=True)
async def test_a_chat_consumer_of_channels_runs_on_the_layer(layer: HistoryChannelLayer) -> None:
    before = channel_layers.set("default", layer)
    try:
        anna, bert = (WebsocketCommunicator(ChatConsumer.as_asgi(), "/room") for _ in range(2))
        for client in (anna, bert):
            assert (await client.connect())[0]
        await anna.send_json_to({"text": "Hello"})
        await anna.send_json_to({"text": "Anyone?"})
        for client in (anna, bert):
            frames = [await client.receive_json_from(5) for _ in range(4)]
            assert [frame for frame in frames if "said" in frame] == [{"said": "Hello"}, {"said": "Anyone?"}]
            kept = [frame for frame in frames if "kept" in frame]
            assert kept == [{"kept": "Hello", "seq": 1}, {"kept": "Anyone?", "seq": 2}]
        await anna.disconnect()
        await bert.send_json_to({"text": "Gone?"})
        assert [await bert.receive_json_from(5) for _ in range(2)] == [
            {"said": "Gone?"},
            {"kept": "Gone?", "seq": 3},
        ]
        await bert.disconnect()
    finally:
        if before is None:
            channel_layers.backends.pop("default", None)
        else:
            channel_layers.set("default", before)
