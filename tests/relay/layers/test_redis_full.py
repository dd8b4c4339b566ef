"""A store that is full, and evicts nothing: it takes nothing new, and gives what it has."""

import secrets
from collections.abc import Iterator

import pytest
import redis

from comm.groups import session_group
from comm.history import Position
from comm.recorder_stream import StreamKeys
from recorder.store import RecorderStore
from relay.layers.link import RedisAway
from relay.layers.redis import RedisChannelLayer
from tests.valkey import ValkeyProcess

GROUP = session_group("one")


@pytest.fixture
def valkey() -> Iterator[ValkeyProcess]:
    """A server of the test's own, to be filled."""
    server = ValkeyProcess(**{"maxmemory-policy": "noeviction"}).start()
    yield server
    server.close()


async def test_a_full_store_is_read_by_processes_that_connect_now(valkey: ValkeyProcess) -> None:
    prefix = f"test-{secrets.token_hex(4)}"
    before = RedisChannelLayer(url=valkey.url, prefix=prefix)
    after = RedisChannelLayer(url=valkey.url, prefix=prefix)
    try:
        first = await before.group_send(GROUP, {"type": "test.message", "n": 1})
        assert first is not None
        with redis.Redis(port=valkey.port) as client:
            client.config_set("maxmemory", "1")
        with pytest.raises(RedisAway, match="OOM"):
            await before.group_send(GROUP, {"type": "test.message", "n": 2})
        log = await after.group_read(GROUP, Position(first.epoch, 0), 10)
        assert [entry.message["n"] for entry in log.entries] == [1]
    finally:
        await before.aclose()
        await after.aclose()


def test_a_recorder_attaches_to_a_full_store_and_makes_room(valkey: ValkeyProcess) -> None:
    keys = StreamKeys.of("test")
    with redis.Redis(port=valkey.port) as client:
        store = RecorderStore(valkey.url, "test", "one", block_seconds=0.1)
        store.life()
        store.join()
        client.xadd(keys.stream, {"p": "", "g": "g", "m": b"x" * 1000})
        client.set(keys.held, 1000)
        client.config_set("maxmemory", "1")
        store.close()
        later = RecorderStore(valkey.url, "test", "two", block_seconds=0.1)
        try:
            later.life()
            later.join()
            ((entry_id, _),) = later.read(10, wait=False)
            assert later.acknowledge({entry_id.decode(): 1000}) == 1
            assert client.xlen(keys.stream) == 0
        finally:
            later.close()
