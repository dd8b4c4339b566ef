"""The hub and its peers: order, holes, resume, slow readers, the end."""

import asyncio
import random

import pytest

from comm.envelope import ConversationContext, Envelope, Event, ServiceContext, stamp
from comm.groups import project_group, session_group
from comm.history import Position
from comm.publisher import MESSAGE_TYPE, show
from relay.peers import State
from relay.registry import find_streams
from tests.relay.conftest import House, TestWire
from tests.waiting import aeventually

SMALL_QUEUE = {"PEER_QUEUE_BYTES": 2000, "PULL_ENTRIES": 7}


async def test_ready_comes_first_and_carries_the_position_the_stream_starts_from(house: House) -> None:
    await house.publish("before")
    _, wire = await house.connect()
    first = wire.events[0]
    assert first.event == "ready"
    assert first.id is not None
    assert first.id.endswith("-1")
    assert first.data["resume"] == {"outcome": "live", "from": first.id, "to": first.id, "source": "log"}


async def test_what_is_published_is_delivered_once_and_in_order(house: House) -> None:
    _, wire = await house.connect()
    for n in range(300):
        await house.publish(str(n))
    await aeventually(lambda: len(wire.seqs()) >= 300)
    assert wire.seqs() == list(range(1, 301))


async def test_what_piles_up_is_written_in_one_go(house: House) -> None:
    _, wire = await house.connect()
    written = len(wire.writes)
    await asyncio.gather(*(house.publish(str(n)) for n in range(30)))
    await aeventually(lambda: len(wire.seqs()) == 30)
    assert len(wire.writes) - written < 10


async def test_targeted_envelope_reaches_only_its_peer(house: House) -> None:
    one, one_wire = await house.connect()
    _, other_wire = await house.connect()
    await house.publish("private", target_sid=one.stream_id)
    await house.publish("public")
    await aeventually(lambda: other_wire.seqs() == [2])
    await aeventually(lambda: one_wire.seqs() == [1, 2])


async def test_a_session_never_sees_another_sessions_event(house: House) -> None:
    _, wire = await house.connect()
    other, _ = await house.connect(session_id="other")
    await house.publish("theirs", session_id="other")
    await house.publish("theirs", session_id="other", target_sid=other.stream_id)
    await house.publish("ours")
    await aeventually(lambda: wire.seqs() == [1])
    assert wire.events[-1].data["delta"]["text"] == "ours"


async def test_a_hole_is_filled_from_the_log(house: House) -> None:
    _, wire = await house.connect()
    await house.publish("1")
    await aeventually(lambda: wire.seqs() == [1])
    # The doorbell of these two is lost: the process channel is not in the group when they are sent.
    group, channel = session_group(house.session_id), house.hub.channel
    await house.layer.group_discard(group, channel)
    await house.publish("2")
    await house.publish("3")
    await house.layer.group_add(group, channel)
    await house.publish("4")
    await aeventually(lambda: wire.seqs() == [1, 2, 3, 4])


@pytest.mark.parametrize("house", [{"TAIL_CHECK_SECONDS": 0.05}], indirect=True)
async def test_a_lost_last_event_is_found_by_the_tail_check(house: House) -> None:
    _, wire = await house.connect()
    group, channel = session_group(house.session_id), house.hub.channel
    await house.layer.group_discard(group, channel)
    await house.publish("last")
    await house.layer.group_add(group, channel)
    await aeventually(lambda: wire.seqs() == [1])


async def test_a_doorbell_that_rings_twice_delivers_once(house: House) -> None:
    _, wire = await house.connect()
    position = await house.publish("1")
    again = await house.layer.group_read(session_group(house.session_id), Position(position.epoch, 0), 1)
    await house.layer.send(
        house.hub.channel,
        {**again.entries[0].message, "group": session_group(house.session_id), "position": position},
    )
    await house.publish("2")
    await aeventually(lambda: wire.seqs() == [1, 2])


async def test_a_peer_that_reconnects_gets_what_it_missed_then_the_live_stream(house: House) -> None:
    _, first = await house.connect()
    for n in range(10):
        await house.publish(str(n))
    await aeventually(lambda: len(first.seqs()) == 10)
    seen = next(e.id for e in first.events if e.id and e.id.endswith("-4"))
    _, second = await house.connect(last_event_id=seen)
    await house.publish("live")
    await aeventually(lambda: len(second.seqs()) >= 7)
    assert second.seqs() == [5, 6, 7, 8, 9, 10, 11]
    assert second.resumes[0]["outcome"] == "replayed"
    assert second.resumes[0]["from"] == seen


@pytest.mark.parametrize(
    "house", [{"layer": {"history_count": 10**6, "history_bytes": 10**9}}], indirect=True
)
async def test_replay_and_live_never_interleave_while_events_keep_coming(house: House) -> None:
    stop = False

    async def emit() -> None:
        while not stop:
            await house.publish("x")
            await asyncio.sleep(0.0005)

    emitter = asyncio.create_task(emit())
    start = str(Position((await house.layer.group_tail(session_group(house.session_id))).epoch, 0))
    wires = []
    for _ in range(20):
        await asyncio.sleep(0.005)
        wires.append((await house.connect(last_event_id=start))[1])
    stop = True
    await emitter
    last = (await house.layer.group_tail(session_group(house.session_id))).seq
    for wire in wires:
        await aeventually(lambda wire=wire: wire.seqs()[-1:] == [last])
        assert wire.seqs() == list(range(1, last + 1))


@pytest.mark.parametrize("last_event_id", ["nonsense", "-1-4", "1-2-3", "1", "99999999999999999-1", "١-٢"])
async def test_a_malformed_position_is_a_reset_and_the_stream_is_live(
    house: House, last_event_id: str
) -> None:
    await house.publish("old")
    _, wire = await house.connect(last_event_id=last_event_id)
    assert wire.resumes[0]["outcome"] == "reset"
    await house.publish("new")
    await aeventually(lambda: wire.seqs() == [2])


@pytest.mark.parametrize("ahead", [5, 10**15])
async def test_a_position_of_the_future_is_a_reset_and_the_stream_is_live(house: House, ahead: int) -> None:
    position = await house.publish("old")
    _, wire = await house.connect(last_event_id=str(Position(position.epoch, position.seq + ahead)))
    assert wire.resumes[0]["outcome"] == "reset"
    await house.publish("new")
    await aeventually(lambda: wire.seqs() == [2])


async def test_an_old_epoch_without_archive_is_a_reset_followed_by_what_the_log_has(house: House) -> None:
    position = await house.publish("kept")
    _, wire = await house.connect(last_event_id=str(Position(position.epoch - 1000, 7)))
    assert wire.resumes[0]["outcome"] == "reset"
    await aeventually(lambda: wire.seqs() == [1])


@pytest.mark.parametrize("house", [SMALL_QUEUE], indirect=True)
async def test_a_slow_reader_gets_the_same_text_in_fewer_frames(house: House) -> None:
    peer, slow = await house.connect()
    _, fast = await house.connect()
    slow.open.clear()
    for n in range(500):
        await house.publish(f"<{n}>", index=n)
    await aeventually(lambda: len(fast.seqs()) == 500)
    assert peer.state is State.PULLING
    assert peer.waiting_bytes <= 2000
    slow.open.set()
    await aeventually(lambda: slow.seqs()[-1:] == [500])

    def text(wire: TestWire) -> str:
        return "".join(e.data["delta"]["text"] for e in wire.events if e.event == "chat_delta")

    assert text(slow) == text(fast) == "".join(f"<{n}>" for n in range(500))
    assert len(slow.seqs()) < 200
    assert slow.seqs() == sorted(set(slow.seqs()))
    await house.publish("live again")
    await aeventually(lambda: slow.seqs()[-1] == 501)
    assert peer.state is State.LIVE


@pytest.mark.parametrize("house", [{**SMALL_QUEUE, "layer": {"history_count": 20}}], indirect=True)
async def test_a_slow_reader_whom_the_log_left_behind_is_told_reset(house: House) -> None:
    _, slow = await house.connect()
    slow.open.clear()
    for n in range(200):
        await house.publish(str(n))
    slow.open.set()
    await aeventually(lambda: slow.seqs()[-1:] == [200])
    assert [resume["outcome"] for resume in slow.resumes] == ["live", "reset"]


async def test_an_idle_stream_gets_a_keepalive_and_a_busy_one_none(house: House) -> None:
    peer, wire = await house.connect()
    for _ in range(3):
        peer.keep_alive()
    await house.publish("busy")
    await aeventually(lambda: wire.seqs() == [1])
    for _ in range(3):
        peer.keep_alive()
    await asyncio.sleep(0)
    assert wire.keepalive not in b"".join(wire.writes)
    peer.keep_alive()
    await aeventually(lambda: wire.keepalive in wire.writes)


async def test_goodbye_is_the_last_frame_and_ends_the_stream(house: House) -> None:
    _, wire = await house.connect()
    await house.publish("1")
    await aeventually(lambda: wire.seqs() == [1])
    goodbye = asyncio.create_task(house.hub.say_goodbye(1.0, patience_seconds=0))
    await aeventually(lambda: wire.finished == 1)
    await goodbye
    await house.publish("2")
    await aeventually(lambda: [e.event for e in wire.events] == ["ready", "chat_delta", "server_shutdown"])
    assert wire.events[-1].id is None


async def test_retry_slots_are_dealt_out_over_the_window(house: House) -> None:
    wires = [(await house.connect())[1] for _ in range(10)]
    await house.hub.say_goodbye(5.0, patience_seconds=0)
    await aeventually(lambda: all(wire.finished for wire in wires))
    slots = sorted(wire.events[-1].data["retry_after_ms"] for wire in wires)
    assert slots == [1000 + 500 * n for n in range(10)]


async def test_goodbye_waits_for_a_socket_that_is_full(house: House) -> None:
    peer, wire = await house.connect()
    wire.open.clear()
    position = await house.publish("1")
    await aeventually(lambda: peer.cursor == position)
    await house.hub.say_goodbye(1.0, patience_seconds=0.05)
    assert not wire.finished
    wire.open.set()
    await aeventually(lambda: wire.finished == 1)
    assert [e.event for e in wire.events] == ["ready", "chat_delta", "server_shutdown"]


async def test_a_write_that_fails_ends_the_stream(house: House) -> None:
    peer, wire = await house.connect()
    wire.error = ConnectionResetError("gone")
    await house.publish("1")
    await aeventually(lambda: wire.finished == 1)
    assert peer.state is State.CLOSED


async def test_groups_are_joined_with_the_first_peer_and_left_with_the_last(house: House) -> None:
    one, _ = await house.connect()
    two, _ = await house.connect(project_events=True)
    assert sorted(house.hub.groups) == sorted([session_group(house.session_id), project_group("t", "p")])
    await house.hub.leave(two)
    assert house.hub.groups == [session_group(house.session_id)]
    await house.hub.leave(one)
    await house.hub.leave(one)
    assert house.hub.groups == []
    assert find_streams(one.stream_id) == []


async def test_connections_that_share_a_stream_id_are_all_served_and_leave_one_by_one(house: House) -> None:
    one, one_wire = await house.connect(stream_id="same")
    _, two_wire = await house.connect(stream_id="same")
    await house.publish("both", target_sid="same")
    await aeventually(lambda: one_wire.seqs() == two_wire.seqs() == [1])
    await house.hub.leave(one)
    assert len(find_streams("same")) == 1


async def test_project_events_reach_only_those_who_asked_and_move_no_position(house: House) -> None:
    _, asked = await house.connect(project_events=True)
    _, silent = await house.connect()
    group = project_group("t", "p")
    await house.layer.group_send(
        group,
        {
            "type": MESSAGE_TYPE,
            "group": group,
            "route": "chat_service",
            "target_sid": None,
            "body": b'{"a":1}',
        },
    )
    await house.publish("after")
    await aeventually(lambda: silent.seqs() == [1])
    await aeventually(lambda: asked.seqs() == [1])
    assert [e.id is None for e in asked.events if e.event == "chat_service"] == [True]
    assert not [e for e in silent.events if e.event == "chat_service"]


@pytest.mark.parametrize("house", [{"PEER_QUEUE_BYTES": 1500, "PULL_ENTRIES": 5}], indirect=True)
@pytest.mark.parametrize("seed", range(8))
async def test_whatever_the_socket_does_no_event_is_lost_doubled_or_misplaced(
    house: House, seed: int
) -> None:
    dice = random.Random(seed)
    peer, wire = await house.connect()
    meant = []
    for n in range(400):
        target = dice.choice([None, None, peer.stream_id, "somebody-else"])
        await house.publish(f"<{n}>", target_sid=target, index=n)
        if target != "somebody-else":
            meant.append(f"<{n}>")
        if dice.random() < 0.2:
            (wire.open.clear if wire.open.is_set() else wire.open.set)()
        if dice.random() < 0.5:
            await asyncio.sleep(0)
    wire.open.set()
    await house.publish("<end>")
    await aeventually(lambda: wire.events[-1].data.get("delta", {}).get("text", "").endswith("<end>"))
    assert (
        "".join(e.data["delta"]["text"] for e in wire.events if e.event == "chat_delta")
        == "".join(meant) + "<end>"
    )
    assert wire.seqs() == sorted(set(wire.seqs()))


def shown(text: str) -> Envelope:
    timestamp, ts = stamp()
    return Envelope(
        type="chat.step", timestamp=timestamp, ts=ts, service=ServiceContext(),
        conversation=ConversationContext("of-another-time"), event=Event(title=text),
    )  # fmt: skip


async def test_what_is_shown_to_a_stream_reaches_it_alone_and_is_kept_nowhere(house: House) -> None:
    one, one_wire = await house.connect()
    _, other_wire = await house.connect()
    await show(shown("for one"), stream_id=one.stream_id)
    await show(shown("for both"), session_id=house.session_id)
    await house.publish("real")
    await aeventually(lambda: one_wire.seqs() == other_wire.seqs() == [1])

    def titles(wire: TestWire) -> list[str]:
        return [e.data["event"]["title"] for e in wire.events if e.event == "chat_step"]

    assert titles(one_wire) == ["for one", "for both"]
    assert titles(other_wire) == ["for both"]
    assert all(e.id is None for e in one_wire.events if e.event == "chat_step")
