"""`make fleet`: what it starts, says and heals, and how it ends."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients import ChatClient, text_of
from tests.databases import ADMIN, drop_postgres, empty_postgres, postgres_or_skip
from tests.processes import ROOT, TestedProcess
from tests.servers import free_port
from tests.waiting import aeventually, eventually

StartMakeFleet = Callable[..., TestedProcess]
Listed = list[dict[str, Any]]


def two_free_ports() -> int:
    """Return a port that was free a moment ago, as was the next one."""
    while True:
        port = free_port()
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@pytest.fixture
def make_fleet(tmp_path: Path) -> Iterator[StartMakeFleet]:
    """Return what `make fleet` starts, with data of the test's own; `port` is where it shall serve."""
    made: list[TestedProcess] = []

    def make(port: int, **env: str) -> TestedProcess:
        command = [sys.executable, "-m", "project.fleet", "--port", str(port)]
        fleet = TestedProcess(
            "fleet",
            [*command, "--state", str(tmp_path / "fleet.json")],
            tmp_path / "fleet.log",
            env={**os.environ, "DATABASE_URL": "", "DATA_DIR": str(tmp_path / "data"), **ADMIN, **env},
            ready=r"Backchannel: http://localhost",
        )
        made.append(fleet)
        return fleet

    yield make
    for fleet in made:
        fleet.close()


@pytest.fixture
def database_url() -> Iterator[str]:
    """A PostgreSQL database without any table."""
    server = postgres_or_skip()
    url = empty_postgres(server)
    yield url
    drop_postgres(server, url)


def pids(listed: Listed, role: str) -> list[int]:
    return [entry["pid"] for entry in listed if entry["role"] == role]


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


async def test_it_serves_heals_and_stops_in_good_order(
    make_fleet: StartMakeFleet, database_url: str, tmp_path: Path
) -> None:
    port, state = two_free_ports(), tmp_path / "fleet.json"
    fleet = make_fleet(port, DATABASE_URL=database_url)
    await asyncio.to_thread(fleet.start)
    listed: Listed = json.loads(state.read_text(encoding="utf-8"))
    roles = sorted(entry["role"] for entry in listed)
    assert roles == ["recorder", "valkey", "web", "web", "worker", "worker"]
    assert [entry["port"] for entry in listed if entry["role"] == "web"] == [port, port + 1]
    assert all(not gone(entry["pid"]) for entry in listed)

    # A message to one web process is answered by a worker, and heard at the other one.
    urls = [f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"]
    async with ChatClient(urls[0]) as client, client.stream() as stream:
        client.url = urls[1]
        async with client.stream() as other:
            await client.send("hello fleet", config={"pace_ms": 0})
            assert text_of(await stream.until_idle()) == text_of(await other.until_idle()) != ""

    # What dies is told and started again, under a new pid.
    for role in ("worker", "recorder"):
        victim = pids(listed, role)[0]
        os.kill(victim, signal.SIGKILL)
        await aeventually(
            lambda role=role, victim=victim: (
                f"{role} (process {victim}) ended with SIGKILL" in fleet.output()
                and victim not in pids(json.loads(state.read_text(encoding="utf-8")), role)
                and len(pids(json.loads(state.read_text(encoding="utf-8")), role)) == len(pids(listed, role))
            ),
            timeout=60,
            what=f"a new {role}",
        )

    # Another one with the same data would share its Valkey's files.
    second = await asyncio.to_thread(
        subprocess.run, [*fleet.command[:4], str(two_free_ports())], cwd=ROOT, env=fleet.env,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (second.returncode, "runs already" in second.stderr) == (2, True), second.stderr

    listed = json.loads(state.read_text(encoding="utf-8"))
    fleet.terminate()
    assert await asyncio.to_thread(fleet.wait) == 0, fleet.output()
    assert not state.exists()
    assert all(gone(entry["pid"]) for entry in listed)
    ended = [line.partition(" | ")[2] for line in fleet.output().splitlines() if " has ended (" in line]
    order = [line.partition("-")[0].partition(" ")[0] for line in ended]
    assert order == ["web", "web", "worker", "worker", "recorder", "valkey"]


async def test_its_death_takes_everything_along(
    make_fleet: StartMakeFleet, database_url: str, tmp_path: Path
) -> None:
    fleet = make_fleet(two_free_ports(), DATABASE_URL=database_url)
    await asyncio.to_thread(fleet.start)
    listed: Listed = json.loads((tmp_path / "fleet.json").read_text(encoding="utf-8"))
    fleet.kill()
    eventually(lambda: all(gone(entry["pid"]) for entry in listed), timeout=90, what="the end of all")


def test_without_postgresql_it_says_how_to_get_one(make_fleet: StartMakeFleet) -> None:
    fleet = make_fleet(two_free_ports()).start(wait=False)
    assert fleet.wait() == 2
    for part in ("PostgreSQL", "createdb", "DATABASE_URL=postgres://", "make fleet"):
        assert part in fleet.output()


def test_a_postgresql_that_does_not_answer_is_named(make_fleet: StartMakeFleet) -> None:
    port = free_port()
    fleet = make_fleet(
        two_free_ports(), DATABASE_URL=f"postgres://someone:s3cret@127.0.0.1:{port}/nothing"
    ).start(wait=False)
    assert fleet.wait() == 2
    assert f"PostgreSQL at 127.0.0.1:{port} cannot be used" in fleet.output()
    assert "s3cret" not in fleet.output()
    assert "Traceback" not in fleet.output()


@pytest.mark.parametrize("which", [0, 1])
def test_a_port_in_use_is_named(make_fleet: StartMakeFleet, which: int, database_url: str) -> None:
    port = two_free_ports()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port + which))
        holder.listen()
        fleet = make_fleet(port, DATABASE_URL=database_url).start(wait=False)
        assert fleet.wait() == 2
    assert f"Port {port + which} of 127.0.0.1 is in use" in fleet.output()
    assert "Traceback" not in fleet.output()


def test_make_passes_the_port_on() -> None:
    shown = subprocess.run(
        ["make", "--dry-run", "fleet", "PORT=9123"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "python -m project.fleet" in shown.stdout
    assert "--port 9123" in shown.stdout
