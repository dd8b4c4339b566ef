"""Fleets for tests that break them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.faults.wholeness import PATIENT_SERVER, TELLING_ALLOCATOR, look_at, settled
from tests.fleet import Fleet

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in this folder."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("fleet")


class StartFleet(Protocol):
    """Starts a fleet; keyword arguments as for Fleet."""

    def __call__(self, **kwargs: Any) -> Fleet: ...


@pytest.fixture
def start_fleet(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StartFleet]:
    """Start fleets that end with the test; when it fails, their output is part of its report."""
    started: list[Fleet] = []

    def start(**kwargs: Any) -> Fleet:
        fleet = Fleet(tmp_path / f"fleet{len(started)}", **kwargs)
        started.append(fleet)
        return fleet.start()

    yield start
    for fleet in started:
        request.node.add_report_section("teardown", f"output of {fleet.folder.name}", fleet.output())
        fleet.close()


@pytest.fixture
def fleet(start_fleet: StartFleet) -> Fleet:
    """Two web processes, two workers and a recorder."""
    return start_fleet()


COUNTING = {
    "BUNDLES": "count=tests.faults.bundles.Counting",
    "DEFAULT_BUNDLE": "count",
    "MESSAGE_RATE": "",
    **PATIENT_SERVER,
    **TELLING_ALLOCATOR,
}


@pytest.fixture(scope="module")
def lasting_fleet(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Fleet]:
    """A fleet for all tests of a module, with its database behind a proxy. Tests ask for `whole`.

    `FLEET_ENV` of the module is added to its environment.
    """
    env = {**COUNTING, **getattr(request.module, "FLEET_ENV", {})}
    with Fleet(tmp_path_factory.mktemp("fleet"), proxied=True, env=env) as fleet:
        yield fleet


@pytest.fixture
def whole(lasting_fleet: Fleet, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """The fleet of the module, whole and idle; when the test is over it must be so again, down to its memory."""
    before = look_at(lasting_fleet)
    yield lasting_fleet
    request.node.add_report_section("teardown", "output of the fleet", lasting_fleet.output())
    settled(lasting_fleet, before)
