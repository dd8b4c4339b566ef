"""Fleets for tests that break them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

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
