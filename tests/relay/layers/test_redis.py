"""The layer on Redis across processes, loops and channels of all kinds; each layer here stands for a process."""

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from channels.exceptions import ChannelFull
from django.core.exceptions import ImproperlyConfigured

from comm.groups import session_group
from comm.history import Position
from relay.layers.address import Address
from relay.layers.redis import RedisChannelLayer
from tests.contract.backends import redis_layer, redis_url
from tests.contract.reading import drained, received, whole_log
from tests.waiting import aeventually

GROUP = session_group("one")


def numbered(n: object) -> dict[str, Any]:
    return {"type": "test.message", "n": n}


@pytest.fixture
async def make() -> AsyncIterator[Any]:
    """Make layers, all of one house."""
    made: list[RedisChannelLayer] = []
    prefix = f"test-{secrets.token_hex(6)}"

    def make(**options: Any) -> RedisChannelLayer:
        layer = redis_layer(prefix=prefix, **options)
        made.append(layer)
        return layer

    yield make
    await made[0].flush()
    for layer in made:
        await layer.aclose()


# --- processes ----------------------------------------------------------------------------------------


async def test_what_one_process_sends_the_others_hear_in_one_order(make: Any) -> None:
    layers = [make(capacity=10_000) for _ in range(3)]
    channels = [await layer.new_channel() for layer in layers]
    for layer, channel in zip(layers, channels, strict=True):
        await layer.group_add(GROUP, channel)
    await asyncio.gather(
        *(layer.group_send(GROUP, numbered([who, n])) for n in range(200) for who, layer in enumerate(layers))
    )
    heard = [await received(layer, channel, 600) for layer, channel in zip(layers, channels, strict=True)]
    orders = [[(message["position"], message["n"]) for message in messages] for messages in heard]
    assert orders[0] == orders[1] == orders[2] == await whole_log(layers[0], GROUP)
    for who in range(3):
        assert [n for _, (whose, n) in orders[0] if whose == who] == list(range(200))


async def test_processes_that_share_a_store_share_its_logs(make: Any) -> None:
    one, two = make(), make()
    tail = await one.group_tail(GROUP)
    assert await two.group_send(GROUP, numbered(1)) == Position(tail.epoch, 1)
    await one.group_forget(GROUP)
    assert (await two.group_tail(GROUP)).epoch > tail.epoch


async def test_a_channel_of_another_process_can_be_sent_to(make: Any) -> None:
    one, two = make(), make()
    channel = await two.new_channel("turns.of.two")
    await two.group_tail(GROUP)  # it is connected
    for n in range(3):
        await one.send(channel, numbered(n))
    assert [message["n"] for message in await received(two, channel, 3)] == [0, 1, 2]
    with pytest.raises(AssertionError):
        await one.receive(channel)


async def test_a_full_channel_of_another_process_drops_and_harms_nobody(make: Any) -> None:
    one, two = make(), make(capacity=2)
    full, roomy = await two.new_channel(), await two.new_channel()
    await two.group_tail(GROUP)
    for n in range(5):
        await one.send(full, numbered(n))
    await one.send(roomy, numbered("end"))
    assert [message["n"] for message in await received(two, roomy, 1)] == ["end"]
    assert await drained(two, full) == [0, 1]


async def test_a_channel_of_a_process_that_is_gone_swallows_what_is_sent(make: Any) -> None:
    one, two = make(), make()
    channel = await two.new_channel()
    await two.aclose()
    await one.send(channel, numbered(1))


async def test_houses_under_two_prefixes_hear_nothing_of_each_other() -> None:
    ours, theirs = redis_layer(), redis_layer()
    try:
        await ours.group_add(GROUP, mine := await ours.new_channel())
        await theirs.group_add(GROUP, other := await theirs.new_channel())
        await theirs.group_send(GROUP, numbered(1))
        await ours.group_send(GROUP, numbered(2))
        assert await drained(ours, mine) == [2]
        assert await drained(theirs, other) == [1]
        await theirs.flush()
        assert [n for _, n in await whole_log(ours, GROUP)] == [2], "a flush is for one house"
    finally:
        for layer in (ours, theirs):
            await layer.flush()
            await layer.aclose()


async def test_only_channels_of_this_process_join_groups(make: Any) -> None:
    one, two = make(), make()
    for channel in ("shared", await two.new_channel()):
        with pytest.raises(ValueError, match="only channels of this process"):
            await one.group_add(GROUP, channel)


# --- channels of no process ---------------------------------------------------------------------------


async def test_a_shared_channel_gives_each_message_to_one_process(make: Any) -> None:
    one, two = make(), make()
    receiving = [asyncio.create_task(layer.receive("work")) for layer in (one, two, one, two)]
    for n in range(4):
        await one.send("work", numbered(n))
    messages = await asyncio.wait_for(asyncio.gather(*receiving), 10)
    assert sorted(message["n"] for message in messages) == [0, 1, 2, 3]


async def test_a_shared_channel_is_full_for_everybody(make: Any) -> None:
    one, two = make(capacity=2), make(capacity=2)
    await one.send("work", numbered(0))
    await two.send("work", numbered(1))
    with pytest.raises(ChannelFull):
        await one.send("work", numbered(2))
    assert [message["n"] for message in await two.receive_many("work")] == [0, 1]


async def test_a_cancelled_receiver_leaves_a_shared_message_where_it_was(make: Any) -> None:
    one, two = make(capacity=1000), make(capacity=1000)
    got: list[int] = []
    for n in range(60):
        await two.send("work", numbered(n))
        receiving = asyncio.create_task(one.receive("work"))
        for _ in range(n % 4):
            await asyncio.sleep(0)
        receiving.cancel()
        done = (await asyncio.gather(receiving, return_exceptions=True))[0]
        if isinstance(done, dict):
            got.append(done["n"])
    while len(got) < 60:
        got += [message["n"] for message in await asyncio.wait_for(two.receive_many("work"), 10)]
    assert sorted(got) == list(range(60))


# --- loops --------------------------------------------------------------------------------------------


def test_commands_without_a_loop_of_their_own_can_use_the_layer() -> None:
    """Each `async_to_sync` has a loop of its own, which ends with the call."""
    layer = redis_layer()
    positions = [async_to_sync(layer.group_send)(GROUP, numbered(n)) for n in range(3)]
    assert [position.seq for position in positions if position] == [1, 2, 3]
    assert async_to_sync(layer.group_tail)(GROUP) == positions[-1]
    channel = async_to_sync(layer.new_channel)()
    async_to_sync(layer.group_add)(GROUP, channel)
    async_to_sync(layer.group_send)(GROUP, numbered(3))

    async def hear() -> Any:
        await layer.group_send(GROUP, numbered(4))
        return (await layer.receive_many(channel))[-1]["n"]

    assert asyncio.run(hear()) == 4, "the next loop is subscribed to what the last one was"
    async_to_sync(layer.flush)()
    async_to_sync(layer.aclose)()


async def test_another_loop_is_told_where_to_go_while_the_layer_s_own_runs(make: Any) -> None:
    layer = make()
    await layer.group_tail(GROUP)
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            asyncio.run(layer.group_tail(GROUP))
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert "at_home" in str(errors[0])


async def test_closing_ends_what_was_started_and_the_layer_can_be_used_again(make: Any) -> None:
    layer = make()
    before = asyncio.all_tasks()
    await layer.group_send(GROUP, numbered(1))
    assert asyncio.all_tasks() > before
    await layer.aclose()
    assert asyncio.all_tasks() == before
    await layer.aclose()
    assert (await layer.group_tail(GROUP)).seq == 1


# --- streams ------------------------------------------------------------------------------------------


async def test_streams_told_by_one_process_are_found_by_another_until_they_close(make: Any) -> None:
    one, two = make(), make()
    await one.tell_streams({"s1": b"one's", "s2": b"more"}, 60)
    await two.tell_streams({"s1": b"two's"}, 60)
    assert sorted(await two.find_streams("s1", 5)) == [b"one's", b"two's"]
    await one.tell_streams({"s1": b""}, 60)
    assert await one.find_streams("s1", 5) == [b"two's"]
    assert await one.find_streams("unknown", 5) == []


async def test_streams_of_a_process_that_died_end_by_themselves(make: Any) -> None:
    one, two = make(), make()
    await one.tell_streams({"s": b"dies"}, 0.3)
    await two.tell_streams({"s": b"lives"}, 60)

    async def only_one() -> bool:
        return await two.find_streams("s", 5) == [b"lives"]

    await aeventually(only_one, what="the end of what was told")


async def test_many_streams_are_told_at_once(make: Any) -> None:
    layer = make()
    await layer.tell_streams({f"s{n}": b"%d" % n for n in range(1000)}, 60)
    assert await layer.find_streams("s999", 5) == [b"999"]


# --- addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://example", Address("example")),
        ("redis://example:7000/3", Address("example", 7000, "", 3)),
        ("redis://u:p%40ss@example:1/", Address("example", 1, "", 0, "u", "p@ss")),
        ("redis://:p@[::1]:1?db=2", Address("::1", 1, "", 2, "", "p")),
        ("unix:///run/redis.sock?db=4", Address("localhost", 6379, "/run/redis.sock", 4)),
    ],
)
def test_an_address_is_read(url: str, address: Address) -> None:
    assert Address.parse(url) == address
    assert "p@ss" not in repr(address) + str(address)


def test_a_secure_address_checks_certificates() -> None:
    tls = Address.parse("rediss://example").tls
    assert tls is not None
    assert tls.check_hostname


@pytest.mark.parametrize(
    "url", ["", "example:6379", "http://example", "redis://example:port", "redis://example/x"]
)
def test_an_address_that_cannot_be_read_is_an_error_without_the_password(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="address of Redis cannot be read"):
        RedisChannelLayer(url=url)


def test_a_prefix_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="prefix"):
        RedisChannelLayer(url=redis_url(), prefix="a{b}*")
