"""Rates: counted here, or together in a store, and not at all while that is away."""

import secrets
from typing import Any

import pytest
from pytest_django.fixtures import Settings

from relay import rates
from tests.contract.backends import redis_url
from tests.valkey import ValkeyProcess

pytestmark = pytest.mark.usefixtures("settings")


def another_process(settings: Settings, **options: Any) -> None:
    """Forget what this process counted, as a new one knows nothing."""
    settings.RELAY = {"MESSAGE_RATE": "3/minute", **options}


def spend() -> bool | None:
    spent = rates.spend("MESSAGE_RATE", "session")
    return None if spent is None else spent.allowed


def test_a_process_without_a_store_counts_for_itself(settings: Settings) -> None:
    another_process(settings)
    assert [spend() for _ in range(4)] == [True, True, True, False]
    another_process(settings)
    assert spend()


def test_processes_with_a_store_count_together(settings: Settings) -> None:
    store = {"RATE_STORE_URL": redis_url(), "RATE_STORE_PREFIX": f"test-{secrets.token_hex(6)}"}
    another_process(settings, **store)
    assert [spend() for _ in range(2)] == [True, True]
    another_process(settings, **store)
    assert [spend() for _ in range(2)] == [True, False]


def test_no_rate_is_no_limit(settings: Settings) -> None:
    settings.RELAY = {"MESSAGE_RATE": ""}
    assert spend() is None


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_a_store_that_is_away_stops_nobody(
    settings: Settings, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    server = ValkeyProcess().start()
    try:
        another_process(settings, RATE_STORE_URL=server.url)
        assert [spend() for _ in range(4)] == [True, True, True, False]
        getattr(server, how)()
        with caplog.at_level("WARNING", logger="relay.rates"):
            assert [spend() for _ in range(5)] == [None] * 5
        assert len([r for r in caplog.records if r.name == "relay.rates"]) == 1, "it is not asked each time"
    finally:
        server.close()
