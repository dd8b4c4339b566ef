"""The restricted role at work on a walled PostgreSQL: `default` is its connection, in every thread."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.test import override_settings

from tests.comm.wall.tenants import COMM, Tenant, as_default, connect_as
from tests.walled import WalledDatabase, walled_database


@pytest.fixture(scope="module")
def database() -> WalledDatabase:
    return walled_database("sight, leaks and setup")


@pytest.fixture(autouse=True)
def walled(database: WalledDatabase, django_db_blocker: Any) -> Iterator[None]:
    """Work as the restricted role, on one connection that stays open."""
    with django_db_blocker.unblock(), as_default(connect_as(database.url)), override_settings(COMM=COMM):
        yield


@pytest.fixture
def acme() -> Tenant:
    return Tenant()


@pytest.fixture
def zenith() -> Tenant:
    return Tenant()
