"""Whether a fleet is back to where it was: memory, streams, subscriptions, connections to the database."""

from dataclasses import dataclass
from typing import Any

import httpx

from tests.fleet import Fleet
from tests.waiting import eventually

TELLING_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_MMAP_THRESHOLD_": "131072",
}
"""glibc gives back what is free, so that the resident size tells what is held."""
PATIENT_SERVER = {
    "KEEPALIVE_SECONDS": "120",
    "NOT_READING_SECONDS": "300",
    "UVICORN_WS_PING_TIMEOUT": "300",
    "UVICORN_ACCESS_LOG": "0",
}
"""A client that does not read answers no ping either: on a slow machine it would be taken for dead."""
GROWN_MIB = 40.0
"""What a process may keep: imports, caches, and cycles whose collection waits for a quiet half minute."""
SESSIONS = "to:session."
PROJECTS = "to:project."
MORE_CONNECTIONS = 16
"""Idle threads keep their connection to the database for a while."""


@dataclass
class Before:
    """A fleet as it was."""

    rss_mib: dict[str, float]
    connections: int


def look_at(fleet: Fleet) -> Before:
    """Take note of a fleet that is whole and idle."""
    return Before(fleet.rss_mib(), connections(fleet))


def settled(fleet: Fleet, before: Before) -> None:
    """Fail unless everything lives, nothing runs or listens that did not before, and memory is back."""
    assert all(process.alive for process in fleet.processes), fleet.output()
    eventually(lambda: told(fleet, "streams") == 0, timeout=60, what="no open stream")
    eventually(lambda: told(fleet, "turns") == 0, timeout=60, what="no turn in a web process")
    eventually(lambda: not heard(fleet), timeout=60, what="no subscription to a session")
    eventually(lambda: running(fleet) == 0, timeout=60, what="no running turn")
    fleet.until_recorded()
    eventually(
        lambda: connections(fleet) <= before.connections + MORE_CONNECTIONS,
        timeout=60,
        what=f"no more than {before.connections} connections to the database",
    )
    eventually(lambda: not grown(fleet, before), timeout=90, what=f"memory as before ({before.rss_mib})")


def told(fleet: Fleet, what: str) -> int:
    """Add up what the health of each web process tells."""
    return sum(int(health.get(what, 0)) for health in _told(fleet))


def _told(fleet: Fleet) -> list[dict[str, Any]]:
    return [httpx.get(f"{url}/health", timeout=30).json() for url in fleet.urls]


def heard(fleet: Fleet) -> list[str]:
    """Return the sessions and projects that some process is subscribed to."""
    return [name for name in fleet.subscriptions() if SESSIONS in name or PROJECTS in name]


def running(fleet: Fleet) -> int:
    """Return how many turns are running or wait."""
    return int(fleet.query("SELECT count(*) FROM comm_turn WHERE status IN ('running', 'accepted')")[0][0])


def connections(fleet: Fleet) -> int:
    """Return how many connections the database has."""
    return int(fleet.query("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")[0][0])


def grown(fleet: Fleet, before: Before) -> dict[str, float]:
    """Return the processes that hold much more than before, and how much."""
    now = fleet.rss_mib()
    return {
        name: round(size - before.rss_mib.get(name, size))
        for name, size in now.items()
        if size - before.rss_mib.get(name, size) > GROWN_MIB
    }
