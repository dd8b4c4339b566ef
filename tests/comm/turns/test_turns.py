"""Turns: accepted, run, followed up, steered, stopped and told, in this order."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.sync import async_to_sync
from channels.db import database_sync_to_async
from django.core.files.storage import storages

from comm.exceptions import BundleUnknown, ConversationForbidden
from comm.models import Attachment, Conversation, Message, Submission, Turn
from comm.turns import acceptance
from comm.turns.conversations import conversation_status, fetch_conversation, list_conversations
from comm.turns.ids import mint_turn_id
from comm.turns.incoming import Caller, IncomingFile
from tests.comm.turns.conftest import House
from tests.waiting import aeventually

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def attachments_folder(tmp_path, settings):  # type: ignore[no-untyped-def]
    """Keep the files of the tests out of the project."""
    options = {"location": str(tmp_path), "base_url": None}
    settings.STORAGES = {
        **settings.STORAGES,
        "attachments": {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": options},
    }
    return tmp_path


async def test_a_turn_tells_its_events_in_the_order_of_the_contract(house: House) -> None:
    ack = await house.say(
        "one two", files=[IncomingFile("a.txt", "text/plain", b"x")], origin_stream_id="tab"
    )
    await house.ended(ack["turn_id"])
    assert await house.told() == [
        "created", "in_progress", "chat.attachments", "chat.start", "chat.conversation.title",
        "chat.delta", "chat.delta", "chat.complete", "idle success",
    ]  # fmt: skip
    events = await house.events()
    assert events[-1]["data"]["origin_stream_id"] == "tab"
    assert events[-2]["data"]["final_answer"] == "one two "
    turn = await house.turn(ack["turn_id"])
    assert (turn.status, turn.conversation.state, turn.lease_until) == (Turn.Status.COMPLETED, "idle", None)
    assert turn.outcome["final_answer"] == "one two "


async def test_what_a_database_cannot_hold_is_told_as_it_is_and_stored_as_it_can_be(house: House) -> None:
    ack = await house.say("x", bundle_id="odd")
    await house.ended(ack["turn_id"])
    assert [e["data"]["final_answer"] for e in await house.events() if e["type"] == "chat.complete"] == [
        "a\0b"
    ]
    turn = await house.turn(ack["turn_id"])
    assert turn.status == Turn.Status.COMPLETED
    assert (await Message.objects.aget(turn=turn, role=Message.Role.ASSISTANT)).content == "a\ufffdb"
    usage = turn.outcome["usage"]
    assert (usage["note"], usage["price"]) == ("n\ufffd", "0.1")
    assert [marker["text"] for marker in turn.outcome["markers"]] == ["t\ufffd", "a\ufffdb"]
    assert "\0" not in str(turn.outcome)


async def test_the_second_message_creates_nothing_and_sees_the_first(house: House) -> None:
    first = await house.say("one", conversation_id="mine")
    await house.ended(first["turn_id"])
    second = await house.say("two", conversation_id="mine", bundle_id="clock")
    await house.ended(second["turn_id"])
    assert (first["conversation_created"], second["conversation_created"]) == (True, False)
    assert second["conversation_id"] == "mine"
    assert (await house.told(second["turn_id"]))[0] == "in_progress"
    assert (await house.turn(second["turn_id"])).outcome["final_answer"] == "+0000|user:one/assistant:one |"


@pytest.mark.parametrize(
    ("zone", "offset", "said"), [("Asia/Kolkata", None, "+0530"), ("nonsense", 120, "+0200"), ("", None, "+0000"),
                                 ("../../etc/passwd", -90, "-0130")]
)  # fmt: skip
async def test_now_is_in_the_users_zone(house: House, zone: str, offset: int | None, said: str) -> None:
    caller = Caller(house.session_id, house.session_id, timezone=zone, utc_offset_min=offset)
    ack = await house.say("when", bundle_id="clock", caller=caller)
    await house.ended(ack["turn_id"])
    assert (await house.turn(ack["turn_id"])).outcome["final_answer"].startswith(said)


async def test_a_new_conversation_takes_the_clients_own_history_and_files_can_be_read(house: House) -> None:
    ack = await house.say(
        "hi", bundle_id="clock", chat_history=[{"role": "user", "content": "earlier"}],
        files=[IncomingFile("a.txt", "text/plain", b"content")],
    )  # fmt: skip
    await house.ended(ack["turn_id"])
    assert (await house.turn(ack["turn_id"])).outcome["final_answer"] == "+0000|user:earlier|a.txt=content"


async def test_a_bundle_that_starts_and_ends_its_turn_itself_does_so_once(house: House) -> None:
    ack = await house.say("x", bundle_id="ender")
    await house.ended(ack["turn_id"])
    told = await house.told()
    assert told.count("chat.start") == told.count("chat.complete") == 1
    assert "chat.error" not in told
    assert (await Message.objects.aget(role="assistant")).content == "mine"


async def test_an_error_that_a_bundle_tells_is_kept_in_its_words(house: House) -> None:
    ack = await house.say("x", bundle_id="refuser")
    await house.ended(ack["turn_id"])
    turn = await house.turn(ack["turn_id"])
    assert turn.error == {"error": "pace_ms: must be a number", "error_type": "config_invalid"}


async def test_an_exception_of_a_bundle_is_an_error_without_its_text(house: House) -> None:
    ack = await house.say("x", bundle_id="broken")
    await house.ended(ack["turn_id"])
    assert (await house.told())[-2:] == ["chat.error", "error error"]
    error = (await house.events())[-2]["data"]
    assert error["error_type"] == "bundle_error"
    assert "hunter2" not in str(await house.events())
    assert (await Message.objects.aget(role="assistant")).content == "half an "
    turn = await house.turn(ack["turn_id"])
    assert (turn.status, turn.conversation.state, turn.error["error_type"]) == (
        "error",
        "error",
        "bundle_error",
    )


# --- followups ------------------------------------------------------------------------------------------------


async def test_a_followup_is_read_by_the_running_turn_where_its_bundle_asks(house: House) -> None:
    first = await house.say("first", bundle_id="asker")
    await house.until(lambda events: any(e["type"] == "chat.delta" for e in events))
    second = await house.say("second", conversation_id=first["conversation_id"])
    third = await house.say("last", conversation_id=first["conversation_id"], kind="followup")
    assert second["status"] == third["status"] == "followup_accepted"
    assert second["active_turn_id"] == first["turn_id"]
    assert second["queued_turn_id"] == second["turn_id"] != first["turn_id"]
    await house.ended(first["turn_id"])
    assert (await house.turn(first["turn_id"])).outcome["final_answer"] == "first +second +last"
    absorbed = await house.turn(second["turn_id"])
    assert (absorbed.status, absorbed.absorbed_by) == (Turn.Status.ABSORBED, first["turn_id"])
    assert await house.told(second["turn_id"]) == []
    assert (await house.told()).count("queue.followup_absorbed") == 2


async def test_a_followup_that_nobody_reads_becomes_its_own_turn_afterwards(house: House) -> None:
    first = await house.say("x", bundle_id="wait")
    await house.until(lambda events: any(e["type"] == "chat.delta" for e in events))
    second = await house.say("own turn", conversation_id=first["conversation_id"], bundle_id="echo")
    third = await house.say("and another", conversation_id=first["conversation_id"], bundle_id="echo")
    await house.say("", conversation_id=first["conversation_id"], kind="steer")
    await house.ended(first["turn_id"], second["turn_id"], third["turn_id"])
    order = [e["conversation"]["turn_id"] for e in await house.events() if e["type"] == "chat.complete"]
    assert order == [first["turn_id"], second["turn_id"], third["turn_id"]]


# --- stop and steer -------------------------------------------------------------------------------------------


async def test_stop_lets_a_bundle_wrap_up(house: House) -> None:
    ack = await house.say("x", bundle_id="wait")
    await house.until(lambda events: any(e["type"] == "chat.delta" for e in events))
    stop = await house.say("", conversation_id=ack["conversation_id"], kind="steer")
    await house.ended(ack["turn_id"])
    assert stop["status"] == "steer_accepted"
    assert (stop["turn_id"], stop["active_turn_id"], stop["queued_turn_id"]) == (
        ack["turn_id"],
        ack["turn_id"],
        None,
    )
    complete = (await house.events())[-2]["data"]
    assert complete == {"final_answer": "begun wrapped up", "stopped": True}
    assert (await house.turn(ack["turn_id"])).status == Turn.Status.STOPPED
    assert (await Message.objects.aget(role="assistant")).content == "begun wrapped up"


async def test_stop_cancels_a_bundle_that_does_not_listen(house: House) -> None:
    ack = await house.say("x", bundle_id="stubborn")
    await house.until(lambda events: any(e["type"] == "chat.delta" for e in events))
    for _ in range(2):
        again = await house.say(
            "", conversation_id=ack["conversation_id"], kind="steer", target_turn_id=ack["turn_id"]
        )
        assert again["status"] == "steer_accepted"
    await house.ended(ack["turn_id"])
    assert (await house.told())[-2:] == ["chat.complete", "idle success"]
    assert (await house.told()).count("chat.complete") == 1


async def test_steer_interrupts_and_runs_before_what_was_queued(house: House) -> None:
    first = await house.say("x", bundle_id="stubborn")
    await house.until(lambda events: any(e["type"] == "chat.delta" for e in events))
    queued = await house.say("queued", conversation_id=first["conversation_id"], bundle_id="echo")
    steer = await house.say(
        "steered", conversation_id=first["conversation_id"], kind="steer", bundle_id="echo"
    )
    assert steer["status"] == "steer_accepted"
    assert steer["queued_turn_id"] == steer["turn_id"]
    await house.ended(first["turn_id"], queued["turn_id"], steer["turn_id"])
    completes = [e for e in await house.events() if e["type"] == "chat.complete"]
    assert [e["conversation"]["turn_id"] for e in completes] == [
        first["turn_id"], steer["turn_id"], queued["turn_id"],
    ]  # fmt: skip
    assert completes[0]["data"]["steered"] is True
    assert "stopped" not in completes[1]["data"]


async def test_a_turn_that_is_stopped_before_it_starts_never_runs(quiet_house: House) -> None:
    ack = await quiet_house.say("never said")
    await quiet_house.say("", conversation_id=ack["conversation_id"], kind="steer")
    await quiet_house.start()
    await quiet_house.ended(ack["turn_id"])
    assert "chat.delta" not in await quiet_house.told()
    assert (await quiet_house.turn(ack["turn_id"])).status == Turn.Status.STOPPED


async def test_a_steer_with_nothing_to_steer_does_nothing(house: House) -> None:
    unknown = await house.say("x", conversation_id="nowhere", kind="steer")
    assert unknown["status"] == "active_turn_control_no_active_turn"
    assert await Conversation.objects.acount() == 0
    first = await house.say("one")
    await house.ended(first["turn_id"])
    idle = await house.say("", conversation_id=first["conversation_id"], kind="steer")
    assert idle["status"] == "active_turn_control_no_active_turn"
    assert await Turn.objects.acount() == 1


async def test_a_steer_aimed_at_another_turn_does_nothing(house: House) -> None:
    ack = await house.say("x", bundle_id="wait")
    await house.until(lambda events: any(e["type"] == "chat.delta" for e in events))
    missed = await house.say(
        "y", conversation_id=ack["conversation_id"], kind="steer", target_turn_id="turn_other"
    )
    assert missed["status"] == "active_turn_control_target_mismatch"
    assert missed["active_turn_id"] == ack["turn_id"]
    turn = await house.turn(ack["turn_id"])
    assert (turn.stop_requested_at, await Turn.objects.acount(), await Message.objects.acount()) == (
        None,
        1,
        1,
    )


# --- acceptance -----------------------------------------------------------------------------------------------


async def test_the_acknowledgement_has_one_key_set_whatever_the_outcome(house: House) -> None:
    first = await house.say("x", bundle_id="wait")
    await house.until(lambda events: any(e["type"] == "chat.delta" for e in events))
    conversation_id = first["conversation_id"]
    acks = [
        first,
        await house.say("f", conversation_id=conversation_id),
        await house.say("", conversation_id=conversation_id, kind="steer", target_turn_id="turn_other"),
        await house.say("", conversation_id=conversation_id, kind="steer"),
        await house.say("", conversation_id="other", kind="steer"),
    ]
    assert len({frozenset(ack) for ack in acks}) == 1
    gen2 = await house.say("f", conversation_id=conversation_id, generation=2)
    assert (gen2["status"], gen2["is_continuation"]) == ("external_event_accepted", True)
    assert set(gen2) - {"is_continuation"} == set(first) - {"message_kind"}


async def test_an_event_that_is_not_reactive_is_kept_and_starts_nothing(house: House) -> None:
    ack = await house.say("fyi", generation=2, reactive=False, external_events=[{"type": "custom"}])
    assert (ack["status"], ack["turn_id"], ack["is_continuation"]) == ("external_event_recorded", None, False)
    assert await Turn.objects.acount() == 0
    said = await house.say("now", conversation_id=ack["conversation_id"], bundle_id="clock")
    await house.ended(said["turn_id"])
    assert "event:fyi" in (await house.turn(said["turn_id"])).outcome["final_answer"]


async def test_an_idempotency_key_starts_one_turn_however_often_and_at_once(house: House) -> None:
    acks = await asyncio.gather(*(house.say("once", idempotency_key="k") for _ in range(5)))
    assert all(ack == acks[0] for ack in acks)
    await house.ended(acks[0]["turn_id"])
    assert await house.say("twice", idempotency_key="k") == acks[0]
    assert await Turn.objects.acount() == 1
    other = Caller("another", "another")
    assert (await house.say("mine", idempotency_key="k", caller=other))["turn_id"] != acks[0]["turn_id"]


async def test_another_users_conversation_is_forbidden_and_nothing_is_stored(house: House) -> None:
    await house.say("mine", conversation_id="c")
    stranger = Caller("stranger", "stranger")
    for kind in (None, "steer"):
        with pytest.raises(ConversationForbidden):
            await house.say("theirs", conversation_id="c", caller=stranger, kind=kind)
    assert await Message.objects.filter(content="theirs").acount() == 0
    elsewhere = await house.say("theirs", conversation_id="c", caller=stranger, tenant="other")
    assert elsewhere["conversation_created"] is True


async def test_an_unknown_bundle_is_refused_by_name(house: House) -> None:
    with pytest.raises(BundleUnknown, match="nobody"):
        await house.say("x", bundle_id="nobody")
    assert await Conversation.objects.acount() == 0


async def test_a_transaction_that_fails_leaves_no_file_behind(
    house: House, monkeypatch: pytest.MonkeyPatch, attachments_folder
) -> None:  # type: ignore[no-untyped-def]
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the last statement fails")

    monkeypatch.setattr(Submission.objects, "create", refuse)
    with pytest.raises(RuntimeError):
        await house.say("x", files=[IncomingFile("a.txt", "text/plain", b"x")], idempotency_key="k")
    assert not [path for path in attachments_folder.rglob("*") if path.is_file()]
    assert await Attachment.objects.acount() == await Turn.objects.acount() == 0


async def test_files_lie_under_names_that_nobody_chose(house: House) -> None:
    await house.say("x", files=[IncomingFile("../../evil.py", "text/plain", b"x")])
    kept = await Attachment.objects.aget()
    assert "evil" not in kept.path
    assert storages["attachments"].exists(kept.path)
    assert kept.filename == "../../evil.py"


def test_turn_ids_are_unique_and_well_formed_from_many_threads() -> None:
    with ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(lambda _: mint_turn_id(), range(2000)))
    assert len(set(ids)) == 2000
    assert all(re.fullmatch(r"turn_\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d-\d{3}", turn_id) for turn_id in ids)


async def test_a_taken_turn_id_is_minted_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await house.say("x")
    minted = iter([first["turn_id"], first["turn_id"], "turn_free"])
    monkeypatch.setattr(acceptance, "mint_turn_id", lambda: next(minted))
    assert (await house.say("y"))["turn_id"] == "turn_free"


# --- questions ------------------------------------------------------------------------------------------------


async def test_conversations_are_told_to_their_owner_only(house: House) -> None:
    ack = await house.say("What is this?", conversation_id="c")
    await house.ended(ack["turn_id"])
    mine = (house.session_id, "t", "p")
    status = await database_sync_to_async(conversation_status)(*mine, "c")
    assert status is not None
    assert (status["state"], status["current_turn_id"]) == ("idle", None)
    listed = await database_sync_to_async(list_conversations)(*mine)
    assert [row["title"] for row in listed] == ["What is this?"]
    fetched = await database_sync_to_async(fetch_conversation)(*mine, "c")
    assert fetched is not None
    assert [m["role"] for m in fetched["messages"]] == ["user", "assistant"]
    assert fetched["turns"][0]["completion"] == "success"
    for wrong in (("stranger", "t", "p"), (house.session_id, "other", "p"), (house.session_id, "t", "other")):
        assert await database_sync_to_async(conversation_status)(*wrong, "c") is None
        assert await database_sync_to_async(fetch_conversation)(*wrong, "c") is None
        assert await database_sync_to_async(list_conversations)(*wrong) == []


async def test_a_late_client_reads_the_turn_from_its_first_position(house: House) -> None:
    await house.ended((await house.say("before"))["turn_id"])
    ack = await house.say("one two three")
    await house.ended(ack["turn_id"])
    turn = await house.turn(ack["turn_id"])
    first = int(turn.first_position.split("-")[1])
    events = await house.events()
    assert [e["conversation"]["turn_id"] for e in events[first:]] == [ack["turn_id"]] * len(events[first:])
    assert events[first - 1]["conversation"]["turn_id"] != ack["turn_id"]


# --- many -----------------------------------------------------------------------------------------------------


async def test_64_turns_at_once_each_read_and_write_rows_after_their_post_has_answered(house: House) -> None:
    """Accepted as a Django view does it: synchronous code below async_to_sync, whose executor dies with it."""

    def view(number: int) -> str | None:
        async def accept_within() -> str | None:
            return (await house.say(f"m{number}", bundle_id="rows"))["turn_id"]

        return async_to_sync(accept_within)()

    with ThreadPoolExecutor(4) as threads:
        loop = asyncio.get_running_loop()
        turn_ids = await asyncio.gather(*(loop.run_in_executor(threads, view, n) for n in range(64)))
    await house.ended(*turn_ids, timeout=60)
    answers = [turn.outcome["final_answer"] async for turn in Turn.objects.filter(turn_id__in=turn_ids)]
    assert sorted(answers) == sorted(f"m{n}:6" for n in range(64))


async def test_more_turns_than_places_wait_for_one(quiet_house: House, settings) -> None:  # type: ignore[no-untyped-def]
    settings.COMM = {**settings.COMM, "TURN_CONCURRENCY": 2}
    runner = await quiet_house.start()
    waiting = [await quiet_house.say("x", bundle_id="wait") for _ in range(4)]
    await aeventually(lambda: runner.running == 2)
    for ack in waiting:
        await quiet_house.say("", conversation_id=ack["conversation_id"], kind="steer")
    await quiet_house.ended(*(ack["turn_id"] for ack in waiting))
