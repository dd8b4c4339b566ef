"""Full collections wait for quiet moments, but not for ever."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest
from django.test import override_settings

from relay import collecting
from relay.collecting import Collector
from tests.waiting import aeventually


class Knot:
    """Refers to itself, so that only the collector can free it."""

    def __init__(self) -> None:
        self.me = self


def aged_knot() -> "weakref.ref[Knot]":
    """Return a reference to garbage that only a full collection frees."""
    knot = Knot()
    found = weakref.ref(knot)
    gc.collect(0)
    gc.collect(1)
    return found


class Deliveries:
    """A hub's counter that goes on while `busy`."""

    def __init__(self, *, busy: bool) -> None:
        self.busy = busy
        self.count = 0

    def __call__(self) -> int:
        self.count += self.busy
        return self.count


@pytest.fixture(autouse=True)
def fast_checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(collecting, "CHECK_SECONDS", 0.01)
    before = gc.get_threshold()
    yield
    assert gc.get_threshold() == before, "the collector was not handed back"
    assert gc.get_freeze_count() == 0


@override_settings(RELAY={"QUIET_COLLECTION_SECONDS": 0.0, "FULL_COLLECTION_SECONDS": 3600.0})
async def test_what_aged_is_freed_in_a_quiet_moment() -> None:
    collector = Collector(Deliveries(busy=False))
    collector.start()
    try:
        knot = aged_knot()
        await aeventually(lambda: knot() is None, what="the full collection")
    finally:
        await collector.aclose()


@override_settings(RELAY={"QUIET_COLLECTION_SECONDS": 0.0, "FULL_COLLECTION_SECONDS": 3600.0})
async def test_a_busy_hub_is_not_held_up_by_a_full_collection() -> None:
    deliveries = Deliveries(busy=True)
    collector = Collector(deliveries)
    collector.start()
    try:
        knot = aged_knot()
        await aeventually(lambda: deliveries.count > 20, what="twenty checks")
        assert knot() is not None
        deliveries.busy = False
        await aeventually(lambda: knot() is None, what="the full collection")
    finally:
        await collector.aclose()


@override_settings(RELAY={"QUIET_COLLECTION_SECONDS": 0.0, "FULL_COLLECTION_SECONDS": 0.05})
async def test_a_hub_that_is_always_busy_is_collected_in_the_end() -> None:
    collector = Collector(Deliveries(busy=True))
    collector.start()
    try:
        knot = aged_knot()
        await aeventually(lambda: knot() is None, what="the full collection")
    finally:
        await collector.aclose()


@override_settings(RELAY={"QUIET_COLLECTION_SECONDS": 3600.0, "FULL_COLLECTION_SECONDS": 3600.0})
async def test_a_process_that_grows_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "GROWTH_BYTES", 8 * 1024 * 1024)
    collector = Collector(Deliveries(busy=True))
    collector.start()
    try:
        await asyncio.sleep(0.05)  # its first look at the size
        knot = aged_knot()
        held = bytearray(b"x") * (64 * 1024 * 1024)
        await aeventually(lambda: knot() is None, what="the full collection")
        assert len(held) == 64 * 1024 * 1024
    finally:
        await collector.aclose()
