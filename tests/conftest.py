"""What every test stands on: a database of this run's own, a SQLite file (which threads share) or PostgreSQL."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from tests.waiting import eventually


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is about PostgreSQL where the tests' own database is none: the run with DATABASE_URL has it."""
    if connections["default"].vendor == "postgresql":
        return
    left_out = [item for item in items if item.get_closest_marker("postgresql")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI every real part is there: what is skipped there has failed."""
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and in CI nothing may be: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def django_db_modify_db_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give each test run a database of its own, so that two runs on one machine never meet."""
    connection = connections["default"]
    if connection.vendor == "sqlite":
        folder: Path = tmp_path_factory.mktemp("database")
        connection.settings_dict["TEST"]["NAME"] = str(folder / "test.sqlite3")
    else:
        connection.settings_dict["TEST"]["NAME"] = f"test_backchannel_{os.getpid()}"


@pytest.fixture(scope="session", autouse=True)
def no_session_left(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """End the sessions of threads that outlive their tests: PostgreSQL drops no database in use."""
    yield
    with django_db_blocker.unblock(), connections["default"].cursor() as cursor:
        if connections["default"].vendor == "postgresql":
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )


@pytest.fixture(autouse=True)
def database_at_rest(_django_db_marker: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the statements of a test's threads end before its tables are emptied: the two would deadlock."""
    yield
    marker = request.node.get_closest_marker("django_db")
    connection = connections["default"]
    if marker is None or not marker.kwargs.get("transaction") or connection.vendor != "postgresql":
        return

    def at_rest() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND state <> 'idle' AND backend_type = 'client backend'"
            )
            return bool(cursor.fetchone()[0] == 0)

    eventually(at_rest, timeout=60, what="the end of all statements")
