"""`manage.py replay`: the rows that were asked for, as they were, at the pace that was asked for."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from comm.sinks import Published
from recorder import replay as replaying
from recorder.models import RecordedEnvelope
from recorder.replay import Recording, paced
from recorder.rows import write_rows
from tests.recorder.publishing import EPOCH, published

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).resolve().parent.parent.parent
Replay = Callable[..., list[dict[str, Any]]]


def record(*offered: Published) -> None:
    assert write_rows(offered, []) == []


def printed(*arguments: str) -> str:
    out = io.StringIO()
    call_command("replay", *arguments, stdout=out)
    return out.getvalue()


def replayed(*arguments: str) -> list[str]:
    """The ids that a replay at once prints, in its order."""
    lines = printed(*arguments, "--speed", "0", "--to", "jsonl").split("\n")
    assert lines.pop() == ""
    return [str(json.loads(line)["id"]) for line in lines]


def ids(*seqs: int, epoch: int = EPOCH) -> list[str]:
    return [f"{epoch}-{seq}" for seq in seqs]


def test_a_line_is_the_relay_message_with_the_envelope_to_the_byte() -> None:
    offered = published(1, target_sid="tab-1", data={"number": 1e100, "big": 2**80, "text": "ü\u2028\n"})
    record(offered, published(None, type="chat.service", after_ms=2))
    lines = printed("--session", "session-1", "--speed", "0", "--to", "jsonl").split("\n")
    assert lines[0].encode() == (
        b'{"id":"%d-1","target_sid":"tab-1","session_id":"session-1","event":"chat_delta","data":%s,'
        b'"timestamp":"2026-02-26T21:14:05.268Z"}' % (EPOCH, offered.body)
    )
    assert json.loads(lines[1])["id"] is None
    assert json.loads(lines[1])["target_sid"] is None


def test_sse_frames_are_what_the_client_got() -> None:
    offered = [published(1, text="a\nb"), published(None, type="chat.service", after_ms=2)]
    record(*offered)
    assert printed("--session", "session-1", "--speed", "0", "--to", "sse") == (
        f"id: {EPOCH}-1\nevent: chat_delta\ndata: {offered[0].body.decode()}\n\n"
        f"event: chat_service\ndata: {offered[1].body.decode()}\n\n"
    )


def test_text_is_the_default_form() -> None:
    record(published(1, text="Hello "), published(2, text="there"))
    assert printed("--turn", "turn-1", "--speed", "0").endswith("[answer]\nHello there\n")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--session", "session-1"], [1, 2, 3, 4]),
        (["--conversation", "conversation-2"], [3, 4]),
        (["--turn", "turn-2"], [2, 3]),
        (["--turn", "turn-2", "--conversation", "conversation-2"], [3]),
        (["--session", "session-1", "--from-seq", "3"], [3, 4]),
        (["--session", "session-1", "--to-seq", "2"], [1, 2]),
        (["--session", "session-1", "--from-seq", f"{EPOCH}-2", "--to-seq", f"{EPOCH}-3"], [2, 3]),
        (["--session", "session-1", "--from-seq", "1-9"], [1, 2, 3, 4]),
        (["--session", "session-1", "--since", "2026-02-26T21:14:05.269Z"], [2, 3, 4]),
        (["--session", "session-1", "--since", "2026-02-26T22:14:05.270+01:00"], [3, 4]),
        (["--session", "session-1", "--until", "2026-02-26T21:14:05.269"], [1, 2]),
        (["--session", "session-1", "--since", "2026-02-26", "--until", "2026-02-27"], [1, 2, 3, 4]),
    ],
)
def test_options_select_what_is_replayed(arguments: list[str], found: list[int]) -> None:
    record(
        published(1),
        published(2, turn_id="turn-2"),
        published(3, turn_id="turn-2", conversation_id="conversation-2"),
        published(4, conversation_id="conversation-2"),
        published(1, epoch=EPOCH - 86_400_000, session_id="older", turn_id="t", conversation_id="c"),
    )
    assert replayed(*arguments) == ids(*found)


def test_a_sequence_number_alone_is_meant_in_every_epoch_and_a_position_in_its_own() -> None:
    record(*(published(seq, epoch=epoch) for epoch in (EPOCH, EPOCH + 1000) for seq in (1, 2, 3)))
    session = ("--session", "session-1")
    assert replayed(*session, "--from-seq", "3") == [*ids(3), *ids(3, epoch=EPOCH + 1000)]
    assert replayed(*session, "--from-seq", f"{EPOCH}-3") == [*ids(3), *ids(1, 2, 3, epoch=EPOCH + 1000)]
    assert replayed(*session, "--to-seq", f"{EPOCH + 1000}-1") == [*ids(1, 2, 3), *ids(1, epoch=EPOCH + 1000)]


def test_a_session_is_replayed_by_position_whatever_the_rows_and_clocks_say() -> None:
    record(published(3), published(1), published(4, after_ms=2), published(2, after_ms=9))
    assert replayed("--session", "session-1") == ids(1, 2, 3, 4)


def test_sessions_are_replayed_side_by_side() -> None:
    later = EPOCH + 20
    record(
        *(published(seq, after_ms=seq * 10) for seq in (1, 2, 3, 4)),
        *(published(seq, after_ms=seq * 10 - 5, epoch=later, session_id="session-2") for seq in (1, 2)),
    )
    assert replayed("--since", "2026-02-26") == [
        *ids(1, 2), *ids(1, epoch=later), *ids(3), *ids(2, epoch=later), *ids(4),
    ]  # fmt: skip


def test_project_events_stand_where_their_time_puts_them() -> None:
    record(
        published(1, after_ms=10),
        published(2, after_ms=20),
        published(None, type="chat.service", after_ms=15),
        published(None, type="chat.service", after_ms=5),
    )
    assert replayed("--turn", "turn-1") == ["None", *ids(1), "None", *ids(2)]


def test_nothing_found_is_an_error_with_a_sentence() -> None:
    record(published(1))
    with pytest.raises(CommandError, match="Nothing is recorded that fits") as refused:
        printed("--turn", "turn-9")
    assert refused.value.returncode == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--since", "yesterday"),
        ("--since", "2026-13-01"),
        ("--until", "2026-02-26T25:00:00Z"),
        ("--since", "0001-01-01T00:00:00+14:00"),
        ("--from-seq", "-1"),
        ("--from-seq", "1-2-3"),
        ("--to-seq", "last"),
        ("--speed", "-1"),
        ("--speed", "nan"),
        ("--speed", "inf"),
        ("--speed", "fast"),
        ("--to", "xml"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(option: str, value: str) -> None:
    record(published(1))
    with pytest.raises(CommandError) as refused:
        printed(f"{option}={value}")
    assert option in str(refused.value)
    assert value in str(refused.value)


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.seconds += seconds


@pytest.mark.parametrize(
    ("speed", "slept"), [(1.0, [0.25, 1.75]), (10.0, [0.025, 0.175]), (0.5, [0.5, 3.5]), (0.0, [])]
)
def test_the_pace_is_what_it_was_times_the_speed(speed: float, slept: list[float]) -> None:
    record(published(1, after_ms=0), published(2, after_ms=250), published(3, after_ms=2000))
    clock = Clock()
    rows = paced(Recording(RecordedEnvelope.objects.all()), speed, sleep=clock.sleep, now=clock.now)
    assert [row.seq for row in rows] == [1, 2, 3]
    assert clock.slept == slept


def test_time_that_writing_takes_does_not_add_up() -> None:
    record(published(1, after_ms=0), published(2, after_ms=1000), published(3, after_ms=2000))
    clock = Clock()
    for row in paced(Recording(RecordedEnvelope.objects.all()), 1.0, sleep=clock.sleep, now=clock.now):
        clock.seconds += {1: 0.4, 2: 1.5, 3: 0.0}[row.seq or 0]
    assert clock.slept == [0.6]


def test_rows_are_read_in_chunks_and_pruned_ones_left_out(
    monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    monkeypatch.setattr(replaying, "CHUNK_ROWS", 10)
    record(*(published(seq) for seq in range(1, 36)))
    recording = Recording(RecordedEnvelope.objects.all())
    RecordedEnvelope.objects.filter(seq=17).delete()
    assert len(recording) == 35
    with django_assert_num_queries(4):
        assert [row.seq for row in recording] == [*range(1, 17), *range(18, 36)]


# --- as a process ---------------------------------------------------------------------------------


@pytest.fixture
def environment() -> dict[str, str]:
    """The environment of a command that works on the tests' database."""
    name = connection.settings_dict["NAME"]
    if connection.vendor == "sqlite":
        url = f"sqlite:///{name}"
    else:
        url = os.environ["DATABASE_URL"].rpartition("/")[0] + f"/{name}"
    return {**os.environ, "DATABASE_URL": url}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "manage.py", "replay", *arguments]


@pytest.mark.django_db(transaction=True)
def test_a_reader_that_has_seen_enough_ends_it_quietly(environment: dict[str, str]) -> None:
    record(*(published(seq, text="x" * 1000) for seq in range(1, 1001)))
    line = " ".join([*command("--session", "session-1", "--speed", "0", "--to", "jsonl"), "| head -n 1"])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert json.loads(done.stdout)["id"] == f"{EPOCH}-1"
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.django_db(transaction=True)
def test_ctrl_c_ends_it_quietly(environment: dict[str, str]) -> None:
    record(published(1), published(2, after_ms=3_600_000))
    with subprocess.Popen(
        command("--session", "session-1", "--to", "jsonl"),
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell's background job is started deaf to it, and so would its children be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["id"] == f"{EPOCH}-1"
        process.send_signal(signal.SIGINT)
        try:
            rest, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (rest, errors, process.returncode) == ("", "", 130)


@pytest.mark.django_db(transaction=True)
def test_nothing_found_is_exit_1_and_a_sentence_on_stderr(environment: dict[str, str]) -> None:
    done = subprocess.run(
        command("--turn", "turn-9"), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "Nothing is recorded that fits" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_terminal_shows_the_progress_and_a_pipe_does_not(
    environment: dict[str, str], on_terminal: bool, tmp_path: Path
) -> None:
    record(*(published(seq) for seq in range(1, 51)))
    arguments = command("--session", "session-1", "--speed", "0", "--to", "jsonl")
    lines = tmp_path / "lines.jsonl"
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    try:
        with lines.open("wb") as out:
            done = subprocess.run(
                arguments, cwd=ROOT, env=environment, stdout=out, timeout=60,
                stderr=theirs if on_terminal else subprocess.PIPE,
            )  # fmt: skip
        os.close(theirs)
        shown = _read_to_the_end(ours) if on_terminal else done.stderr
    finally:
        os.close(ours)
    assert done.returncode == 0
    assert len(lines.read_text().splitlines()) == 50
    assert (b"50/50" in shown) is on_terminal
    assert on_terminal or shown == b""


def _read_to_the_end(terminal: int) -> bytes:
    shown = b""
    try:
        while part := os.read(terminal, 65536):
            shown += part
    except OSError:
        # Linux says EIO where the other end of a terminal is closed.
        pass
    return shown
