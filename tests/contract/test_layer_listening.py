"""What a listener is promised: it hears in time, takes in order, and nobody else receives from its channel."""

import asyncio

from comm.groups import session_group
from relay.layers.base import HistoryChannelLayer
from tests.contract.backends import LayerFactory
from tests.waiting import aeventually

GROUP = session_group("listening")


def numbered(n: int) -> dict[str, object]:
    return {"type": "test.message", "n": n}


async def test_a_listener_takes_everything_in_order(make_layer: LayerFactory) -> None:
    layer = await make_layer(capacity=1000)
    channel = await layer.new_channel()
    await layer.group_add(GROUP, channel)
    taken: list[int] = []

    def heard() -> None:
        while (message := layer.take(channel)) is not None:
            taken.append(message["n"])

    layer.listen(channel, heard)
    await asyncio.gather(*(layer.group_send(GROUP, numbered(n)) for n in range(300)))
    await layer.send(channel, numbered(300))
    await aeventually(lambda: len(taken) == 301, what="every message")
    assert taken == list(range(301))
    layer.stop_listening(channel)


async def test_a_listener_has_heard_before_the_send_returns_or_in_that_turn(
    layer: HistoryChannelLayer,
) -> None:
    channel = await layer.new_channel()
    await layer.group_add(GROUP, channel)
    heard = asyncio.Event()
    layer.listen(channel, heard.set)
    position = await layer.group_send(GROUP, numbered(1))
    await asyncio.wait_for(heard.wait(), 10)
    message = layer.take(channel)
    assert message is not None
    assert (message["n"], message["position"]) == (1, position)
    assert layer.take(channel) is None


async def test_what_a_listener_left_is_taken_later(layer: HistoryChannelLayer) -> None:
    channel = await layer.new_channel()
    calls: list[int] = []
    layer.listen(channel, lambda: calls.append(len(calls)))
    await layer.send(channel, numbered(0))
    await aeventually(lambda: calls, what="the first call")
    await layer.send(channel, numbered(1))
    await aeventually(lambda: len(calls) == 2, what="the second call")
    messages = [layer.take(channel), layer.take(channel), layer.take(channel)]
    assert [message and message["n"] for message in messages] == [0, 1, None]


async def test_after_listening_a_channel_is_received_from_again(layer: HistoryChannelLayer) -> None:
    channel = await layer.new_channel()
    calls: list[str] = []
    layer.listen(channel, lambda: calls.append("heard"))
    layer.stop_listening(channel)
    layer.stop_listening(channel)
    receiving = asyncio.create_task(layer.receive(channel))
    await layer.send(channel, numbered(7))
    assert (await asyncio.wait_for(receiving, 10))["n"] == 7
    assert calls == []


async def test_a_channel_that_is_listened_to_stays_in_its_groups(make_layer: LayerFactory) -> None:
    layer = await make_layer(expiry=0.05, group_expiry=0.05)
    channel = await layer.new_channel()
    await layer.group_add(GROUP, channel)
    taken: list[int] = []

    def heard() -> None:
        while (message := layer.take(channel)) is not None:
            taken.append(message["n"])

    layer.listen(channel, heard)
    await asyncio.sleep(0.3)  # six times what a channel lives that nobody receives from

    async def sent() -> bool:
        await layer.group_send(GROUP, numbered(1))
        return bool(taken)

    await aeventually(sent, what="a message to a channel that was quiet for long")
    layer.stop_listening(channel)
