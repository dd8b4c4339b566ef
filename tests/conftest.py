"""What every test stands on: a database of this run's own, a SQLite file (which threads share) or PostgreSQL."""

import os
from pathlib import Path

import pytest
from django.db import connections


@pytest.fixture(scope="session")
def django_db_modify_db_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give each test run a database of its own, so that two runs on one machine never meet."""
    connection = connections["default"]
    if connection.vendor == "sqlite":
        folder: Path = tmp_path_factory.mktemp("database")
        connection.settings_dict["TEST"]["NAME"] = str(folder / "test.sqlite3")
    else:
        connection.settings_dict["TEST"]["NAME"] = f"test_backchannel_{os.getpid()}"
