"""The layer on Redis when things break: nothing twice, nothing turned round, and an error in time."""

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis
from channels.layers import channel_layers

from comm import ChatCommunicator
from comm.groups import session_group
from comm.history import Position
from relay.layers import link
from relay.layers.calls import RedisAway, RedisRefused
from relay.layers.redis import RedisChannelLayer
from tests.contract.reading import drained, whole_log
from tests.proxy import TcpProxy
from tests.valkey import ValkeyProcess
from tests.waiting import aeventually

GROUP = session_group("one")
OTHER = session_group("two")


def numbered(n: object) -> dict[str, Any]:
    return {"type": "test.message", "n": n}


@pytest.fixture(params=[{}])
def valkey(request: pytest.FixtureRequest) -> Iterator[ValkeyProcess]:
    """A server of the test's own, to be maltreated."""
    server = ValkeyProcess(**request.param).start()
    yield server
    server.close()


@pytest.fixture
async def make(valkey: ValkeyProcess) -> AsyncIterator[Callable[..., RedisChannelLayer]]:
    """Make layers, all of one house."""
    made: list[RedisChannelLayer] = []
    prefix = f"test-{secrets.token_hex(4)}"

    def make(**options: Any) -> RedisChannelLayer:
        layer = RedisChannelLayer(**{"url": valkey.url, "prefix": prefix, **options})
        made.append(layer)
        return layer

    make.prefix = prefix  # type: ignore[attr-defined]
    yield make
    for layer in made:
        await layer.aclose()


def client(server: ValkeyProcess) -> redis.Redis:
    return redis.Redis(port=server.port)


class AnswersLost:
    """A proxy whose way back can be closed: Redis hears everything, we hear nothing."""

    def __init__(self, server: ValkeyProcess) -> None:
        self._target = server.port
        self._closed = False
        self._writers: list[asyncio.StreamWriter] = []
        self.answers = 0

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def lose_answers(self) -> None:
        self._closed, self.answers = True, 0

    async def break_wires(self) -> None:
        """Break what is open; the next connection works."""
        self._closed = False
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def aclose(self) -> None:
        await self.break_wires()
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, back]
        await asyncio.gather(self._pump(reader, back), self._pump(up, writer, answers=True))

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool = False
    ) -> None:
        try:
            while data := await source.read(65536):
                if answers and self._closed:
                    self.answers += 1
                else:
                    sink.write(data)
        except OSError:
            pass
        finally:
            sink.close()


# --- a wire that breaks -------------------------------------------------------------------------------


async def test_a_send_whose_answer_was_lost_takes_effect_once(valkey: ValkeyProcess, make: Any) -> None:
    proxy = AnswersLost(valkey)
    layer = make(url=await proxy.start())
    first = await layer.group_send(GROUP, numbered(0))
    proxy.lose_answers()
    sending = [asyncio.create_task(layer.group_send(GROUP, numbered(n))) for n in range(1, 300)]
    await aeventually(lambda: proxy.answers, what="an answer that is lost")
    await proxy.break_wires()
    positions = [first, *await asyncio.wait_for(asyncio.gather(*sending), 20)]
    assert positions == [Position(first.epoch, seq) for seq in range(1, 301)]
    assert [n for _, n in await whole_log(layer, GROUP)] == list(range(300))
    await layer.aclose()
    await proxy.aclose()


async def test_connections_killed_in_mid_burst_cost_nothing(valkey: ValkeyProcess, make: Any) -> None:
    sender, hearer = make(), make(capacity=100_000)
    await hearer.group_add(GROUP, channel := await hearer.new_channel())
    stop = threading.Event()
    kills = 0

    def kill() -> None:
        nonlocal kills
        with client(valkey) as killer:
            while not stop.wait(0.05):
                kills += int(killer.client_kill_filter(_type="pubsub", skipme=True))

    thread = threading.Thread(target=kill)
    thread.start()
    sent: dict[int, list[Position]] = {}

    async def produce(name: int) -> None:
        them = sent[name] = []
        while kills < 4:
            them.append(await sender.group_send(GROUP, numbered([name, len(them)])))

    try:
        await asyncio.wait_for(asyncio.gather(*(produce(name) for name in range(30))), 60)
    finally:
        stop.set()
        thread.join()
    assert all(positions == sorted(positions) for positions in sent.values())
    log = await whole_log(sender, GROUP)
    newest = (await sender.group_tail(GROUP)).seq
    assert newest == sum(map(len, sent.values())), "something twice, or never"
    assert [position.seq for position, _ in log] == list(range(newest - len(log) + 1, newest + 1))
    by_position = {position: [name, n] for name, them in sent.items() for n, position in enumerate(them)}
    assert all(by_position[position] == n for position, n in log)
    await asyncio.wait_for(hearer.group_send(GROUP, numbered("end")), 20)
    heard = await drained(hearer, channel)
    assert heard[-1] == "end", "it subscribed again"


async def test_members_hear_again_after_a_broken_wire_and_are_told_to_look(
    valkey: ValkeyProcess, make: Any
) -> None:
    layer = make()
    await layer.group_add(GROUP, channel := await layer.new_channel())
    resumed = asyncio.create_task(layer.resumed())
    await asyncio.sleep(0)
    client(valkey).client_kill_filter(_type="pubsub")
    await asyncio.wait_for(resumed, 10)
    await layer.group_send(GROUP, numbered(1))
    assert await drained(layer, channel) == [1]


@pytest.mark.parametrize("blocked", ["cut", "stall"])
async def test_a_call_fails_in_time_while_redis_cannot_be_reached(
    valkey: ValkeyProcess, make: Any, blocked: str
) -> None:
    proxy = TcpProxy(valkey.port).start()
    try:
        layer = make(url=f"redis://127.0.0.1:{proxy.port}", timeout=1)
        before = await layer.group_send(GROUP, numbered(0))
        getattr(proxy, blocked)()
        for call in (
            layer.group_send(GROUP, numbered(1)),
            layer.group_tail(GROUP),
            layer.send("x", numbered(1)),
        ):
            with pytest.raises(RedisAway, match=r"cannot be reached|broke|in time"):
                await asyncio.wait_for(call, 20)
        proxy.restore()

        async def send() -> Position | None:
            try:
                return await layer.group_send(GROUP, numbered(2))
            except RedisAway:
                return None

        after = await aeventually(send, timeout=30, what="Redis, reached again")
        log = await whole_log(layer, GROUP)
        assert log[0] == (before, 0)
        assert log[-1] == (after, 2)
        assert 1 not in [n for _, n in log], "it was said to have failed"
    finally:
        await layer.aclose()
        proxy.close()


async def test_a_wire_that_is_dead_without_a_word_is_given_up(
    valkey: ValkeyProcess, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "PING_SECONDS", 0.3)
    proxy = TcpProxy(valkey.port).start()
    try:
        layer = make(url=f"redis://127.0.0.1:{proxy.port}", timeout=0.5)
        await layer.group_add(GROUP, channel := await layer.new_channel())
        proxy.stall()
        await aeventually(lambda: proxy.accepted > 1, timeout=20, what="a new connection")
        proxy.restore()

        other = make()

        async def heard() -> bool:
            await other.group_send(GROUP, numbered(1))
            try:
                return bool(await asyncio.wait_for(layer.receive(channel), 0.2))
            except TimeoutError:
                return False

        await aeventually(heard, timeout=30, what="hearing again")
    finally:
        await layer.aclose()
        proxy.close()


# --- a Redis that stands still, or comes back ---------------------------------------------------------


async def test_calls_wait_for_a_frozen_redis(valkey: ValkeyProcess, make: Any) -> None:
    layer = make()
    await layer.group_send(GROUP, numbered(0))
    valkey.freeze()
    sending = [asyncio.create_task(layer.group_send(GROUP, numbered(n))) for n in range(1, 400)]
    await asyncio.sleep(1)  # the freeze itself
    assert not any(task.done() for task in sending)
    valkey.thaw()
    positions = await asyncio.wait_for(asyncio.gather(*sending), 20)
    assert [position.seq for position in positions] == list(range(2, 401))


async def test_what_failed_while_redis_was_frozen_is_not_taken_later(
    valkey: ValkeyProcess, make: Any
) -> None:
    layer = make(timeout=0.5)
    await layer.group_send(GROUP, numbered(0))
    valkey.freeze()
    sending = [asyncio.create_task(layer.group_send(GROUP, numbered(n))) for n in range(1, 400)]
    outcomes = await asyncio.wait_for(asyncio.gather(*sending, return_exceptions=True), 20)
    assert {type(outcome) for outcome in outcomes} == {RedisAway}
    valkey.thaw()
    await aeventually(lambda: sends(layer, "after"), what="Redis, thawed")
    assert [n for _, n in await whole_log(layer, GROUP)] == [0, "after"]


async def sends(layer: RedisChannelLayer, n: object) -> Position | None:
    """Try to send; None while Redis is away."""
    try:
        return await layer.group_send(GROUP, numbered(n))
    except RedisAway:
        return None


@pytest.mark.parametrize("valkey", [{"durable": True}], indirect=True)
async def test_a_restart_with_its_data_loses_nothing(valkey: ValkeyProcess, make: Any) -> None:
    layer = make()
    await layer.group_add(GROUP, channel := await layer.new_channel())
    before = [await layer.group_send(GROUP, numbered(n)) for n in range(3)]
    valkey.kill()
    sending = asyncio.create_task(layer.group_send(GROUP, numbered(3)))
    valkey.start()
    after = await asyncio.wait_for(sending, 20)
    assert after == Position(before[0].epoch, 4)
    assert [n for _, n in await whole_log(layer, GROUP)] == [0, 1, 2, 3]
    assert await drained(layer, channel) == [0, 1, 2, 3]


async def test_a_restart_without_its_data_begins_a_later_epoch(valkey: ValkeyProcess, make: Any) -> None:
    layer = make()
    await layer.group_add(GROUP, channel := await layer.new_channel())
    before = [await layer.group_send(GROUP, numbered(n)) for n in range(3)]
    valkey.kill()
    valkey.start()
    after = await asyncio.wait_for(layer.group_send(GROUP, numbered("new")), 20)
    assert after.seq == 1
    assert after > before[-1]
    assert await drained(layer, channel) == [0, 1, 2, "new"]
    tail = await layer.group_tail(GROUP)
    assert tail == after


@pytest.mark.parametrize("knows", ["by hearing", "by sending"])
async def test_older_data_than_was_delivered_begins_a_later_epoch(
    valkey: ValkeyProcess, make: Any, knows: str
) -> None:
    sender, other = make(), make()
    if knows == "by hearing":
        await other.group_add(GROUP, await other.new_channel())
    kept = [await sender.group_send(GROUP, numbered(n)) for n in range(3)]
    client(valkey).save()
    lost = [await sender.group_send(GROUP, numbered(n)) for n in range(3, 6)]
    await other.group_tail(OTHER)
    if knows == "by hearing":
        await sender.aclose()
    valkey.kill()
    valkey.start()
    knower = other if knows == "by hearing" else sender
    tail = await asyncio.wait_for(knower.group_tail(GROUP), 20)
    assert tail > lost[-1]
    assert tail.epoch > kept[0].epoch
    assert await make().group_send(GROUP, numbered("new")) == Position(tail.epoch, 1)


async def test_an_epoch_is_later_when_the_clock_was_set_back(valkey: ValkeyProcess, make: Any) -> None:
    """The store's memory of its clock stands in for the clock itself."""
    layer = make()
    first = await layer.group_send(GROUP, numbered(1))
    ahead = int(time.time() * 1000) + 3_600_000
    prefix = f"{make.prefix}:"
    client(valkey).hset(f"{prefix}clock", mapping={"seen": ahead, "high": ahead})
    later = await layer.group_send(OTHER, numbered(1))
    assert later.epoch == ahead + 1, "all that was given before counts as gone"
    client(valkey).delete(f"{prefix}tail:{GROUP}")
    again = await layer.group_send(GROUP, numbered(1))
    assert again.epoch > first.epoch
    assert again.epoch <= ahead + 2, "it does not run away from the clock"


async def test_scripts_that_redis_forgot_are_sent_again(valkey: ValkeyProcess, make: Any) -> None:
    layer = make()
    await layer.group_send(GROUP, numbered(0))
    client(valkey).script_flush()
    positions = await asyncio.gather(*(layer.group_send(GROUP, numbered(n)) for n in range(1, 400)))
    assert [position.seq for position in positions] == list(range(2, 401))
    client(valkey).script_flush()
    tails, log = await asyncio.gather(layer.group_tails([GROUP]), layer.group_read(GROUP, positions[-2], 5))
    assert tails == [positions[-1]]
    assert [entry.message["n"] for entry in log.entries] == [399]


async def test_a_reader_that_redis_cut_off_reads_the_log(valkey: ValkeyProcess, make: Any) -> None:
    layer = make()
    await layer.group_add(GROUP, await layer.new_channel())
    client(valkey).config_set("client-output-buffer-limit", "pubsub 256kb 0 0")
    resumed = asyncio.create_task(layer.resumed())
    await asyncio.sleep(0)

    def produce() -> None:
        async def send() -> None:
            other = make()
            for n in range(40):
                await asyncio.gather(
                    *(other.group_send(GROUP, {**numbered(n), "body": bytes(100_000)}) for _ in range(5))
                )
            await other.aclose()

        asyncio.run(send())

    # While this loop stands still, nothing is read.
    thread = threading.Thread(target=produce)
    thread.start()
    thread.join()
    await asyncio.wait_for(resumed, 20)
    assert (await layer.group_tail(GROUP)).seq == 200


# --- cancelling ---------------------------------------------------------------------------------------


async def test_a_sender_cancelled_while_redis_has_its_message_learns_the_position(
    valkey: ValkeyProcess, make: Any
) -> None:
    layer = make()
    first = await layer.group_send(GROUP, numbered(0))
    learned: list[Position] = []

    async def send() -> None:
        learned.append(await layer.group_send(GROUP, numbered(1)))
        await asyncio.sleep(60)

    valkey.freeze()
    sending = asyncio.create_task(send())
    await asyncio.sleep(0.2)  # it is written, and nobody answers
    sending.cancel()
    await asyncio.sleep(0.2)
    assert not sending.done()
    valkey.thaw()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(sending, 10)
    assert learned == [Position(first.epoch, 2)]
    assert [n for _, n in await whole_log(layer, GROUP)] == [0, 1]


async def test_a_sender_cancelled_before_its_message_was_written_has_sent_nothing(make: Any) -> None:
    layer = make()
    await layer.group_send(GROUP, numbered(0))
    sending = [asyncio.create_task(layer.group_send(GROUP, numbered(n))) for n in range(1, 6)]
    await asyncio.sleep(0)
    sending[2].cancel()
    positions = await asyncio.gather(*sending, return_exceptions=True)
    assert isinstance(positions[2], asyncio.CancelledError)
    assert [n for _, n in await whole_log(layer, GROUP)] == [0, 1, 2, 4, 5]


async def test_cancelled_calls_leave_the_others_their_answers(make: Any) -> None:
    layer = make()
    for n in range(100):
        await layer.group_send(session_group(f"g{n % 7}"), numbered(n))
    calls = [asyncio.create_task(layer.group_tails([session_group(f"g{n % 7}")])) for n in range(70)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for call in calls[::3]:
        call.cancel()
    tails = await asyncio.gather(*calls, return_exceptions=True)
    expected = [len(range(n, 100, 7)) for n in range(7)]
    for n, tail in enumerate(tails):
        if not isinstance(tail, asyncio.CancelledError):
            assert [t.seq for t in tail] == [expected[n % 7]]
    assert sum(isinstance(tail, asyncio.CancelledError) for tail in tails) == 24


async def test_a_second_cancel_does_not_wait(valkey: ValkeyProcess, make: Any) -> None:
    layer = make()
    await layer.group_send(GROUP, numbered(0))
    valkey.freeze()
    sending = asyncio.create_task(layer.group_send(GROUP, numbered(1)))
    await asyncio.sleep(0.2)  # it is written
    sending.cancel()
    await asyncio.sleep(0.05)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(sending, 5)
    valkey.thaw()


async def test_a_cancelled_sender_whose_message_fails_is_still_cancelled(
    valkey: ValkeyProcess, make: Any
) -> None:
    layer = make(timeout=0.5)
    await layer.group_send(GROUP, numbered(0))

    async def send_again_and_again() -> None:
        while True:
            with contextlib.suppress(RedisAway):
                await layer.group_send(GROUP, numbered(1))

    valkey.freeze()
    sending = asyncio.create_task(send_again_and_again())
    await asyncio.sleep(0.2)  # it is written, and nobody answers
    sending.cancel()
    await asyncio.wait([sending], timeout=10)
    valkey.thaw()
    assert sending.cancelled()


async def test_the_end_of_a_turn_that_was_cut_off_and_not_taken_can_be_told_again(
    valkey: ValkeyProcess, make: Any
) -> None:
    layer = make(timeout=0.5)
    before = channel_layers.set("default", layer)
    try:
        comm = ChatCommunicator(service={}, conversation={"session_id": "one", "turn_id": "t"})
        await comm.start()
        valkey.freeze()
        ending = asyncio.create_task(comm.complete())
        await asyncio.sleep(0.2)  # it is written, and nobody answers
        ending.cancel()
        await asyncio.wait([ending], timeout=10)
        valkey.thaw()
        assert ending.cancelled()
        assert comm.ended is None
        await comm.complete()
        tail = await layer.group_tail(GROUP)
        log = await layer.group_read(GROUP, Position(tail.epoch, 0), 10)
        assert [entry.message["route"] for entry in log.entries] == ["chat_start", "chat_complete"]
    finally:
        channel_layers.backends.pop("default", None)
        if before is not None:
            channel_layers.set("default", before)


async def test_a_subscription_that_is_refused_leaves_the_others_their_answers(
    valkey: ValkeyProcess, make: Any
) -> None:
    channels = f"&{make.prefix}:to:!*"
    client(valkey).execute_command(
        "ACL", "SETUSER", "some", "on", ">pw", "~*", "+@all", "resetchannels", channels
    )
    layer = make(url=valkey.url.replace("redis://", "redis://some:pw@"))
    tails = await layer.group_tails([GROUP, OTHER])
    joining = asyncio.create_task(layer.group_add(GROUP, await layer.new_channel()))
    asked = [asyncio.create_task(layer.group_tails([group])) for group in (GROUP, OTHER)]
    with pytest.raises(RedisRefused, match="NOPERM"):
        await joining
    assert [await answer for answer in asked] == [[tail] for tail in tails]


# --- what is no Redis of ours -------------------------------------------------------------------------


async def test_a_wrong_password_is_told_at_once_and_not_repeated(valkey: ValkeyProcess, make: Any) -> None:
    client(valkey).config_set("requirepass", "secret")
    layer = make(url=f"redis://:wrong@127.0.0.1:{valkey.port}")
    with pytest.raises(RedisRefused, match="refused us") as caught:
        await asyncio.wait_for(layer.group_tail(GROUP), 5)
    assert "wrong@" not in str(caught.value)
    right = make(url=f"redis://:secret@127.0.0.1:{valkey.port}/3")
    assert (await right.group_tail(GROUP)).seq == 0


async def test_what_is_no_redis_is_said_to_be_none(make: Any) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    layer = make(url=f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    with pytest.raises(RedisRefused, match="no Redis"):
        await asyncio.wait_for(layer.group_tail(GROUP), 5)
    await layer.aclose()
    server.close()


async def test_nobody_there_is_said_after_the_time_limit(make: Any) -> None:
    layer = make(url="redis://127.0.0.1:1", timeout=0.5)
    with pytest.raises(RedisAway, match="cannot be reached"):
        await asyncio.wait_for(layer.group_add(GROUP, await layer.new_channel()), 10)
