"""The fleet of the tests itself: what it starts, counts and breaks is real."""

import asyncio

from tests.clients import ChatClient, text_of
from tests.faults.conftest import StartFleet
from tests.waiting import aeventually


async def test_a_fleet_serves_counts_and_restarts(start_fleet: StartFleet) -> None:
    fleet = await asyncio.to_thread(start_fleet, web=2, workers=1, recorders=1, proxied=True)
    assert sorted(fleet.rss_mib()) == ["recorder-0", "web-0", "web-1", "worker-0"]
    assert all(mib > 10 for mib in fleet.rss_mib().values())
    before = {server.name: fleet.subscriptions_of(server) for server in fleet.web}
    async with ChatClient(fleet.urls[1]) as client:
        async with client.stream() as stream:
            # The session's group, in the one process that serves it.
            await aeventually(
                lambda: fleet.subscriptions_of(fleet.web[1]) == before["web-1"] + 1,
                what="one more subscription",
            )
            assert fleet.subscriptions_of(fleet.web[0]) == before["web-0"]
            assert sum(fleet.subscriptions().values()) >= sum(before.values()) + 1
            ack = await client.send("counted", config={"pace_ms": 0})
            answer = text_of(await stream.until_idle())
        await asyncio.to_thread(fleet.until_recorded)
        await aeventually(
            lambda: fleet.subscriptions_of(fleet.web[1]) == before["web-1"],
            what="the end of the subscription",
        )
        counted = fleet.query(
            f"SELECT count(*) FROM recorder_recordedenvelope WHERE turn_id = '{ack['turn_id']}'"
        )
        assert counted[0][0] > 3

        # Cut off from the database, and back.
        assert fleet.postgres is not None
        await asyncio.to_thread(fleet.postgres.cut)
        assert (await client.http.get(f"{fleet.urls[0]}/profile")).status_code == 503
        await asyncio.to_thread(fleet.postgres.restore)
        assert (await client.http.get(f"{fleet.urls[0]}/profile")).status_code == 200

        await asyncio.to_thread(fleet.rolling_restart)
        async with client.stream(last_event_id=stream.last_event_id) as again:
            assert again.received[0].data["resume"]["outcome"] in ("live", "replayed")
    assert answer
    assert set((await asyncio.to_thread(fleet.stop)).values()) <= {0, -15}
    assert "web-0 (not running)" in fleet.output()
