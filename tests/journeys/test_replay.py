"""Replaying to open streams, from another process than the one that serves them."""

import asyncio
import subprocess
import sys

import pytest

from tests.clients import ChatClient, SseEvent, text_of
from tests.journeys.conftest import StartServer
from tests.servers import ROOT, ServerProcess


async def replay(server: ServerProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run, [sys.executable, "manage.py", "replay", *arguments],
        cwd=ROOT, env=server.env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def is_replay(event: SseEvent) -> bool:
    return "replay" in event.data.get("extra", {})


@pytest.mark.parametrize("target", ["stream", "session"])
async def test_a_turn_is_shown_again_to_a_chosen_stream_says_so_and_is_not_recorded(
    server: ServerProcess, target: str
) -> None:
    async with ChatClient(server.url) as client, ChatClient(server.url) as auditor:  # noqa: SIM117
        async with client.stream() as stream, auditor.stream() as watching:
            ack = await client.send("show me again", config={"pace_ms": 0})
            events = await stream.until_idle()
            name = auditor.stream_id if target == "stream" else auditor.session_id
            done = await replay(server, "--turn", ack["turn_id"], "--speed", "0", "--to", f"{target}:{name}")
            assert done.returncode == 0, done.stderr
            assert f"Shown: {len(events)} events." in done.stderr
            shown = [await watching.next() for _ in events]
            # The next thing that the user's own stream hears is the next turn: nothing of the replay.
            again = await client.send("go on", config={"pace_ms": 0}, conversation_id=ack["conversation_id"])
            following = await stream.until_idle()
    assert all(is_replay(event) and event.id is None for event in shown)
    assert [event.data["extra"]["replay"]["id"] for event in shown] == [event.id for event in events]
    assert text_of(shown) == text_of(events)
    assert {event.data["conversation"]["turn_id"] for event in shown} == {ack["turn_id"]}
    assert not any(is_replay(event) for event in following)
    assert {event.data["conversation"]["turn_id"] for event in following} == {again["turn_id"]}
    printed = await replay(server, "--turn", ack["turn_id"], "--speed", "0", "--to", "jsonl")
    assert len(printed.stdout.splitlines()) == len(events)
    assert '"replay"' not in printed.stdout


async def test_without_a_server_the_command_says_so(start_server: StartServer) -> None:
    server = start_server()
    async with ChatClient(server.url) as client, client.stream() as stream:
        ack = await client.send("x", config={"pace_ms": 0})
        await stream.until_idle()
    await asyncio.to_thread(server.stop)
    done = await replay(
        server, "--turn", ack["turn_id"], "--speed", "0", "--to", f"stream:{client.stream_id}"
    )
    assert done.returncode == 1
    assert "No server took the replay" in done.stderr


async def test_what_cannot_be_replayed_is_refused_with_a_sentence(server: ServerProcess) -> None:
    nothing = await replay(server, "--turn", "turn_unknown")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "Nothing is recorded that fits" in nothing.stderr
    for arguments in (["--to", "fax"], ["--to", "stream:"], ["--since", "tomorrow-ish"], ["--from-seq", "x"]):
        refused = await replay(server, *arguments)
        assert refused.returncode == 2
        assert arguments[1].rstrip(":") in refused.stderr
