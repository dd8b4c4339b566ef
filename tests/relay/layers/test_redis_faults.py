"""The layer on Redis when things break: nothing twice, nothing turned round, and an error in time."""

import asyncio
import threading
import time
from typing import Any

import pytest

from comm import ChatCommunicator
from comm.exceptions import PublishFailed
from comm.history import Position
from relay.layers import link
from relay.layers.calls import RedisAway, RedisRefused
from tests.contract.reading import drained, whole_log
from tests.proxy import TcpProxy
from tests.relay.layers.maltreating import GROUP, OTHER, client, default_layer, numbered, sends
from tests.valkey import ValkeyProcess
from tests.waiting import aeventually


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


async def test_what_may_be_taken_for_a_moment_only_is_not_taken_later_and_holds_up_nobody(
    valkey: ValkeyProcess, make: Any
) -> None:
    layer = make(timeout=60)
    await layer.group_send(GROUP, numbered(0))
    valkey.freeze()
    # The first are written, and the others wait behind them.
    until = {n: time.monotonic() + 0.3 for n in (2, 398)}
    sending = [asyncio.create_task(layer.group_send(GROUP, numbered(n), until.get(n))) for n in range(1, 400)]
    with pytest.raises(RedisAway):
        await asyncio.wait_for(sending[1], 20)
    valkey.thaw()
    outcomes = await asyncio.wait_for(asyncio.gather(*sending, return_exceptions=True), 30)
    assert [n for n, outcome in enumerate(outcomes, 1) if isinstance(outcome, RedisAway)] == [2, 398]
    log = await whole_log(layer, GROUP)
    assert [n for _, n in log] == [n for n in range(400) if n not in until]


async def test_a_turn_that_was_lost_meanwhile_is_not_heard_any_more(valkey: ValkeyProcess, make: Any) -> None:
    layer = make(timeout=60)
    until = time.monotonic() + 60
    with default_layer(layer):
        comm = ChatCommunicator(service={}, conversation={"session_id": "one"}, guard=lambda: until)
        await comm.delta("answer", "in time")
        valkey.freeze()
        until = time.monotonic() + 0.3
        with pytest.raises(PublishFailed):
            await asyncio.wait_for(comm.delta("answer", "too late"), 30)
        valkey.thaw()
        assert (await layer.group_tail(GROUP)).seq == 1
        until = time.monotonic() + 60
        await comm.delta("answer", "again in time")
        assert (await layer.group_tail(GROUP)).seq == 2


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
