"""Senders on Redis that are cancelled: what was sent is known to be, and nothing else is."""

import asyncio
import contextlib
from typing import Any

import pytest

from comm import ChatCommunicator
from comm.groups import session_group
from comm.history import Position, Taken
from relay.layers.calls import RedisAway
from tests.contract.reading import whole_log
from tests.relay.layers.maltreating import GROUP, default_layer, numbered
from tests.valkey import ValkeyProcess


async def test_a_sender_cancelled_while_redis_has_its_message_learns_the_position(
    valkey: ValkeyProcess, make: Any
) -> None:
    layer = make()
    first = await layer.group_send(GROUP, numbered(0))
    learned: list[Position | None] = []

    async def send() -> None:
        try:
            await layer.group_send(GROUP, numbered(1))
        except asyncio.CancelledError as error:
            if isinstance(error.__cause__, Taken):
                learned.append(error.__cause__.position)
            raise

    valkey.freeze()
    sending = asyncio.create_task(send())
    await asyncio.sleep(0.2)  # it is written, and nobody answers
    sending.cancel()
    await asyncio.sleep(0.2)
    assert not sending.done()
    valkey.thaw()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(sending, 10)
    assert learned == [Position(first.epoch, 2)]
    assert [n for _, n in await whole_log(layer, GROUP)] == [0, 1]


async def test_a_timeout_ends_with_the_block_that_it_is_for(valkey: ValkeyProcess, make: Any) -> None:
    layer = make()
    await layer.group_send(GROUP, numbered(0))

    async def send_in_time() -> str:
        try:
            async with asyncio.timeout(0.2):
                await layer.group_send(GROUP, numbered(1))
        except TimeoutError:
            await asyncio.sleep(0)
            return "too late"
        await asyncio.sleep(0)
        return "sent"

    valkey.freeze()
    sending = asyncio.create_task(send_in_time())
    await asyncio.sleep(0.5)  # the time is over, and nobody has answered
    valkey.thaw()
    assert await asyncio.wait_for(sending, 20) == "too late"
    assert [n for _, n in await whole_log(layer, GROUP)] == [0, 1]


async def test_what_was_taken_from_a_cancelled_turn_is_known_and_seen_by_all(
    valkey: ValkeyProcess, make: Any
) -> None:
    layer = make()
    seen: list[Position | None] = []
    with default_layer(layer):
        comm = ChatCommunicator(
            service={},
            conversation={"session_id": "one", "turn_id": "t"},
            observers=[lambda envelope, target_sid, position: seen.append(position)],
        )
        await comm.start()
        valkey.freeze()
        ending = asyncio.create_task(comm.complete())
        await asyncio.sleep(0.2)  # it is written, and nobody answers
        ending.cancel()
        valkey.thaw()
        await asyncio.wait([ending], timeout=20)
    assert ending.cancelled()
    assert comm.ended == "complete"
    assert comm.last_position == seen[-1] == await layer.group_tail(GROUP)
    assert len(seen) == 2


async def test_a_sender_cancelled_before_its_message_was_written_has_sent_nothing(make: Any) -> None:
    layer = make()
    await layer.group_send(GROUP, numbered(0))
    sending = [asyncio.create_task(layer.group_send(GROUP, numbered(n))) for n in range(1, 6)]
    await asyncio.sleep(0)
    sending[2].cancel()
    positions = await asyncio.gather(*sending, return_exceptions=True)
    assert isinstance(positions[2], asyncio.CancelledError)
    assert [n for _, n in await whole_log(layer, GROUP)] == [0, 1, 2, 4, 5]


async def test_cancelled_calls_leave_the_others_their_answers(make: Any) -> None:
    layer = make()
    for n in range(100):
        await layer.group_send(session_group(f"g{n % 7}"), numbered(n))
    calls = [asyncio.create_task(layer.group_tails([session_group(f"g{n % 7}")])) for n in range(70)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for call in calls[::3]:
        call.cancel()
    tails = await asyncio.gather(*calls, return_exceptions=True)
    expected = [len(range(n, 100, 7)) for n in range(7)]
    for n, tail in enumerate(tails):
        if not isinstance(tail, asyncio.CancelledError):
            assert [t.seq for t in tail] == [expected[n % 7]]
    assert sum(isinstance(tail, asyncio.CancelledError) for tail in tails) == 24


async def test_a_second_cancel_does_not_wait(valkey: ValkeyProcess, make: Any) -> None:
    layer = make()
    await layer.group_send(GROUP, numbered(0))
    valkey.freeze()
    sending = asyncio.create_task(layer.group_send(GROUP, numbered(1)))
    await asyncio.sleep(0.2)  # it is written
    sending.cancel()
    await asyncio.sleep(0.05)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(sending, 5)
    valkey.thaw()


async def test_a_cancelled_sender_whose_message_fails_is_still_cancelled(
    valkey: ValkeyProcess, make: Any
) -> None:
    layer = make(timeout=0.5)
    await layer.group_send(GROUP, numbered(0))

    async def send_again_and_again() -> None:
        while True:
            with contextlib.suppress(RedisAway):
                await layer.group_send(GROUP, numbered(1))

    valkey.freeze()
    sending = asyncio.create_task(send_again_and_again())
    await asyncio.sleep(0.2)  # it is written, and nobody answers
    sending.cancel()
    await asyncio.wait([sending], timeout=10)
    valkey.thaw()
    assert sending.cancelled()


async def test_the_end_of_a_turn_that_was_cut_off_and_not_taken_can_be_told_again(
    valkey: ValkeyProcess, make: Any
) -> None:
    layer = make(timeout=0.5)
    with default_layer(layer):
        comm = ChatCommunicator(service={}, conversation={"session_id": "one", "turn_id": "t"})
        await comm.start()
        valkey.freeze()
        ending = asyncio.create_task(comm.complete())
        await asyncio.sleep(0.2)  # it is written, and nobody answers
        ending.cancel()
        await asyncio.wait([ending], timeout=10)
        valkey.thaw()
        assert ending.cancelled()
        assert comm.ended is None
        await comm.complete()
        tail = await layer.group_tail(GROUP)
        log = await layer.group_read(GROUP, Position(tail.epoch, 0), 10)
        assert [entry.message["route"] for entry in log.entries] == ["chat_start", "chat_complete"]
