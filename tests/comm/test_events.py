"""The event manager: every reader gets every event, from whichever thread it came, and contexts leave no trace."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import AsyncMock

import pytest
from channels.layers import get_channel_layer

from comm import events
from comm.events import ContextEnded, EventsLost, StreamingEventManager, get_event_manager
from comm.exceptions import EnvelopeInvalid
from comm.publisher import set_home_loop
from tests.waiting import aeventually


@pytest.fixture
async def manager() -> AsyncIterator[StreamingEventManager]:
    set_home_loop(asyncio.get_running_loop())
    manager = StreamingEventManager()
    yield manager
    await manager.aclose()
    set_home_loop(None)


async def take(queue: Any, count: int) -> list[Any]:
    return [(await asyncio.wait_for(queue.get(), 5))["data"]["n"] for _ in range(count)]


async def test_a_reader_gets_what_is_emitted(manager: StreamingEventManager) -> None:
    queue = manager.create_queue("w1")
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0.05)
    position = await manager.emit_event("w1", "chatdata", {"n": 1}, "chat", message="One", step="first")
    event = await asyncio.wait_for(waiting, 5)
    assert event["id"] == str(position)
    assert {name: event[name] for name in ("type", "category", "data", "message", "step")} == {  # type: ignore[literal-required]
        "type": "chatdata", "category": "chat", "data": {"n": 1}, "message": "One", "step": "first"
    }  # fmt: skip
    assert event["timestamp"] > 1_700_000_000


async def test_a_late_reader_gets_what_came_before_it(manager: StreamingEventManager) -> None:
    for n in range(5):
        await manager.emit_event("w1", "log", {"n": n})
    late = manager.get_queue("w1")
    assert late is not None
    assert await take(late, 5) == list(range(5))
    await manager.emit_event("w1", "log", {"n": 5})
    assert await take(late, 1) == [5]


async def test_a_reader_waits_while_the_channel_layer_is_away(
    manager: StreamingEventManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = get_channel_layer()
    assert layer is not None
    monkeypatch.setattr(events, "AWAY_SECONDS", 0.01)
    queue = manager.create_queue("w1")
    for name in ("group_read", "group_add"):
        monkeypatch.setattr(layer, name, _twice_away(getattr(layer, name)))
    waiting = asyncio.create_task(take(queue, 2))
    await asyncio.sleep(0.1)
    for n in range(2):
        await manager.emit_event("w1", "log", {"n": n})
    assert await waiting == [0, 1]


def _twice_away(real: Any) -> Any:
    left = [2]

    async def call(*args: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise ConnectionError("the layer is away")
        return await real(*args)

    return call


async def test_every_reader_gets_every_event(manager: StreamingEventManager) -> None:
    queues = [manager.create_queue("w1") for _ in range(3)]
    reading = [asyncio.create_task(take(queue, 500)) for queue in queues]
    for n in range(500):
        await manager.emit_event("w1", "progress", {"n": n})
    assert await asyncio.gather(*reading) == [list(range(500))] * 3


async def test_contexts_do_not_mix(manager: StreamingEventManager) -> None:
    first, second = manager.create_queue("w1"), manager.create_queue("w2")
    reading = [asyncio.create_task(take(first, 1)), asyncio.create_task(take(second, 1))]
    await asyncio.sleep(0.05)
    await manager.emit_event("w2", "log", {"n": 2})
    await manager.emit_event("w1", "log", {"n": 1})
    assert await asyncio.gather(*reading) == [[1], [2]]


async def test_emitting_from_eight_threads_at_once_loses_nothing(manager: StreamingEventManager) -> None:
    queue = manager.create_queue("w1")
    failed: list[BaseException] = []

    def emit(thread: int) -> None:
        async def from_a_loop_of_its_own() -> None:
            for n in range(100):
                await manager.emit_event("w1", "progress", {"n": (thread, n)})

        try:
            if thread % 2:
                asyncio.run(from_a_loop_of_its_own())
            else:
                for n in range(100):
                    manager.emit_event_sync("w1", "progress", {"n": (thread, n)})
        except BaseException as error:  # noqa: BLE001 - told by the test below
            failed.append(error)

    threads = [threading.Thread(target=emit, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    seen = [tuple(n) for n in await take(queue, 800)]
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert failed == []
    for thread in range(8):
        assert [n for of, n in seen if of == thread] == list(range(100))


async def test_a_cancelled_get_takes_no_event_along(manager: StreamingEventManager) -> None:
    queue = manager.create_queue("w1")
    got: list[int] = []
    for n in range(100):
        getting = asyncio.create_task(queue.get())
        emitting = asyncio.create_task(manager.emit_event("w1", "log", {"n": n}))
        for _ in range(n % 6):
            await asyncio.sleep(0)
        getting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            got.append((await getting)["data"]["n"])
        await emitting
    assert len(got) < 100, "no get was cancelled in time to make this a test"
    assert got + await take(queue, 100 - len(got)) == list(range(100))


async def test_a_reader_whom_the_layer_refused_once_is_rung_all_the_same(
    manager: StreamingEventManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "CHECK_SECONDS", 3600.0)
    layer: Any = get_channel_layer()
    with monkeypatch.context() as away:
        away.setattr(layer, "group_add", AsyncMock(side_effect=OSError("away")))
        queue = manager.create_queue("w")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 0.05)
    reading = asyncio.create_task(queue.get())
    await aeventually(lambda: manager._waiting["w"], what="a reader that waits for the bell")
    await manager.emit_event("w", "t", {})
    assert (await asyncio.wait_for(reading, 30))["type"] == "t"


async def test_get_nowait_is_like_that_of_a_queue(manager: StreamingEventManager) -> None:
    queue = manager.create_queue("w1")
    with pytest.raises(asyncio.QueueEmpty):
        queue.get_nowait()
    for n in range(2):
        await manager.emit_event("w1", "log", {"n": n})
    assert await take(queue, 1) == [0]
    assert (queue.qsize(), queue.empty()) == (1, False)
    assert queue.get_nowait()["data"]["n"] == 1
    assert queue.empty()


# --- streaming ----------------------------------------------------------------------------------------------


async def test_a_stream_yields_the_categories_that_it_asks_for(manager: StreamingEventManager) -> None:
    for n, category in enumerate(["chat", "workflow", "document", "chat"]):
        await manager.emit_event("w1", "log", {"n": n}, category)
    seen = [
        event["data"]["n"] async for event in manager.stream_events("w1", ["chat", "workflow"], timeout=0.2)
    ]
    assert seen == [0, 1, 3]


async def test_a_stream_s_timeout_is_of_silence(manager: StreamingEventManager) -> None:
    async def emit_slowly() -> None:
        for n in range(5):
            await asyncio.sleep(0.1)
            await manager.emit_event("w1", "log", {"n": n})

    emitting = asyncio.create_task(emit_slowly())
    assert [event["data"]["n"] async for event in manager.stream_events("w1", timeout=0.3)] == list(range(5))
    await emitting


async def test_events_that_were_dropped_are_not_passed_over_in_silence(
    manager: StreamingEventManager, settings: Any
) -> None:
    backend = "relay.layers.memory.MemoryChannelLayer"
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": backend, "CONFIG": {"history_count": 10}}}
    slow, late = manager.create_queue("w1"), manager.create_queue("w1")
    await manager.emit_event("w1", "log", {"n": 0})
    assert await take(slow, 1) == [0]
    for n in range(1, 30):
        await manager.emit_event("w1", "log", {"n": n})
    for queue in (slow, late):
        with pytest.raises(EventsLost):
            await take(queue, 1)
        assert await take(queue, 10) == list(range(20, 30))


# --- the end of contexts --------------------------------------------------------------------------------------


async def test_a_context_is_cleaned_up_after_the_delay_and_its_readers_end(
    manager: StreamingEventManager,
) -> None:
    queue = manager.create_queue("w1")
    streaming = asyncio.create_task(anext(manager.stream_events("w1", ["never"]), None))  # type: ignore[arg-type]
    await manager.emit_event("w1", "log", {"n": 1})
    assert await take(queue, 1) == [1]
    ending = asyncio.create_task(queue.get())
    loop = asyncio.get_running_loop()
    began = loop.time()
    await manager.cleanup("w1", delay=0.3)
    assert manager.has_queue("w1")
    with pytest.raises(ContextEnded):
        await asyncio.wait_for(ending, 5)
    assert loop.time() - began >= 0.3
    assert await asyncio.wait_for(streaming, 5) is None
    await aeventually(lambda: not manager.has_queue("w1"), what="the end of the context")
    assert manager.get_queue("w1") is None


async def test_a_context_that_is_emitted_to_meanwhile_is_kept(manager: StreamingEventManager) -> None:
    await manager.emit_event("w1", "log", {"n": 0})
    await manager.cleanup("w1", delay=0.1)
    await manager.emit_event("w1", "log", {"n": 1})
    await asyncio.sleep(0.3)  # longer than the delay
    queue = manager.get_queue("w1")
    assert queue is not None
    assert await take(queue, 2) == [0, 1]


async def test_a_new_reader_puts_a_cleanup_off(manager: StreamingEventManager) -> None:
    await manager.emit_event("w1", "log", {"n": 0})
    await manager.cleanup("w1", delay=0.1)
    manager.create_queue("w1")
    await asyncio.sleep(0.3)  # longer than the delay
    assert manager.has_queue("w1")


async def test_a_context_begins_anew_after_its_cleanup(manager: StreamingEventManager) -> None:
    await manager.emit_event("w1", "log", {"n": 0})
    await manager.cleanup("w1", delay=0)
    await aeventually(lambda: not manager.has_queue("w1"), what="the end of the context")
    await manager.emit_event("w1", "log", {"n": 1})
    queue = manager.get_queue("w1")
    assert queue is not None
    assert await take(queue, 1) == [1]


async def test_ten_thousand_contexts_leave_nothing_behind(manager: StreamingEventManager) -> None:
    async def live(context_id: str) -> None:
        queue = manager.create_queue(context_id)
        await manager.emit_event(context_id, "log", {"n": 1, "text": "x" * 100})
        assert await take(queue, 1) == [1]
        await manager.cleanup(context_id, delay=0)

    async def all_gone() -> bool:
        return not any(manager.has_queue(f"w{n}") for n in range(10_000))

    await live("warm")
    gc.collect()
    before = len(gc.get_objects())
    for n in range(10_000):
        await live(f"w{n}")
    await aeventually(all_gone, timeout=20, what="the end of the contexts")
    gc.collect()
    assert len(gc.get_objects()) - before < 2_000
    layer: Any = get_channel_layer()
    tail = await layer.group_tail("context.w0")
    assert tail.seq == 0, "its log is kept"


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("", "log", {}), "context_id"),
        ((None, "log", {}), "context_id"),
        (("w1", "", {}), "event_type"),
        (("w1", 5, {}), "event_type"),
        (("w1", "log", [1]), "data"),
        (("w1", "log", {"x": object()}), "data"),
        (("w1", "log", {"x": "\ud800"}), "data"),
        (("w1", "log", {}, ""), "event_category"),
    ],
)
async def test_what_cannot_be_sent_is_named(
    manager: StreamingEventManager, arguments: Any, field: str
) -> None:
    with pytest.raises(EnvelopeInvalid) as refused:
        await manager.emit_event(*arguments)
    assert refused.value.field == field
    assert not manager.has_queue("w1")


async def test_any_text_is_a_context(manager: StreamingEventManager) -> None:
    name = "Prüfung / 1 !" * 20
    queue = manager.create_queue(name)
    await manager.emit_event(name, "log", {"n": 1})
    assert await take(queue, 1) == [1]


def test_there_is_one_manager_for_the_process() -> None:
    assert get_event_manager() is get_event_manager()
