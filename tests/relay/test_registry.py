"""Which streams are open: here, in other processes, and while the store is away."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from channels.layers import channel_layers
from django.test import override_settings

from comm import publisher
from relay.exceptions import Unavailable
from relay.hub import Hub
from relay.layers.memory import MemoryChannelLayer
from relay.layers.redis import RedisChannelLayer
from relay.registry import StreamInfo, StreamTeller, add_stream, find_stream_of, find_streams, remove_stream
from tests.relay.conftest import House, TestWire
from tests.valkey import ValkeyProcess
from tests.waiting import aeventually

ELSEWHERE = StreamInfo("stream", "theirs", "t", "p", True)
HERE = StreamInfo("stream", "ours", "t", "p", True)


@pytest.fixture
def valkey() -> Any:
    server = ValkeyProcess().start()
    yield server
    server.close()


@pytest.fixture
async def other(valkey: ValkeyProcess) -> AsyncIterator[RedisChannelLayer]:
    """The layer of another process; this one's is the default layer, and at home on this loop."""
    prefix = f"test-{secrets.token_hex(4)}"
    ours, other = (RedisChannelLayer(url=valkey.url, prefix=prefix, timeout=2) for _ in range(2))
    before = channel_layers.set("default", ours)
    publisher.set_home_loop(asyncio.get_running_loop())
    yield other
    publisher.set_home_loop(None)
    for layer in (ours, other):
        await layer.aclose()
    if before is None:
        channel_layers.backends.pop("default", None)
    else:
        channel_layers.set("default", before)


async def tell(layer: RedisChannelLayer, *infos: StreamInfo) -> None:
    await layer.tell_streams({infos[0].stream_id: msgspec.msgpack.encode(infos)}, 60)


async def found(stream_id: str = "stream") -> list[StreamInfo]:
    """What a view finds, on a thread as views have."""
    return await asyncio.to_thread(find_streams, stream_id)


async def test_streams_of_this_and_other_processes_are_found(other: RedisChannelLayer) -> None:
    assert await found() == []
    await tell(other, ELSEWHERE)
    assert await found() == [ELSEWHERE]
    add_stream(HERE)
    try:
        assert await found() == [HERE, ELSEWHERE]
        assert await asyncio.to_thread(find_stream_of, "theirs", "stream") == ELSEWHERE
        assert await asyncio.to_thread(find_stream_of, "ours", "stream") == HERE
        assert await asyncio.to_thread(find_stream_of, "nobody's", "stream") is None
    finally:
        remove_stream(HERE)


async def test_what_is_no_stream_id_is_found_nowhere(other: RedisChannelLayer) -> None:
    for stream_id in ("", "x" * 201, "\ud800", "a\r\nb", "*"):
        assert await found(stream_id) == []


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_only_streams_of_this_process_are_known_while_the_store_is_away(
    other: RedisChannelLayer, valkey: ValkeyProcess, how: str
) -> None:
    await tell(other, ELSEWHERE)
    add_stream(HERE)
    try:
        assert len(await found()) == 2
        getattr(valkey, how)()
        assert await asyncio.wait_for(found(), 20) == [HERE]
    finally:
        remove_stream(HERE)


async def test_the_hub_tells_of_its_peers_and_of_their_end(
    other: RedisChannelLayer, valkey: ValkeyProcess
) -> None:
    hub = Hub()
    await hub.start()
    house = House(other, hub)
    peer, _ = await house.connect(sids=("second-name",))
    for name in peer.sids:
        (told,) = await other.find_streams(name, 5)
        assert msgspec.msgpack.decode(told, type=list[StreamInfo]) == [
            StreamInfo(name, house.session_id, "t", "p", True)
        ]
    twin, _ = await house.connect(stream_id=peer.stream_id)
    await hub.leave(peer)

    async def told_of(name: str) -> bool:
        return bool(await other.find_streams(name, 5))

    async def second_gone() -> bool:
        return not await told_of("second-name")

    await aeventually(second_gone, what="the end of a name")
    assert await told_of(twin.stream_id), "the other connection of that name is still there"
    await hub.aclose()
    assert not await told_of(twin.stream_id)


async def test_streams_are_told_again_to_a_store_that_lost_them(
    other: RedisChannelLayer, valkey: ValkeyProcess
) -> None:
    hub = Hub()
    await hub.start()
    try:
        peer, _ = await House(other, hub).connect()
        valkey.kill()
        valkey.start()

        async def told() -> bool:
            return bool(await other.find_streams(peer.stream_id, 5))

        await aeventually(told, timeout=20, what="being told again")
    finally:
        await hub.aclose()


async def test_a_stream_cannot_be_opened_while_the_store_is_away_and_can_after(
    other: RedisChannelLayer, valkey: ValkeyProcess
) -> None:
    hub = Hub()
    await hub.start()
    try:
        house = House(other, hub)
        valkey.kill()
        peer = house.peer(TestWire())
        with pytest.raises(Unavailable):
            await asyncio.wait_for(hub.join(peer, None), 20)
        await hub.leave(peer)
        assert hub.groups == []
        valkey.start()

        async def connects() -> bool:
            try:
                await house.connect()
            except Unavailable:
                return False
            return True

        await aeventually(connects, timeout=20, what="a stream")
        await house.publish("1")
    finally:
        await hub.aclose()


class Told(MemoryChannelLayer):
    """Notes what it is told, as a layer with a store does."""

    shared = True

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    async def tell_streams(self, streams: dict[str, bytes], seconds: float) -> None:
        self.told += streams


async def test_a_stream_is_told_again_while_others_close_all_the_time() -> None:
    layer = Told()
    with override_settings(RELAY={"KEEPALIVE_SECONDS": 0.3}):
        teller = StreamTeller(layer)
        add_stream(HERE)
        try:

            def told_twice() -> bool:
                teller.closed([HERE._replace(stream_id="another")])
                return layer.told.count(HERE.stream_id) >= 2

            await aeventually(told_twice, what="the open stream to be told again")
        finally:
            remove_stream(HERE)
            await teller.aclose()
