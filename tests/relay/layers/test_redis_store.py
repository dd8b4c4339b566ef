"""What the layer on Redis keeps there, its bounds, and its end."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis

from comm.groups import project_group, session_group
from comm.history import Position
from comm.publisher import MESSAGE_TYPE
from comm.recorder_stream import CONSUMER_GROUP, StreamKeys, read_entry, read_gap
from relay.layers.calls import RedisRefused
from relay.layers.redis import RedisChannelLayer
from tests.contract.backends import redis_url
from tests.contract.reading import whole_log
from tests.valkey import ValkeyProcess
from tests.waiting import aeventually

GROUP = session_group("one")


def envelope(n: int, body: bytes = b"{}") -> dict[str, Any]:
    return {
        "type": MESSAGE_TYPE,
        "group": GROUP,
        "route": "chat_delta",
        "target_sid": None,
        "body": body,
        "n": n,
    }


@pytest.fixture
def store() -> Iterator[redis.Redis]:
    """A client of the tests' own, to look at what is there."""
    with redis.Redis.from_url(redis_url()) as client:
        yield client


@pytest.fixture
async def make() -> AsyncIterator[Any]:
    """Make layers under a prefix of the test's own."""
    made: list[RedisChannelLayer] = []
    prefix = f"test-{secrets.token_hex(6)}"

    def make(**options: Any) -> RedisChannelLayer:
        layer = RedisChannelLayer(url=options.pop("url", redis_url()), prefix=prefix, **options)
        made.append(layer)
        return layer

    make.prefix = prefix  # type: ignore[attr-defined]
    yield make
    await made[0].flush()
    for layer in made:
        await layer.aclose()


# --- the recorder stream ----------------------------------------------------------------------------


async def test_envelopes_of_sessions_and_projects_are_left_for_the_recorder(
    make: Any, store: redis.Redis
) -> None:
    layer = make()
    position = await layer.group_send(GROUP, envelope(1))
    project = project_group("t", "p")
    await layer.group_send(project, envelope(2))
    await layer.group_send(GROUP, {**envelope(3), "type": "other.message"})
    await layer.group_send("context.c", envelope(4))
    await layer.group_send("hubs", envelope(5))
    keys = StreamKeys.of(make.prefix)
    entries: Any = store.xrange(keys.stream)
    read = [read_entry(entry_id, fields) for entry_id, fields in entries]
    assert [(e.group, e.position, e.message["n"]) for e in read] == [(GROUP, position, 1), (project, None, 2)]
    assert read[0].message == envelope(1)
    assert int(store.get(keys.held)) == sum(entry.size for entry in read)  # type: ignore[arg-type]
    assert store.exists(keys.born)


async def test_a_layer_without_a_recorder_stream_leaves_nothing(make: Any, store: redis.Redis) -> None:
    layer = make(recorder_stream=False)
    await layer.group_send(GROUP, envelope(1))
    assert not store.exists(StreamKeys.of(make.prefix).stream)
    assert await layer.recorder_lag() is None
    assert await layer.recorded_up_to_now(1)


async def test_what_finds_no_room_for_the_recorder_is_noted_and_still_delivered(
    make: Any, store: redis.Redis
) -> None:
    layer = make(recorder_stream_bytes=3000)
    await layer.group_add(GROUP, channel := await layer.new_channel())
    positions = [await layer.group_send(GROUP, envelope(n, bytes(1000))) for n in range(6)]
    await layer.group_send(project_group("t", "p"), envelope(7, bytes(1000)))
    keys = StreamKeys.of(make.prefix)
    kept = int(store.xlen(keys.stream))  # type: ignore[arg-type]
    assert kept == 2
    gaps: Any = store.hgetall(keys.gaps)
    noted = {gap.group: gap for gap in (read_gap(*item) for item in gaps.items())}
    assert noted[GROUP][1:] == (positions[kept], positions[-1], 4, False)
    assert noted[project_group("t", "p")][1:] == (None, None, 1, False)
    assert [message["n"] for message in await layer.receive_many(channel)] == [0, 1, 2, 3, 4, 5]
    assert len(await whole_log(layer, GROUP)) == 6


async def test_lag_counts_what_is_not_committed(make: Any, store: redis.Redis) -> None:
    layer = make()
    assert await layer.recorder_lag() == (0, 0.0)
    await layer.group_send(GROUP, envelope(1))
    await layer.group_send(GROUP, envelope(2))
    entries, seconds = await layer.recorder_lag()
    assert entries == 2
    assert 0 <= seconds < 30
    assert not await layer.recorded_up_to_now(0.1)
    stream = StreamKeys.of(make.prefix).stream
    known: Any = store.xrange(stream)
    store.xdel(stream, *(entry_id for entry_id, _ in known))
    await layer.group_send(GROUP, envelope(3))
    await store_is_behind(layer)


async def store_is_behind(layer: RedisChannelLayer) -> None:
    assert await layer.recorder_lag() is not None
    assert not await layer.recorded_up_to_now(0.1)


async def test_waiting_for_the_recorder_ends_when_it_has_committed(make: Any, store: redis.Redis) -> None:
    layer = make()
    await layer.group_send(GROUP, envelope(1))
    stream = StreamKeys.of(make.prefix).stream
    store.xgroup_create(stream, CONSUMER_GROUP, "0")
    known: Any = store.xrange(stream)
    await layer.group_send(GROUP, envelope(2))
    both: Any = store.xrange(stream)
    assert len(both) == 2
    store.xdel(stream, both[0][0], both[1][0])
    assert await layer.recorded_up_to_now(5)
    assert len(known) == 1


async def test_nobody_has_recorded_anything_before_a_recorder_has_come(make: Any, store: redis.Redis) -> None:
    layer = make()
    assert not await layer.recorded_up_to_now(0.1)
    store.xgroup_create(StreamKeys.of(make.prefix).stream, CONSUMER_GROUP, "0", mkstream=True)
    assert await layer.recorded_up_to_now(5)


@pytest.mark.parametrize("kind", ["gaps", "taken"])
async def test_a_gap_that_no_row_names_yet_is_waited_for(make: Any, store: redis.Redis, kind: str) -> None:
    layer = make()
    keys = StreamKeys.of(make.prefix)
    store.xgroup_create(keys.stream, CONSUMER_GROUP, "0", mkstream=True)
    store.hset(getattr(keys, kind), "session.a", "7-1 7-2 2")
    assert not await layer.recorded_up_to_now(0.1)
    store.delete(getattr(keys, kind))
    assert await layer.recorded_up_to_now(5)


# --- bounds -------------------------------------------------------------------------------------------


async def test_everything_that_is_kept_for_groups_has_an_end(make: Any, store: redis.Redis) -> None:
    layer = make()
    await layer.group_send(GROUP, envelope(1))
    await layer.group_send("context.c", envelope(1))
    await layer.send("shared", {"type": "test.message"})
    await layer.tell_streams({"stream": b"info"}, 60)
    lasting = {b"clock", b"born", b"recorder", b"recorder:bytes"}
    names = [key.removeprefix(f"{make.prefix}:".encode()) for key in store.scan_iter(f"{make.prefix}:*")]
    assert lasting < set(names)
    endless = {name for name in names if store.ttl(f"{make.prefix}:{name.decode()}") < 0}  # type: ignore[operator]
    assert endless == lasting


async def test_a_full_redis_lets_the_longest_unused_log_go() -> None:
    """With `maxmemory` and `volatile-lru`, as the documentation asks for."""
    options = {"maxmemory": "16mb", "maxmemory-policy": "volatile-lru", "maxmemory-samples": "64"}
    server = ValkeyProcess(**options).start()
    layer = RedisChannelLayer(url=server.url, prefix="full", recorder_stream=False)

    async def fill(name: str, count: int) -> None:
        for n in range(count):
            for part in range(4):
                await layer.group_send(session_group(f"{name}{n}"), envelope(part, bytes(100_000)))

    try:
        await fill("old", 30)
        await asyncio.sleep(2.5)  # what Redis tells older from newer by has a grain of a second
        positions = []
        for n in range(20):
            await fill(f"new{n}-", 1)
            position = await layer.group_send(GROUP, envelope(n))
            assert position is not None
            positions.append(position)
        assert [p.seq for p in positions] == list(range(1, 21)), "a log that is written to goes on counting"
        assert (await layer.group_read(GROUP, positions[-5], 100)).reaches(positions[-5])
        tails = await layer.group_tails([session_group(f"old{n}") for n in range(30)])
        assert min(tail.seq for tail in tails) == 0, "no old one has gone"
    finally:
        await layer.aclose()
        server.close()


async def test_a_full_redis_that_lets_nothing_go_refuses_and_is_still_read() -> None:
    server = ValkeyProcess(**{"maxmemory": "6mb", "maxmemory-policy": "noeviction"}).start()
    layer = RedisChannelLayer(url=server.url, prefix="full")
    try:
        sent = [await layer.group_send(GROUP, envelope(0))]

        async def fill() -> None:
            while len(sent) < 200:
                sent.append(await layer.group_send(GROUP, envelope(len(sent), bytes(100_000))))

        with pytest.raises(RedisRefused, match="OOM"):
            await fill()
        assert len(sent) > 3, "it was full from the start"
        with redis.Redis(port=server.port) as client:
            client.client_kill_filter(_type="pubsub")
        log = await layer.group_read(GROUP, sent[-3], 10)
        assert [entry.position for entry in log.entries] == sent[-2:]
        with redis.Redis(port=server.port) as client:
            client.config_set("maxmemory", "64mb")
        after = await layer.group_send(GROUP, envelope(0))
        assert after.seq == len(sent) + 1, "what was refused left no hole"
    finally:
        await layer.aclose()
        server.close()


async def test_joined_logs_outlive_their_age_and_others_do_not(make: Any) -> None:
    layer = make(history_seconds=1)
    await layer.group_add(GROUP, await layer.new_channel())
    joined = await layer.group_send(GROUP, envelope(1))
    lost = await layer.group_send(session_group("two"), envelope(1))

    async def gone() -> bool:
        tail: Position = await layer.group_tail(session_group("two"))
        return tail.epoch > lost.epoch

    async def quiet() -> bool:
        return not await whole_log(layer, GROUP)

    await aeventually(gone, what="the end of an idle log")
    await aeventually(quiet, what="the end of an old entry")
    assert await layer.group_tail(GROUP) == joined
