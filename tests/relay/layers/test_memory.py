"""What is particular to the layer in memory: fairness in one loop, cancelled senders, the end of things."""

import asyncio
import time
from typing import Any

import pytest
from channels.exceptions import ChannelFull

from comm.groups import session_group
from comm.history import Position
from relay.layers.memory import MemoryChannelLayer
from tests.waiting import aeventually

GROUP = session_group("one")
MESSAGE: dict[str, Any] = {"type": "test.message", "target_sid": None, "body": b"{}"}


async def test_a_producer_in_a_tight_loop_lets_others_run() -> None:
    layer = MemoryChannelLayer()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    bystander = asyncio.create_task(other())
    for _ in range(6400):
        await layer.group_send(GROUP, MESSAGE)
    bystander.cancel()
    assert turns >= 99


async def test_a_lone_send_does_not_wait_for_the_loop() -> None:
    layer = MemoryChannelLayer()
    ran = False

    def run() -> None:
        nonlocal ran
        ran = True

    asyncio.get_running_loop().call_soon(run)
    await layer.group_send(GROUP, MESSAGE)
    assert not ran


async def test_a_reader_that_keeps_up_misses_nothing_at_the_default_capacity() -> None:
    layer = MemoryChannelLayer()
    channel = await layer.new_channel("hub")
    await layer.group_add(GROUP, channel)
    seen: list[int] = []

    async def read() -> None:
        while len(seen) < 10_000:
            seen.extend(message["position"].seq for message in await layer.receive_many(channel))

    reading = asyncio.create_task(read())
    for _ in range(10_000):
        await layer.group_send(GROUP, MESSAGE)
    await asyncio.wait_for(reading, 5)
    assert seen == list(range(1, 10_001))


async def test_a_producer_works_on_after_its_loop_has_ended() -> None:
    layer = MemoryChannelLayer()

    async def send_many() -> None:
        for _ in range(200):
            await layer.group_send(GROUP, MESSAGE)

    for _ in range(3):
        await asyncio.to_thread(asyncio.run, layer.group_send(GROUP, MESSAGE))
        await asyncio.to_thread(asyncio.run, send_many())
    await send_many()
    assert (await layer.group_tail(GROUP)).seq == 803


async def test_a_cancelled_sender_knows_the_position_of_all_that_went_out() -> None:
    layer = MemoryChannelLayer()
    noted: list[Position | None] = []

    async def produce() -> None:
        while True:
            noted.append(await layer.group_send(GROUP, MESSAGE))

    for rounds in range(1, 6):
        producing = asyncio.create_task(produce())
        for _ in range(rounds):
            await asyncio.sleep(0)
        producing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await producing
        assert noted[-1] == await layer.group_tail(GROUP)
    assert len(noted) > 100
    assert [position.seq for position in noted if position] == list(range(1, len(noted) + 1))


async def test_a_sender_that_waits_for_its_turn_is_not_overtaken_within_its_group() -> None:
    layer = MemoryChannelLayer()
    order: list[str] = []
    sending: list[asyncio.Task[None]] = []

    async def send(name: str) -> None:
        await layer.group_send(GROUP, {**MESSAGE, "n": name})
        order.append(name)

    async def fill_the_turn() -> None:
        for _ in range(64):
            await layer.group_send(session_group("other"), MESSAGE)
        # Runs in the next turn of the loop, before the one that the turn holds back.
        sending.append(asyncio.create_task(send("second")))

    await asyncio.gather(fill_the_turn(), send("first"))
    await sending[0]
    log = await layer.group_read(GROUP, Position(0, 0), 10)
    assert [entry.message["n"] for entry in log.entries] == order == ["first", "second"]


async def test_a_timeout_around_a_sender_is_still_a_timeout() -> None:
    layer = MemoryChannelLayer()

    async def produce() -> None:
        while True:
            await layer.group_send(GROUP, MESSAGE)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await produce()


async def test_a_member_that_receives_stays_one_past_the_group_expiry() -> None:
    layer = MemoryChannelLayer(group_expiry=0.01)
    channel = await layer.new_channel("hub")
    await layer.group_add(GROUP, channel)
    for n in range(1, 4):
        receiving = asyncio.create_task(layer.receive(channel))
        await asyncio.sleep(0.05)  # well past the expiry
        await layer.group_send(GROUP, MESSAGE)
        assert (await asyncio.wait_for(receiving, 5))["position"].seq == n


async def test_what_has_expired_counts_no_more_before_any_sweep() -> None:
    layer = MemoryChannelLayer(expiry=0.05, group_expiry=0.05, capacity=1)
    full, member = await layer.new_channel(), await layer.new_channel()
    await layer.send(full, MESSAGE)  # sweeps; the next sweep is a second away
    await layer.group_add("chat.room", member)
    await asyncio.sleep(0.1)  # the expiry itself
    await layer.send(full, {**MESSAGE, "n": 2})
    assert (await layer.receive(full))["n"] == 2
    await layer.group_send("chat.room", MESSAGE)
    await layer.send(member, {**MESSAGE, "n": 3})
    assert (await layer.receive(member))["n"] == 3


async def test_a_channel_that_nobody_receives_from_leaves_its_groups() -> None:
    layer = MemoryChannelLayer(expiry=0.05, capacity=1)
    dead = await layer.new_channel()
    await layer.group_add("chat.room", dead)
    await layer.group_send("chat.room", MESSAGE)

    async def gone() -> bool:
        await asyncio.sleep(0.1)  # the expiry of what waits there: whatever sends next, finds it dead
        await layer.send("elsewhere", MESSAGE)
        await layer.receive("elsewhere")
        # A member would have taken this one, and be full.
        await layer.group_send("chat.room", MESSAGE)
        try:
            await layer.send(dead, MESSAGE)
        except ChannelFull:
            return False
        return True

    await aeventually(gone, timeout=60, what="the end of the membership")
    await layer.group_send("chat.room", {**MESSAGE, "n": 2})
    assert await layer.receive(dead) == MESSAGE
    await layer.send(dead, {**MESSAGE, "n": 3})
    assert (await layer.receive(dead))["n"] == 3


async def test_what_nobody_came_for_is_given_back() -> None:
    layer = MemoryChannelLayer(expiry=0.05, history_seconds=0.05, group_expiry=0.05)
    for n in range(300):
        channel = await layer.new_channel()
        await layer.send(channel, MESSAGE)
        await layer.group_add(session_group(f"session-{n}"), channel)
        await layer.group_send(session_group(f"session-{n}"), MESSAGE)

    async def given_back() -> bool:
        await layer.group_send(GROUP, MESSAGE)
        return len(layer._channels) == 0 and len(layer._groups) == 0 and len(layer._logs._logs) == 1

    await aeventually(given_back, timeout=20, what="the return of channels, groups and logs")


async def test_a_send_costs_microseconds_whatever_else_is_in_the_layer() -> None:
    """Generous bounds: some 2 µs are usual, and a pass over all channels would take hundreds."""
    layer = MemoryChannelLayer()
    for n in range(5000):
        await layer.group_add(f"room.{n}", await layer.new_channel())
        await layer.group_tail(session_group(f"session-{n}"))
    channel = await layer.new_channel("hub")
    await layer.group_add(GROUP, channel)
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        for _ in range(50):
            await layer.group_send(GROUP, MESSAGE)
        best = min(best, (time.process_time() - began) / 50)
        await layer.receive_many(channel)
    assert best < 25e-6
