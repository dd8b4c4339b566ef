"""Who runs a turn: claims, leases, dead processes, drains."""

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest
from django.test import override_settings
from django.utils import timezone

from comm.archive import Archive
from comm.models import Message, Turn
from comm.turns import leases
from tests.comm.turns.bundles import GATE
from tests.comm.turns.conftest import QUICK, House
from tests.waiting import aeventually

pytestmark = pytest.mark.django_db(transaction=True)


class Remembers(Archive):
    """An archive that has half of every answer."""

    async def fold_text(self, session_id: str, turn_id: str, marker: str) -> str:
        return f"half of {marker}"


async def dead_turn(house: House, *, lease_seconds: float = -1) -> Turn:
    """A turn that a process claimed before it died."""
    ack = await house.say("x", bundle_id="wait")
    until = timezone.now() + timedelta(seconds=lease_seconds)
    await Turn.objects.filter(turn_id=ack["turn_id"]).aupdate(
        status=Turn.Status.RUNNING, owner_channel="turns.dead!x", fence=1, lease_until=until
    )
    return await house.turn(ack["turn_id"])


async def test_a_dead_processs_turn_is_declared_interrupted_once_and_never_run_again(
    quiet_house: House,
) -> None:
    with override_settings(COMM={**QUICK, "ARCHIVE": f"{__name__}.Remembers"}):
        turn = await dead_turn(quiet_house)
        await quiet_house.start()
        await quiet_house.start()
        await quiet_house.ended(turn.turn_id)
        after = await quiet_house.say(
            "after", conversation_id=turn.conversation.conversation_id, bundle_id="echo"
        )
        await quiet_house.ended(after["turn_id"])
    assert await quiet_house.told(turn.turn_id) == ["chat.error", "error interrupted"]
    error = next(e for e in await quiet_house.events() if e["type"] == "chat.error")
    assert error["data"]["error_type"] == "turn_interrupted"
    row = await quiet_house.turn(turn.turn_id)
    assert (row.status, row.fence) == (Turn.Status.INTERRUPTED, 2)
    assert (await Message.objects.aget(turn=row, role="assistant")).content == "half of answer"


async def test_a_lease_that_has_not_ended_is_respected_until_it_has(quiet_house: House) -> None:
    turn = await dead_turn(quiet_house, lease_seconds=0.6)
    await quiet_house.start()
    other = await quiet_house.say("meanwhile")
    await quiet_house.ended(other["turn_id"])
    assert await quiet_house.told(turn.turn_id) == []
    await quiet_house.ended(turn.turn_id)


async def test_the_sole_owner_of_a_database_declares_at_once(quiet_house: House) -> None:
    turn = await dead_turn(quiet_house, lease_seconds=3600)
    await quiet_house.start(sole_owner=True)
    assert await quiet_house.told(turn.turn_id) == ["chat.error", "error interrupted"]


async def test_an_accepted_turn_of_a_dead_process_is_run_once(quiet_house: House) -> None:
    ack = await quiet_house.say("hello")
    await asyncio.gather(quiet_house.start(), quiet_house.start())
    await quiet_house.ended(ack["turn_id"])
    again = await quiet_house.say("second")
    await quiet_house.ended(again["turn_id"])
    assert (await quiet_house.told(ack["turn_id"])).count("chat.start") == 1
    assert (await quiet_house.turn(ack["turn_id"])).fence == 1


async def test_two_runners_that_race_for_a_conversation_run_its_turns_one_at_a_time(
    quiet_house: House,
) -> None:
    first, second = await quiet_house.start(), await quiet_house.start()
    acks = [await quiet_house.say(f"m{n}", conversation_id="c") for n in range(10)]
    for ack in acks:
        for runner in (first, second):
            runner.ring(ack["turn_id"] or "")
    await quiet_house.ended(*(ack["turn_id"] for ack in acks))
    told = [e for e in await quiet_house.events() if e["type"] in ("chat.start", "chat.complete")]
    assert [e["type"] for e in told] == ["chat.start", "chat.complete"] * 10
    assert [e["conversation"]["turn_id"] for e in told[::2]] == [ack["turn_id"] for ack in acks]


async def test_a_duplicate_ring_starts_nothing_twice(house: House) -> None:
    ack = await house.say("x", bundle_id="wait")
    for _ in range(20):
        house.runners[0].ring(ack["turn_id"] or "")
    await house.until(lambda events: any(e["type"] == "chat.delta" for e in events))
    house.runners[0].ring(ack["turn_id"] or "")
    await house.say("", conversation_id=ack["conversation_id"], kind="steer")
    await house.ended(ack["turn_id"])
    house.runners[0].ring(ack["turn_id"] or "")
    after = await house.say("after")
    await house.ended(after["turn_id"])
    assert (await house.told(ack["turn_id"])).count("chat.start") == 1


async def test_a_stop_that_no_bell_rang_for_is_found(house: House) -> None:
    ack = await house.say("x", bundle_id="wait")
    await house.until(lambda events: any(e["type"] == "chat.delta" for e in events))
    await Turn.objects.filter(turn_id=ack["turn_id"]).aupdate(stop_requested_at=timezone.now())
    await house.ended(ack["turn_id"])
    assert (await house.turn(ack["turn_id"])).status == Turn.Status.STOPPED


async def test_a_stop_reaches_a_turn_that_another_runner_holds(quiet_house: House) -> None:
    with override_settings(COMM={**QUICK, "TURN_RENEW_SECONDS": 2.0}):
        await quiet_house.start()
        ack = await quiet_house.say("x", bundle_id="wait")
        await quiet_house.until(lambda events: any(e["type"] == "chat.delta" for e in events))
        await quiet_house.start()
        await quiet_house.say("", conversation_id=ack["conversation_id"], kind="steer")
        await quiet_house.ended(ack["turn_id"], timeout=1.5)


async def test_a_runner_that_lost_its_lease_emits_nothing_more(house: House) -> None:
    ack = await house.say("x", bundle_id="teller")
    await house.until(lambda events: sum(e["type"] == "chat.delta" for e in events) > 3)
    # Another process took the turn over, as it does with one whose owner was frozen.
    await Turn.objects.filter(turn_id=ack["turn_id"]).aupdate(
        owner_channel="turns.other!x", fence=2, lease_until=timezone.now() + timedelta(hours=1)
    )
    await aeventually(lambda: house.runners[0].running == 0)
    told = await house.told(ack["turn_id"])
    after = await house.say("after", bundle_id="echo")
    await house.ended(after["turn_id"])
    assert await house.told(ack["turn_id"]) == told
    assert set(told[3:]) <= {"chat.delta", "chat.conversation.title"}
    assert (await house.turn(ack["turn_id"])).fence == 2


async def test_a_bundle_that_blocks_its_database_thread_holds_up_nobody(house: House) -> None:
    GATE.clear()
    try:
        blocked = await house.say("x", bundle_id="blocking")
        await house.until(lambda events: any(e["type"] == "chat.delta" for e in events))
        others = [await house.say(f"m{n}", bundle_id="rows") for n in range(3)]
        await house.ended(*(ack["turn_id"] for ack in others))
        held = (await house.turn(blocked["turn_id"])).lease_until
        await aeventually(lambda: _renewed(house, blocked["turn_id"], held), what="a renewed lease")
    finally:
        GATE.set()
    await house.ended(blocked["turn_id"])


async def _renewed(house: House, turn_id: str | None, since: object) -> bool:
    return (await house.turn(turn_id)).lease_until != since


# --- draining -------------------------------------------------------------------------------------------------


async def test_a_drain_lets_started_turns_end_and_starts_none(quiet_house: House) -> None:
    with override_settings(COMM={**QUICK, "TURN_CONCURRENCY": 1}):
        runner = await quiet_house.start()
        running = await quiet_house.say("x", bundle_id="wait")
        await quiet_house.until(lambda events: any(e["type"] == "chat.delta" for e in events))
        waiting = await quiet_house.say("later", bundle_id="echo")
        drain = asyncio.create_task(runner.drain(10))
        await asyncio.sleep(0)
        await quiet_house.say("", conversation_id=running["conversation_id"], kind="steer")
        await drain
    assert (await quiet_house.turn(running["turn_id"])).status == Turn.Status.STOPPED
    assert (await quiet_house.turn(waiting["turn_id"])).status == Turn.Status.ACCEPTED


async def test_a_turn_that_outlasts_the_drain_is_declared_interrupted_with_what_there_was(
    house: House,
) -> None:
    ack = await house.say("x", bundle_id="stubborn")
    await house.until(lambda events: any(e["type"] == "chat.delta" for e in events))
    await house.runners[0].drain(0.05)
    assert (await house.told())[-2:] == ["chat.error", "error interrupted"]
    assert (await house.turn(ack["turn_id"])).status == Turn.Status.INTERRUPTED
    assert (await Message.objects.aget(role="assistant")).content == "begun"


async def test_closing_a_runner_leaves_its_turns_to_their_leases(house: House) -> None:
    ack = await house.say("x", bundle_id="wait")
    await house.until(lambda events: any(e["type"] == "chat.delta" for e in events))
    await house.runners.pop().aclose()
    assert (await house.turn(ack["turn_id"])).status == Turn.Status.RUNNING
    await house.start(sole_owner=True)
    await house.ended(ack["turn_id"])
    assert (await house.turn(ack["turn_id"])).status == Turn.Status.INTERRUPTED


async def test_a_turn_whose_claim_is_cut_off_is_given_back(
    quiet_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = await quiet_house.start(embedded=False)
    ack = await quiet_house.say("x", bundle_id="teller")
    begun, may_end = threading.Event(), threading.Event()
    claim = leases.claim

    def slow_claim(*args: Any) -> Any:
        claimed = claim(*args)
        begun.set()
        may_end.wait(10)
        return claimed

    monkeypatch.setattr(leases, "claim", slow_claim)
    running = asyncio.create_task(runner.run(ack["turn_id"]))
    await aeventually(begun.is_set)
    assert (await quiet_house.turn(ack["turn_id"])).status == Turn.Status.RUNNING
    running.cancel()
    may_end.set()

    async def waits_again() -> bool:
        return (await quiet_house.turn(ack["turn_id"])).status == Turn.Status.ACCEPTED

    await aeventually(waits_again, what="the turn to be given back")
    assert runner.running == 0
