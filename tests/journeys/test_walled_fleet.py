"""A fleet behind the tenants' wall: a web process and workers that connect as a role that owns nothing."""

import asyncio
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import ChatClient, text_of
from tests.fleet import Fleet
from tests.waiting import aeventually
from tests.walled import WalledDatabase, walled_database

pytestmark = pytest.mark.fleet

ENV = {
    "TENANT_WALL": "true",
    "DEFAULT_BUNDLE": "looking",
    "BUNDLES": "looking=tests.journeys.bundles.Looking",
    "MESSAGE_RATE": "",
}


@pytest.fixture(scope="module")
def database() -> WalledDatabase:
    return walled_database(__name__)


@pytest.fixture
def fleet(database: WalledDatabase, tmp_path: Path) -> Iterator[Fleet]:
    env = {**ENV, "DATABASE_URL": database.url}
    with Fleet(tmp_path, web=1, workers=1, recorders=1, env=env) as fleet:
        yield fleet


async def test_workers_run_the_turns_of_every_tenant_each_for_its_own(
    fleet: Fleet, database: WalledDatabase
) -> None:
    tenants = [f"fleet-{uuid.uuid4().hex}" for _ in range(4)]

    async def visit(tenant: str) -> None:
        async with ChatClient(fleet.urls[0]) as client, client.stream(tenant=tenant) as stream:
            for number in (1, 2):
                await client.send(f"hello {number}", tenant=tenant)
                seen = json.loads(text_of(await stream.until_idle(timeout=60)))
                assert seen["async"] == seen["raw"] == seen["thread"] == [tenant]

    await asyncio.gather(*map(visit, tenants))
    await asyncio.to_thread(fleet.until_recorded)
    for tenant in tenants:
        recorded = "SELECT count(DISTINCT turn_id) FROM recorder_recordedenvelope WHERE turn_id <> ''"
        assert database.seen(recorded, tenant) == [(2,)]
        assert database.seen("SELECT DISTINCT status FROM comm_turn", tenant) == [("completed",)]
        assert database.seen("SELECT count(*) FROM comm_turn", tenant) == [(2,)]


async def test_a_dead_workers_turns_are_declared_whatever_their_tenant(
    fleet: Fleet, database: WalledDatabase
) -> None:
    tenants = [f"fleet-{uuid.uuid4().hex}" for _ in range(2)]
    async with ChatClient(fleet.urls[0]) as client:
        acks = []
        for tenant in tenants:
            async with client.stream(tenant=tenant) as stream:
                acks.append(await client.send("wait", tenant=tenant))
                await stream.until(lambda event: event.event == "chat_start", timeout=60)
        fleet.workers[0].kill()
        for ack in acks:
            query = f"SELECT status FROM comm_turn WHERE turn_id = '{ack['turn_id']}'"
            await aeventually(lambda q=query: database.all(q) == [("interrupted",)], timeout=90)


@pytest.mark.parametrize("role", ["workers", "recorders"])
def test_a_worker_or_recorder_whose_role_passes_by_the_wall_does_not_start(
    database: WalledDatabase, tmp_path: Path, role: str
) -> None:
    env = {**ENV, "DATABASE_URL": database.owner_url}
    fleet = Fleet(tmp_path, **{"web": 0, "workers": 0, "recorders": 0, role: 1}, env=env)
    try:
        with pytest.raises(AssertionError, match=r"TENANT_WALL is on, but the role owner_.* owns comm_"):
            fleet.start()
    finally:
        fleet.close()
