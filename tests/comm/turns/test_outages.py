"""A channel layer or a database that is away for a while: the turn ends properly, and is told when that is possible."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from channels.db import database_sync_to_async
from django.db import OperationalError
from django.test import override_settings
from django.utils import timezone

from comm.models import Turn
from comm.turns import endings, execution, leases
from comm.turns.acceptance import accept
from comm.turns.ids import mint_turn_id
from tests.comm.turns.conftest import QUICK, House
from tests.waiting import aeventually

pytestmark = pytest.mark.django_db(transaction=True)


class Away:
    """Lets calls of a function fail while it is switched on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception) -> None:
        self.on = False
        self.refused = 0
        self.answered = 0
        self.error = error
        self.real = getattr(owner, name)
        made = self._refusing_async if asyncio.iscoroutinefunction(self.real) else self._refusing
        monkeypatch.setattr(owner, name, made)

    async def _refusing_async(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse()
        return await self.real(*args, **kwargs)

    def _refusing(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse()
        result = self.real(*args, **kwargs)
        self.answered += 1
        return result

    def _refuse(self) -> None:
        if self.on:
            self.refused += 1
            raise self.error


@pytest.fixture
def layer_away(house: House, monkeypatch: pytest.MonkeyPatch) -> Away:
    """The channel layer takes nothing while it is on."""
    return Away(monkeypatch, house.layer, "group_send", ConnectionError("the layer is away"))


async def begun(house: House, bundle_id: str) -> dict[str, Any]:
    ack = await house.say("x", bundle_id=bundle_id)
    await house.until(lambda events: any(e["type"] == "chat.delta" for e in events))
    return dict(ack)


def row_is(house: House, turn_id: str | None, status: str) -> Callable[[], Any]:
    async def is_so() -> bool:
        return (await house.turn(turn_id)).status == status

    return is_so


async def test_an_end_waits_for_a_layer_that_is_away_for_a_moment(house: House, layer_away: Away) -> None:
    ack = await begun(house, "teller")
    layer_away.on = True
    await aeventually(lambda: layer_away.refused >= 2)
    layer_away.on = False
    await house.ended(ack["turn_id"])
    assert (await house.told())[-2:] == ["chat.error", "error error"]
    assert (await house.turn(ack["turn_id"])).status == Turn.Status.ERROR


async def test_an_end_is_written_without_the_layer_and_told_when_it_is_back(
    house: House, layer_away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "SOON_SECONDS", 0.0)
    monkeypatch.setattr(endings, "TELL_AGAIN_SECONDS", 0.05)
    ack = await begun(house, "teller")
    layer_away.on = True
    await aeventually(row_is(house, ack["turn_id"], Turn.Status.ERROR))
    refused = layer_away.refused
    await aeventually(lambda: layer_away.refused > refused)
    layer_away.on = False
    await house.ended(ack["turn_id"])
    assert (await house.told())[-2:] == ["chat.error", "error error"]
    after = await house.say("after", conversation_id=ack["conversation_id"], bundle_id="echo")
    await house.ended(after["turn_id"])


async def test_a_turn_that_could_not_be_opened_ends_as_an_error(house: House, layer_away: Away) -> None:
    layer_away.on = True
    ack = await house.say("x")
    await aeventually(lambda: layer_away.refused >= 2)
    layer_away.on = False
    await house.ended(ack["turn_id"])
    assert (await house.told(ack["turn_id"]))[-2:] == ["chat.error", "error error"]


async def test_a_drain_ends_while_the_layer_is_away(house: House, layer_away: Away) -> None:
    ack = await begun(house, "stubborn")
    layer_away.on = True
    await asyncio.wait_for(house.runners[0].drain(0.05), 15)
    assert (await house.turn(ack["turn_id"])).status == Turn.Status.INTERRUPTED


async def test_a_dead_turn_is_declared_when_the_layer_is_back(
    quiet_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch, quiet_house.layer, "group_send", ConnectionError("the layer is away"))
    with override_settings(COMM={**QUICK, "TURN_LEASE_SECONDS": 1.0}):
        ack = await quiet_house.say("x", bundle_id="wait")
        await Turn.objects.filter(turn_id=ack["turn_id"]).aupdate(
            status=Turn.Status.RUNNING, owner_channel="turns.dead!x", lease_until=timezone.now()
        )
        away.on = True
        await quiet_house.serve()
        await aeventually(lambda: away.refused >= 2)
        away.on = False
        await quiet_house.ended(ack["turn_id"])
    assert await quiet_house.told(ack["turn_id"]) == ["chat.error", "error interrupted"]


async def test_a_turn_survives_a_database_that_is_away_for_less_than_its_lease(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    ack = await begun(house, "wait")
    renewals = Away(monkeypatch, leases, "renew", OperationalError("the database is away"))
    ends = Away(monkeypatch, leases, "finish", OperationalError("the database is away"))
    renewals.on = ends.on = True
    await aeventually(lambda: renewals.refused >= 3)
    await house.say("", conversation_id=ack["conversation_id"], kind="steer")
    await aeventually(lambda: ends.refused >= 2)
    renewals.on = ends.on = False
    await house.ended(ack["turn_id"])
    row = await house.turn(ack["turn_id"])
    assert (row.status, row.fence) == (Turn.Status.STOPPED, 1)


async def test_followups_that_cannot_be_read_run_afterwards(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch, leases, "absorb_followup", OperationalError("the database is away"))
    ack = await begun(house, "asker")
    await aeventually(lambda: away.answered)
    away.on = True
    second = await house.say("last", conversation_id=ack["conversation_id"], bundle_id="echo")
    await aeventually(lambda: away.refused)
    await house.say("", conversation_id=ack["conversation_id"], kind="steer")
    await house.ended(ack["turn_id"], second["turn_id"])
    assert (await house.turn(ack["turn_id"])).status == Turn.Status.STOPPED
    assert (await house.turn(second["turn_id"])).status == Turn.Status.COMPLETED


async def test_a_row_that_nobody_here_runs_is_not_renewed(quiet_house: House) -> None:
    def claim_two_and_renew_one() -> tuple[list[leases.Held], list[Turn]]:
        turn_ids = [str(accept(quiet_house.message(text))["turn_id"]) for text in ("run", "left")]
        for turn_id in turn_ids:
            assert leases.claim(turn_id, "turns.mine!x", "")
        Turn.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
        held = leases.renew("turns.mine!x", turn_ids[:1])
        return held, list(Turn.objects.order_by("pk"))

    held, (run, left) = await database_sync_to_async(claim_two_and_renew_one)()
    assert {row.turn_id: row.renewed for row in held} == {run.turn_id: True, left.turn_id: False}
    assert run.lease_until > timezone.now() > left.lease_until


async def test_an_id_that_another_process_took_in_the_same_moment_is_passed_over(
    quiet_house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await quiet_house.say("x")
    ids = iter([first["turn_id"], first["turn_id"]])
    monkeypatch.setattr("comm.turns.acceptance.mint_turn_id", lambda: next(ids, None) or mint_turn_id())
    second = await database_sync_to_async(accept)(quiet_house.message("y", conversation_id="c"))
    assert second["turn_id"] != first["turn_id"]
    assert await Turn.objects.filter(conversation__conversation_id="c").acount() == 1
