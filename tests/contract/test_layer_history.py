"""What the channel layers with history promise: positions, logs, their bounds, and no silent gap."""

import asyncio
import random
import time
from typing import Any

import pytest

from comm.groups import project_group, session_group
from comm.history import Position
from relay.layers.base import HistoryChannelLayer
from tests.contract.backends import LayerFactory
from tests.contract.reading import drained, received, whole_log
from tests.waiting import aeventually

GROUP = session_group("one")
OTHER = session_group("two")

bounds_all_logs = pytest.mark.parametrize("make_layer", ["memory"], indirect=True)
"""For layers that bound all logs together. On Redis its `maxmemory` does so: tests/relay/layers/test_redis_store.py."""


def numbered(n: object, **more: Any) -> dict[str, Any]:
    """A message that looks like those of the publisher, with a number."""
    return {"type": "test.message", "route": "chat_delta", "target_sid": None, "n": n, **more}


async def emit(layer: HistoryChannelLayer, count: int, *, group: str = GROUP, **more: Any) -> list[Position]:
    """Send messages 0 to count - 1 to a group; return their positions."""
    positions = []
    for n in range(count):
        position = await layer.group_send(group, numbered(n, **more))
        assert position is not None
        positions.append(position)
    return positions


# --- positions ----------------------------------------------------------------------------------------


async def test_positions_count_from_one_without_a_gap(layer: HistoryChannelLayer) -> None:
    positions = await emit(layer, 50)
    assert [position.seq for position in positions] == list(range(1, 51))
    assert len({position.epoch for position in positions}) == 1


async def test_each_group_counts_for_itself(layer: HistoryChannelLayer) -> None:
    await emit(layer, 3)
    assert [position.seq for position in await emit(layer, 2, group=OTHER)] == [1, 2]
    assert (await layer.group_tail(GROUP)).seq == 3


async def test_an_epoch_is_the_time_of_the_log_s_creation(layer: HistoryChannelLayer) -> None:
    before = time.time_ns() // 1_000_000
    (position,) = await emit(layer, 1)
    assert before <= position.epoch <= time.time_ns() // 1_000_000


async def test_many_new_logs_do_not_push_epochs_ahead_of_the_clock(layer: HistoryChannelLayer) -> None:
    for n in range(2000):
        await layer.group_tail(session_group(f"session-{n}"))
    assert (await layer.group_tail(GROUP)).epoch <= time.time_ns() // 1_000_000


async def test_a_log_that_was_lost_is_followed_by_a_later_epoch(layer: HistoryChannelLayer) -> None:
    tails = []
    for _ in range(5):  # quicker than the clock's milliseconds
        tails += await emit(layer, 2)
        await layer.flush()
    assert tails == sorted(tails)
    assert len({position.epoch for position in tails}) == 5
    assert [position.seq for position in tails] == [1, 2] * 5


async def test_members_learn_group_and_position(layer: HistoryChannelLayer) -> None:
    channel = await layer.new_channel()
    await layer.group_add(GROUP, channel)
    position = await layer.group_send(GROUP, numbered(7, body=b"\x00{}"))
    expected = {**numbered(7, body=b"\x00{}"), "group": GROUP, "position": position}
    (message,) = await received(layer, channel, 1)
    assert message == expected
    assert isinstance(message["position"], Position)


async def test_a_position_that_the_producer_sent_is_not_believed(layer: HistoryChannelLayer) -> None:
    channel = await layer.new_channel()
    await layer.group_add(GROUP, channel)
    position = await layer.group_send(GROUP, numbered(1, group="session.other", position=Position(1, 1)))
    (message,) = await received(layer, channel, 1)
    assert (message["group"], message["position"]) == (GROUP, position)


async def test_a_group_without_history_has_no_positions(layer: HistoryChannelLayer) -> None:
    group, channel = project_group("tenant", "project"), await layer.new_channel()
    await layer.group_add(group, channel)
    assert not layer.has_history(group)
    assert await layer.group_send(group, numbered(1)) is None
    assert "position" not in (await received(layer, channel, 1))[0]
    with pytest.raises(ValueError):
        await layer.group_read(group, Position(0, 0), 10)
    with pytest.raises(ValueError):
        await layer.group_tail(group)


# --- one order ----------------------------------------------------------------------------------------


async def test_log_positions_and_delivery_agree_under_many_producers(make_layer: LayerFactory) -> None:
    layer = await make_layer(capacity=10_000)
    channels = [await layer.new_channel() for _ in range(3)]
    for channel in channels:
        await layer.group_add(GROUP, channel)
    sent: dict[Position, str] = {}

    async def produce(name: int) -> None:
        last = Position(0, 0)
        for n in range(100):
            position = await layer.group_send(GROUP, numbered(f"{name}:{n}"))
            assert position is not None
            assert position > last, "a producer's own order was turned round"
            assert position not in sent, "a position was given twice"
            sent[position] = f"{name}:{n}"
            last = position
            if random.random() < 0.2:
                await asyncio.sleep(0)

    await asyncio.gather(*(produce(name) for name in range(20)))
    by_position = sorted(sent.items())
    assert [position.seq for position, _ in by_position] == list(range(1, 2001))
    assert await whole_log(layer, GROUP) == by_position
    for channel in channels:
        messages = await received(layer, channel, 2000)
        assert [(message["position"], message["n"]) for message in messages] == by_position


async def test_the_order_of_calls_is_the_order_of_positions(make_layer: LayerFactory) -> None:
    layer = await make_layer()
    positions = await asyncio.gather(*(layer.group_send(GROUP, numbered(n)) for n in range(300)))
    assert [position.seq for position in positions if position] == list(range(1, 301))
    assert [n for _, n in await whole_log(layer, GROUP)] == list(range(300))


async def test_several_channels_see_several_groups_in_the_same_order(make_layer: LayerFactory) -> None:
    layer = await make_layer(capacity=10_000)
    hub = await layer.new_channel("hub")
    for group in (GROUP, OTHER):
        await layer.group_add(group, hub)
    await asyncio.gather(emit(layer, 200), emit(layer, 200, group=OTHER))
    messages = await received(layer, hub, 400)
    for group in (GROUP, OTHER):
        assert [message["n"] for message in messages if message["group"] == group] == list(range(200))


# --- reading ------------------------------------------------------------------------------------------


async def test_reading_gives_what_follows_a_position(layer: HistoryChannelLayer) -> None:
    positions = await emit(layer, 10, body=b"{}")
    log = await layer.group_read(GROUP, positions[3], 100)
    assert [(entry.position, entry.message) for entry in log.entries] == [
        (positions[n], numbered(n, body=b"{}")) for n in range(4, 10)
    ]
    assert log.reaches(positions[3])
    assert log.start == Position(positions[0].epoch, 0)
    assert log.tail == positions[-1]


async def test_reading_in_parts_gives_everything_once(layer: HistoryChannelLayer) -> None:
    positions = await emit(layer, 23)
    after, read = Position(positions[0].epoch, 0), []
    while (log := await layer.group_read(GROUP, after, 5)).entries:
        assert len(log.entries) <= 5
        assert log.reaches(after)
        read += [entry.position for entry in log.entries]
        after = read[-1]
    assert read == positions
    assert log.tail == after


async def test_reading_from_the_tail_gives_nothing_and_reaches(layer: HistoryChannelLayer) -> None:
    positions = await emit(layer, 3)
    log = await layer.group_read(GROUP, positions[-1], 10)
    assert log.entries == []
    assert log.reaches(positions[-1])


async def test_a_position_past_the_tail_is_not_reached(layer: HistoryChannelLayer) -> None:
    positions = await emit(layer, 3)
    beyond = Position(positions[0].epoch, 4)
    log = await layer.group_read(GROUP, beyond, 2)
    assert not log.reaches(beyond)
    assert [entry.position for entry in log.entries] == positions[:2]


@pytest.mark.parametrize("distance_ms", [-1, 1])
async def test_another_epoch_is_not_reached_and_gives_the_oldest(
    layer: HistoryChannelLayer, distance_ms: int
) -> None:
    positions = await emit(layer, 3)
    elsewhere = Position(positions[0].epoch + distance_ms, 1)
    log = await layer.group_read(GROUP, elsewhere, 10)
    assert not log.reaches(elsewhere)
    assert [entry.position for entry in log.entries] == positions


async def test_an_empty_log_is_made_by_reading_and_goes_on_from_there(layer: HistoryChannelLayer) -> None:
    tail = await layer.group_tail(GROUP)
    assert tail.seq == 0
    log = await layer.group_read(GROUP, tail, 10)
    assert (log.start, log.tail, log.entries) == (tail, tail, [])
    assert log.reaches(tail)
    assert await emit(layer, 1) == [Position(tail.epoch, 1)]


async def test_tails_of_several_groups_come_in_the_order_asked(layer: HistoryChannelLayer) -> None:
    await emit(layer, 3)
    await emit(layer, 5, group=OTHER)
    tails = await layer.group_tails([OTHER, session_group("new"), GROUP])
    assert [tail.seq for tail in tails] == [5, 0, 3]
    assert tails[1] == await layer.group_tail(session_group("new"))
    assert await layer.group_tails([]) == []


async def test_what_a_producer_does_to_its_message_is_not_in_the_log(layer: HistoryChannelLayer) -> None:
    message = numbered(1, nested={"list": [1]})
    await layer.group_send(GROUP, message)
    message["nested"]["list"].append(2)
    message["n"] = 99
    log = await layer.group_read(GROUP, Position(0, 0), 10)
    assert log.entries[0].message == numbered(1, nested={"list": [1]})


async def test_what_a_member_does_to_its_message_is_not_in_the_log(layer: HistoryChannelLayer) -> None:
    channel = await layer.new_channel()
    await layer.group_add(GROUP, channel)
    await layer.group_send(GROUP, numbered(1, nested=[1]))
    (message,) = await received(layer, channel, 1)
    message["nested"].append(2)
    message["n"] = 99
    log = await layer.group_read(GROUP, Position(0, 0), 10)
    assert log.entries[0].message == numbered(1, nested=[1])


# --- bounds -------------------------------------------------------------------------------------------


async def test_a_log_keeps_its_newest_entries_by_count(make_layer: LayerFactory) -> None:
    layer = await make_layer(history_count=10)
    positions = await emit(layer, 25)
    log = await layer.group_read(GROUP, positions[0], 100)
    assert [entry.position for entry in log.entries] == positions[-10:]
    assert log.start == positions[-11]
    assert log.reaches(positions[-11])
    assert not log.reaches(positions[-12])


async def test_a_log_keeps_its_newest_entries_by_bytes(make_layer: LayerFactory) -> None:
    layer = await make_layer(history_bytes=100_000)
    positions = await emit(layer, 40, body=bytes(10_000))
    kept = await whole_log(layer, GROUP)
    assert 5 <= len(kept) <= 10
    assert [position for position, _ in kept] == positions[-len(kept) :]


async def test_bytes_inside_nested_values_count(make_layer: LayerFactory) -> None:
    layer = await make_layer(history_bytes=100_000)
    await emit(layer, 40, nested={"parts": [{"text": "x" * 10_000}]})
    assert 5 <= len(await whole_log(layer, GROUP)) <= 10


async def test_the_newest_entry_is_kept_whatever_its_size(make_layer: LayerFactory) -> None:
    layer = await make_layer(history_bytes=1000, history_total_bytes=1000)
    positions = await emit(layer, 3, body=bytes(50_000))
    assert await whole_log(layer, GROUP) == [(positions[-1], 2)]


async def test_a_log_forgets_entries_by_age(make_layer: LayerFactory) -> None:
    layer = await make_layer(history_seconds=1)
    await layer.group_add(GROUP, await layer.new_channel())
    positions = await emit(layer, 3)
    assert len(await whole_log(layer, GROUP)) == 3

    async def forgotten() -> bool:
        return not await whole_log(layer, GROUP)

    await aeventually(forgotten, what="the entries' age")
    log = await layer.group_read(GROUP, positions[0], 10)
    assert not log.reaches(positions[0])
    assert log.start == log.tail == positions[-1], "a joined group's positions go on"
    assert (await layer.group_send(GROUP, numbered(3))) == Position(positions[0].epoch, 4)


@bounds_all_logs
async def test_all_logs_are_bounded_and_the_longest_unused_gives_way(make_layer: LayerFactory) -> None:
    layer = await make_layer(history_total_bytes=200_000)
    groups = [session_group(f"session-{n}") for n in range(10)]
    for group in groups:
        await emit(layer, 5, group=group, body=bytes(10_000))
    kept = {group: len(await whole_log(layer, group)) for group in groups}
    assert kept[groups[-1]] == 5
    assert kept[groups[0]] == 0
    assert 10 <= sum(kept.values()) <= 20


@bounds_all_logs
async def test_a_log_that_is_written_to_does_not_give_way_to_idle_ones(make_layer: LayerFactory) -> None:
    layer = await make_layer(history_total_bytes=200_000)
    busy = await emit(layer, 1, body=bytes(10_000))
    for n in range(20):
        await emit(layer, 1, group=session_group(f"idle-{n}"), body=bytes(10_000))
        busy += await emit(layer, 1, body=bytes(10_000))
    assert {position.epoch for position in busy} == {busy[0].epoch}
    assert [position.seq for position in busy] == list(range(1, 22))
    assert (await layer.group_read(GROUP, busy[-5], 100)).reaches(busy[-5])


@bounds_all_logs
async def test_a_joined_log_that_gave_way_goes_on_counting(make_layer: LayerFactory) -> None:
    layer = await make_layer(history_total_bytes=100_000)
    channel = await layer.new_channel()
    await layer.group_add(GROUP, channel)
    positions = await emit(layer, 3, body=bytes(10_000))
    await emit(layer, 20, group=OTHER, body=bytes(10_000))
    log = await layer.group_read(GROUP, positions[0], 10)
    assert not log.reaches(positions[0])
    assert await layer.group_send(GROUP, numbered(3)) == Position(positions[0].epoch, 4)


async def test_an_idle_log_that_nobody_joined_is_dropped(make_layer: LayerFactory) -> None:
    layer = await make_layer(history_seconds=1, history_total_bytes=200_000)
    (lost,) = await emit(layer, 1, body=bytes(100_000))
    await layer.group_add(OTHER, await layer.new_channel())
    (joined,) = await emit(layer, 1, group=OTHER)

    async def dropped() -> bool:
        await layer.group_send(session_group("third"), numbered(1))  # an idle layer looks after nothing
        return (await layer.group_tail(GROUP)).epoch > lost.epoch

    await aeventually(dropped, what="the idle log's end")
    assert (await layer.group_tail(GROUP)).seq == 0
    assert await layer.group_tail(OTHER) == joined
    await emit(layer, 2, body=bytes(60_000))
    assert len(await whole_log(layer, GROUP)) == 2, "its bytes are free again"


# --- receiving, and holes -----------------------------------------------------------------------------


async def test_receive_many_returns_all_that_wait_in_order(make_layer: LayerFactory) -> None:
    layer = await make_layer(capacity=1000)
    channel = await layer.new_channel()
    for n in range(100):
        await layer.send(channel, numbered(n))
    messages: list[dict[str, Any]] = []
    while len(messages) < 100:
        messages += await asyncio.wait_for(layer.receive_many(channel), 5)
    assert [message["n"] for message in messages] == list(range(100))


async def test_receive_many_wakes_once_for_a_batch(make_layer: LayerFactory) -> None:
    layer = await make_layer(capacity=1000)
    channel = await layer.new_channel()
    await layer.group_add(GROUP, channel)
    receiving = asyncio.create_task(layer.receive_many(channel))
    await asyncio.sleep(0)
    await asyncio.gather(*(layer.group_send(GROUP, numbered(n)) for n in range(20)))
    first = await asyncio.wait_for(receiving, 5)
    assert first, "it woke for nothing"
    batches = [first]
    while sum(map(len, batches)) < 20:
        batches.append(await asyncio.wait_for(layer.receive_many(channel), 5))
    assert [message["n"] for batch in batches for message in batch] == list(range(20))
    assert len(batches) < 10, "it woke for single messages"


async def test_a_hole_left_by_a_full_channel_is_filled_from_the_log(layer: HistoryChannelLayer) -> None:
    channel = await layer.new_channel()
    await layer.group_add(GROUP, channel)
    start = await layer.group_tail(GROUP)
    await emit(layer, 10)  # the channel takes three
    seen = [message["position"].seq for message in await received(layer, channel, 3)]
    assert seen == [1, 2, 3]
    await layer.group_send(GROUP, numbered(10))
    (live,) = await received(layer, channel, 1)
    assert live["position"].seq == 11, "the hole shows by the position"
    log = await layer.group_read(GROUP, Position(start.epoch, 3), 100)
    assert log.reaches(Position(start.epoch, 3))
    assert [entry.message["n"] for entry in log.entries] == [3, 4, 5, 6, 7, 8, 9, 10]


async def test_joining_and_then_reading_misses_nothing(make_layer: LayerFactory) -> None:
    layer = await make_layer(capacity=10_000)
    producing = asyncio.create_task(emit(layer, 500))
    while (await layer.group_tail(GROUP)).seq < 100:
        await asyncio.sleep(0)
    assert not producing.done()
    channel = await layer.new_channel()
    await layer.group_add(GROUP, channel)
    log = await layer.group_read(GROUP, Position((await layer.group_tail(GROUP)).epoch, 0), 10_000)
    positions = await producing
    served = [entry.position for entry in log.entries]
    while served[-1] != positions[-1]:
        (message,) = await received(layer, channel, 1)
        if message["position"] > served[-1]:
            served.append(message["position"])
    assert served == positions


async def test_a_channel_that_left_gets_no_more_positions(layer: HistoryChannelLayer) -> None:
    channel = await layer.new_channel()
    await layer.group_add(GROUP, channel)
    await layer.group_send(GROUP, numbered(1))
    await layer.group_discard(GROUP, channel)
    await layer.group_send(GROUP, numbered(2))
    assert await drained(layer, channel) == [1]


async def test_nobody_s_group_keeps_its_history(layer: HistoryChannelLayer) -> None:
    positions = await emit(layer, 3)
    assert await whole_log(layer, GROUP) == [(positions[n], n) for n in range(3)]


async def test_a_forgotten_log_is_followed_by_a_later_one(layer: HistoryChannelLayer) -> None:
    channel = await layer.new_channel()
    await layer.group_add(GROUP, channel)
    (before, _) = await emit(layer, 2)
    await layer.group_forget(GROUP)
    assert await whole_log(layer, GROUP) == []
    (after,) = await emit(layer, 1)
    assert (after.seq, after > before) == (1, True)
    assert await drained(layer, channel) == [0, 1, 0], "who has joined stays joined"
    await layer.group_forget(OTHER)
