"""A Redis that comes back with its data, without some of it, or with none: no position twice, and no loss unnamed."""

import asyncio
import time
from typing import Any

import pytest

from comm.history import Position
from comm.publisher import MESSAGE_TYPE
from tests.contract.reading import drained, whole_log
from tests.relay.layers.maltreating import GROUP, OTHER, client, numbered
from tests.valkey import ValkeyProcess
from tests.waiting import aeventually


@pytest.mark.parametrize("valkey", [{"durable": True}], indirect=True)
async def test_a_restart_with_its_data_loses_nothing(valkey: ValkeyProcess, make: Any) -> None:
    layer = make()
    await layer.group_add(GROUP, channel := await layer.new_channel())
    before = [await layer.group_send(GROUP, numbered(n)) for n in range(3)]
    valkey.kill()
    sending = asyncio.create_task(layer.group_send(GROUP, numbered(3)))
    valkey.start()
    after = await asyncio.wait_for(sending, 20)
    assert after == Position(before[0].epoch, 4)
    assert [n for _, n in await whole_log(layer, GROUP)] == [0, 1, 2, 3]
    assert await drained(layer, channel) == [0, 1, 2, 3]


async def test_a_restart_without_its_data_begins_a_later_epoch(valkey: ValkeyProcess, make: Any) -> None:
    layer = make()
    await layer.group_add(GROUP, channel := await layer.new_channel())
    before = [await layer.group_send(GROUP, numbered(n)) for n in range(3)]
    valkey.kill()
    valkey.start()
    after = await asyncio.wait_for(layer.group_send(GROUP, numbered("new")), 20)
    assert after.seq == 1
    assert after > before[-1]
    assert await drained(layer, channel) == [0, 1, 2, "new"]
    tail = await layer.group_tail(GROUP)
    assert tail == after


@pytest.mark.parametrize("knows", ["by hearing", "by sending"])
async def test_older_data_than_was_delivered_begins_a_later_epoch(
    valkey: ValkeyProcess, make: Any, knows: str
) -> None:
    sender, other = make(), make()
    if knows == "by hearing":
        await other.group_add(GROUP, await other.new_channel())
    kept = [await sender.group_send(GROUP, numbered(n)) for n in range(3)]
    client(valkey).save()
    lost = [await sender.group_send(GROUP, numbered(n)) for n in range(3, 6)]
    await other.group_tail(OTHER)
    if knows == "by hearing":
        await sender.aclose()
    valkey.kill()
    valkey.start()
    knower = other if knows == "by hearing" else sender
    tail = await asyncio.wait_for(knower.group_tail(GROUP), 20)
    assert tail > lost[-1]
    assert tail.epoch > kept[0].epoch
    assert await make().group_send(GROUP, numbered("new")) == Position(tail.epoch, 1)


async def test_an_epoch_is_later_when_the_clock_was_set_back(valkey: ValkeyProcess, make: Any) -> None:
    """The store's memory of its clock stands in for the clock itself."""
    layer = make()
    first = await layer.group_send(GROUP, numbered(1))
    ahead = int(time.time() * 1000) + 3_600_000
    prefix = f"{make.prefix}:"
    client(valkey).hset(f"{prefix}clock", mapping={"seen": ahead, "high": ahead})
    later = await layer.group_send(OTHER, numbered(1))
    assert later.epoch == ahead + 1, "all that was given before counts as gone"
    client(valkey).delete(f"{prefix}tail:{GROUP}")
    again = await layer.group_send(GROUP, numbered(1))
    assert again.epoch > first.epoch
    assert again.epoch <= ahead + 2, "it does not run away from the clock"


# --- what is told of a loss ---------------------------------------------------------------------------


def recorded(n: object) -> dict[str, Any]:
    return {"type": MESSAGE_TYPE, "n": n}


def noted(valkey: ValkeyProcess, make: Any) -> dict[bytes, bytes]:
    return client(valkey).hgetall(f"{make.prefix}:recorder:gaps")  # type: ignore[return-value]


async def test_what_a_crash_took_from_the_recorder_is_noted(valkey: ValkeyProcess, make: Any) -> None:
    sender = make()
    kept = [await sender.group_send(GROUP, recorded(n)) for n in range(3)]
    await sender.group_send("session.three", numbered("no event"))
    client(valkey).save()
    lost = [await sender.group_send(GROUP, recorded(n)) for n in range(3, 6)]
    new = await sender.group_send(OTHER, recorded("in a log that is lost whole"))
    valkey.kill()
    valkey.start()
    await asyncio.wait_for(sender.group_tail(GROUP), 20)
    assert noted(valkey, make) == {
        GROUP.encode(): f"{kept[0].epoch}-4 {lost[-1]} 3 back".encode(),
        OTHER.encode(): f"{new} {new} 1 back".encode(),
    }
    later = await sender.group_send(OTHER, recorded("later"))
    assert later.epoch > new.epoch


async def test_processes_that_know_more_and_more_of_a_loss_note_it_once(
    valkey: ValkeyProcess, make: Any
) -> None:
    senders = [make(), make(), make()]
    first = await senders[0].group_send(GROUP, recorded(1))
    client(valkey).save()
    for sender in senders:
        await sender.group_send(GROUP, recorded("lost"))
    less, more, most = senders
    valkey.kill()
    valkey.start()
    for sender in (more, less, most):
        # The others have no connection meanwhile: each notices when it is asked.
        await asyncio.wait_for(sender.group_tail(GROUP), 20)
    await aeventually(
        lambda: noted(valkey, make) == {GROUP.encode(): f"{first.epoch}-2 {first.epoch}-4 3 back".encode()},
        what="a note of all that is lost",
    )


async def test_a_log_that_expired_is_no_loss(
    valkey: ValkeyProcess, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    layer = make(history_seconds=0.2)
    expired = await layer.group_send(GROUP, recorded(1))
    await aeventually(
        lambda: not client(valkey).exists(f"{make.prefix}:tail:{GROUP}"), what="the end of an unused log"
    )
    resumed = asyncio.create_task(layer.resumed())
    await asyncio.sleep(0)
    client(valkey).client_kill_filter(_type="pubsub")
    await asyncio.wait_for(resumed, 20)
    assert not client(valkey).exists(f"{make.prefix}:tail:{GROUP}"), "nobody has asked for a new one"
    assert noted(valkey, make) == {}
    assert "lost what was sent" not in caplog.text
    assert (await layer.group_send(GROUP, recorded(2))).epoch > expired.epoch
