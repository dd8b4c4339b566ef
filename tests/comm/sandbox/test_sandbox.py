"""The sandbox, with real processes: what it may say, what it may not, and how it ends."""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comm import ChatCommunicator, IEventFilter
from comm.bundles import TurnAttachment, TurnContext, TurnMessage
from comm.bundles.demo import DemoBundle
from comm.sandbox import SandboxedBundle, SandboxFailed, run_in_sandbox
from comm.sandbox.checks import check_sandbox
from comm.sandbox.frames import FRAME_BYTES
from comm.sandbox.runners import BubblewrapRunner
from comm.turns.context import HistoryMessage, TurnScope
from tests.comm.listening import Listener
from tests.waiting import eventually

pytestmark = pytest.mark.wire
FUNCTIONS = "tests.comm.sandbox.functions"
MakeTurn = Callable[..., TurnContext]


@pytest.fixture
def make_turn(make_comm: Callable[..., ChatCommunicator]) -> MakeTurn:
    def make(text: str = "hi", *, attachments: Any = (), followups: Any = (), **comm: Any) -> TurnContext:
        scope = TurnScope(
            "turn-1", "conv-1", "session-1", "acme", "shop", "demo", "ada", "registered", "", 120
        )
        waiting = list(followups)

        async def absorb() -> TurnMessage | None:
            return waiting.pop(0) if waiting else None

        message = TurnMessage(text, "turn-1", attachments=attachments)
        return TurnContext(scope, message, [HistoryMessage("user", "before")], make_comm(**comm), absorb)

    return make


@pytest.fixture
def turn(make_turn: MakeTurn) -> TurnContext:
    return make_turn()


async def run(turn: TurnContext, name: str, *arguments: Any, **options: Any) -> Any:
    return await run_in_sandbox(turn, f"{FUNCTIONS}.{name}", *arguments, **options)


# --- speaking -----------------------------------------------------------------------------------------------


async def test_every_form_reaches_the_session_as_if_it_were_said_here(
    turn: TurnContext, listener: Listener
) -> None:
    result = await run(turn, "speak", "word ", 20)
    heard = await listener.until("chat.complete")
    assert [h.envelope["type"] for h in heard] == [
        "chat.start", "chat.step", *["chat.delta"] * 20, "chat.citations", "to.tab", "chat.complete"
    ]  # fmt: skip
    assert [h.target_sid for h in heard if h.envelope["type"] == "to.tab"] == ["tab-1"]
    assert heard[-1].envelope["data"]["final_answer"] == "word " * 20
    assert [h.envelope["idx"] for h in heard[2:22]] == list(range(20))
    assert {h.envelope["conversation"]["session_id"] for h in heard} == {"session-1"}
    assert result["pid"] != os.getpid()
    assert (result["text"], result["history"]) == ("hi", ["before"])
    # Both sides remember the same.
    assert result["answer"] == turn.communicator.final_answer == "word " * 20
    assert result["ended"] == turn.communicator.ended == "complete"
    assert result["positions"] == [
        str(turn.communicator.first_position),
        str(turn.communicator.last_position),
    ]


async def test_synchronous_code_speaks_too(turn: TurnContext, listener: Listener) -> None:
    assert await run(turn, "speak_in_step") == "done"
    assert [h.envelope["type"] for h in await listener.until("chat.delta")] == ["chat.step", "chat.delta"]


async def test_calls_that_are_made_at_once_keep_their_order(turn: TurnContext) -> None:
    await run(turn, "ask_many", 300)
    assert turn.communicator.final_answer == "".join(f"{n} " for n in range(300))


async def test_filters_are_asked_outside_and_the_recording_inside_sees_what_they_left(
    make_turn: MakeTurn,
) -> None:
    class NotBlocked(IEventFilter):
        pid = 0

        def allow_event(self, user_type: str, user_id: str, event: Any) -> bool:
            NotBlocked.pid = os.getpid()
            return bool(event.envelope.event.title != "Blocked")

    turn = make_turn(event_filter=NotBlocked())
    turn.communicator.record()
    items = await run(turn, "record")
    assert [(item["event"]["title"], item["recording"]["scopes"]) for item in items] == [
        ("Allowed", ["inside"])
    ]
    assert items[0]["position"]
    assert NotBlocked.pid == os.getpid()
    assert [item["type"] for item in turn.communicator.export_recorded_events()] == [
        "chat.step",
        "chat.delta",
    ]


async def test_a_sandbox_speaks_for_its_own_turn_whatever_it_claims(
    turn: TurnContext, listener: Listener
) -> None:
    stranger = await Listener.on_session("other-session")
    await run(turn, "forge")
    (heard,) = await listener.until("chat.step")
    assert heard.envelope["service"]["tenant"] == "acme"
    assert heard.envelope["service"]["user"] == "ada"
    assert heard.envelope["conversation"]["turn_id"] == "turn-1"
    await stranger.layer.send(
        stranger.channel, {"type": "end", "route": "end", "target_sid": None, "body": b"{}"}
    )
    assert (await stranger.next()).route == "end"


async def test_errors_of_the_communicator_are_raised_inside(turn: TurnContext) -> None:
    assert await run(turn, "bad_event") == "data.value"


async def test_files_followups_and_the_stop_reach_inside(
    make_turn: MakeTurn, tmp_path: Path, settings: Any
) -> None:
    backend = "django.core.files.storage.FileSystemStorage"
    settings.STORAGES = {
        **settings.STORAGES,
        "attachments": {"BACKEND": backend, "OPTIONS": {"location": tmp_path}},
    }
    (tmp_path / "large").write_bytes(b"abcd" * 500_000)
    file = TurnAttachment("id-1", "large.txt", "text/plain", 2_000_000, "large")
    gone = TurnAttachment("id-2", "gone.txt", "text/plain", 5, "gone")
    assert await run(make_turn(attachments=[file]), "read_files") == [
        ["large.txt", "text/plain", 2_000_000, b"abcd"]
    ]
    with pytest.raises(SandboxFailed, match="No such file"):
        await run(make_turn(attachments=[gone]), "read_files")
    assert await run(make_turn(followups=[TurnMessage("more", "turn-2")]), "followup") == "more"
    turn = make_turn()
    running = asyncio.create_task(run(turn, "until_stopped"))
    while turn.communicator.last_position is None:
        await asyncio.sleep(0.01)
    turn.ring_stop(steered=False)
    await asyncio.wait_for(running, 5)
    assert turn.communicator.final_answer == "wrapped up"


async def test_a_whole_bundle_runs_apart(turn: TurnContext) -> None:
    await SandboxedBundle(f"{FUNCTIONS}.Untrusted").run(turn)
    assert turn.communicator.final_answer == "You said hi"


# --- ending -------------------------------------------------------------------------------------------------


def alive(folder: Path) -> list[int]:
    pids = [int(path.name.removeprefix("left-")) for path in folder.glob("left-*")]
    return [
        pid
        for pid in pids
        if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@pytest.mark.parametrize("how", ["timeout", "cancel"])
async def test_the_end_takes_everything_along_that_it_started(
    turn: TurnContext, tmp_path: Path, how: str
) -> None:
    marker = str(tmp_path / "left-")
    running = asyncio.create_task(run(turn, "hang", marker, timeout_seconds=6 if how == "timeout" else 60))
    while turn.communicator.last_position is None and not running.done():
        await asyncio.sleep(0.02)
    assert len(alive(tmp_path)) == 3
    if how == "cancel":
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    else:
        with pytest.raises(SandboxFailed, match="took over 6 seconds"):
            await running
    eventually(lambda: alive(tmp_path) == [], what="the end of all three")


async def test_nothing_of_a_run_stays_behind(
    turn: TurnContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = len(asyncio.all_tasks())
    for _ in range(2):
        await run(turn, "speak_in_step")
    assert list(tmp_path.iterdir()) == []
    assert len(asyncio.all_tasks()) == before


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("raise_error", "ValueError: what went wrong"),
        ("leave", "ended without a result; its output: last words"),
        ("eat_memory", "MemoryError"),
        ("return_nothing_plain", "TypeError"),
        ("unknown", "AttributeError"),
    ],
)
async def test_a_failure_inside_is_an_error_outside(turn: TurnContext, name: str, sentence: str) -> None:
    with pytest.raises(SandboxFailed, match=sentence):
        await run(turn, name)


async def test_a_loop_without_end_is_ended_by_the_limit_of_its_processor_time(turn: TurnContext) -> None:
    with (
        override_settings(SANDBOX={"CPU_SECONDS": 3}),
        pytest.raises(SandboxFailed, match="without a result"),
    ):
        await run(turn, "burn")


async def test_what_is_too_much_is_ended(turn: TurnContext) -> None:
    with override_settings(SANDBOX={"EVENTS": 10}), pytest.raises(SandboxFailed, match="more than 10 events"):
        await run(turn, "ask_many", 20)


async def test_a_sandbox_that_never_connects_is_given_up(turn: TurnContext) -> None:
    with (
        override_settings(SANDBOX={"START_SECONDS": 0.01}),
        pytest.raises(SandboxFailed, match="did not connect"),
    ):
        await run(turn, "speak_in_step")


# --- the socket ---------------------------------------------------------------------------------------------


async def test_the_environment_holds_no_secrets(turn: TurnContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "top-secret")
    monkeypatch.setenv("DATABASE_URL", "postgres://user:password@host/name")
    monkeypatch.setenv("LLM_API_KEY", "key")
    found = await run(turn, "environment")
    assert not {"SECRET_KEY", "DATABASE_URL", "LLM_API_KEY", "SANDBOX_TOKEN"} & set(found)
    assert "top-secret" not in str(found)


async def test_nobody_else_gets_in(
    turn: TurnContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This very process knows the socket's place, and is still no child of its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    running = asyncio.create_task(run(turn, "until_stopped"))
    folder = await asyncio.to_thread(eventually, lambda: list(tmp_path.glob("sandbox-*/supervisor.sock")))
    assert folder[0].parent.stat().st_mode & 0o077 == 0
    for _ in range(20):
        try:
            reader, writer = await asyncio.open_unix_connection(folder[0])
        except OSError:
            break
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
    while turn.communicator.last_position is None:
        await asyncio.sleep(0.01)
    turn.ring_stop(steered=False)
    await asyncio.wait_for(running, 5)


async def test_who_has_not_the_token_gets_nothing_either(turn: TurnContext) -> None:
    with pytest.raises(SandboxFailed, match="had not its token"):
        await run(turn, "speak_in_step", runner=f"{FUNCTIONS}.WrongToken")
    assert turn.communicator.last_position is None


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\xff\xff\xff\xff", "too large"),
        ((FRAME_BYTES + 1).to_bytes(4, "big"), "too large"),
        (b"\0\0\0\x01\xc1", "not a map"),
        (b"\0\0\0\x01\x01", "not a map"),
    ],
)
async def test_what_is_no_frame_ends_the_sandbox(turn: TurnContext, data: bytes, sentence: str) -> None:
    with pytest.raises(SandboxFailed, match=sentence):
        await run(turn, "write_raw", data)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"kind": "nonsense", "number": 1}, "there is no 'nonsense'"),
        ({}, "there is no"),
        ({"kind": "emit", "number": 1}, "without its envelope"),
        ({"kind": "emit", "number": 1, "envelope": b"{}"}, "no envelope"),
        ({"kind": "emit", "number": 1, "envelope": "text"}, "without its envelope"),
        ({"kind": "read", "number": 1, "file": 0, "offset": 0}, "the turn has not"),
        ({"kind": "read", "number": 1, "file": -1, "offset": 0}, "the turn has not"),
    ],
)
async def test_a_request_that_makes_no_sense_ends_the_sandbox(
    turn: TurnContext, message: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SandboxFailed, match=sentence):
        await run(turn, "send_frame", message)
    assert turn.communicator.last_position is None


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=4, max_size=64))
async def test_garbage_ends_the_sandbox_and_nothing_else(make_turn: MakeTurn, garbage: bytes) -> None:
    with pytest.raises(SandboxFailed):
        await run(make_turn(), "write_raw", garbage, timeout_seconds=4)


# --- runners ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "id"),
    [
        ({"DEMO_SANDBOX": "no.such.Runner"}, "comm.E011"),
        ({"SANDBOX": {"RUNNER": "nothing"}}, "comm.E011"),
        ({"SANDBOX": {"SPEED": 1}}, "comm.E010"),
    ],
)
def test_a_wrong_setting_is_told_at_start(changes: dict[str, Any], id: str) -> None:
    with override_settings(**changes):
        assert [message.id for message in check_sandbox()] == [id]
    assert check_sandbox() == []


async def test_an_unknown_runner_is_named(turn: TurnContext) -> None:
    with pytest.raises(ImportError):
        await run(turn, "speak_in_step", runner="no.such.Runner")


async def test_bubblewrap_shuts_off_the_network_and_the_file_system_where_it_can_run(
    turn: TurnContext, tmp_path: Path
) -> None:
    """Where it cannot (containers forbid its namespaces), that is said before anything is started."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        if problem := BubblewrapRunner().problem():
            with pytest.raises(SandboxFailed, match="bubblewrap cannot be used"):
                await run(turn, "reach_out", port, runner="bubblewrap")
            assert "bwrap" in problem
            return
        assert await run(turn, "reach_out", port, runner="subprocess") == "connected"
        assert await run(turn, "reach_out", port, runner="bubblewrap") != "connected"
    assert await run(turn, "write_file", str(tmp_path / "x"), runner="bubblewrap") != "written"
    assert (await run(turn, "speak", "word ", 3, runner="bubblewrap"))["answer"] == "word " * 3
    began = time.monotonic()
    with pytest.raises(SandboxFailed):
        await run(turn, "burn", runner="bubblewrap", timeout_seconds=3)
    assert time.monotonic() - began < 10


async def test_the_demo_bundle_profiles_files_in_the_sandbox_when_it_is_told_to(
    make_turn: MakeTurn, tmp_path: Path, settings: Any, listener: Listener
) -> None:
    backend = "django.core.files.storage.FileSystemStorage"
    settings.STORAGES = {
        **settings.STORAGES,
        "attachments": {"BACKEND": backend, "OPTIONS": {"location": tmp_path}},
    }
    settings.DEMO_SANDBOX = "subprocess"
    (tmp_path / "a").write_bytes(b"region,price\nNorth,1\nSouth,2\n")
    turn = make_turn("Look", attachments=[TurnAttachment("id", "a.csv", "text/csv", 28, "a")])
    turn.message.config["pace_ms"] = 0
    await DemoBundle().run(turn)
    titles = {step["title"]: step["status"] for step in turn.communicator.steps}
    assert titles["Profiling a.csv in the sandbox"] == "completed"
