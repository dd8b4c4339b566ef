"""`manage.py replay`: print recorded envelopes as they were."""

import argparse
import contextlib
import os
import sys
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from tqdm import tqdm

from comm.tenants import every_tenant
from recorder.models import ReplayRequest
from recorder.replay import Recording, as_jsonl, as_sse, paced
from recorder.requests import ReplayNotTaken, watch, withdraw
from recorder.selection import Bound, Selection
from recorder.transcript import Transcript

SPEEDS = "1 as it was, 10 ten times as fast, 0 at once"
TARGETS = "jsonl, sse, text, stream:<stream_id>, session:<session_id>"
NOTHING = "Nothing is recorded that fits; check the ids, and the times, which are UTC unless given."
INTERRUPTED = 130
"""What a shell reports for a program that Ctrl-C ended."""


class Command(BaseCommand):
    """Select recorded envelopes and write them to standard output, in order."""

    help = "Replay recorded envelopes: of a session, a conversation or a turn, as they were emitted."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare what can be selected, how fast it runs and what is written."""
        parser.add_argument("--session", default="", help="session id")
        parser.add_argument("--conversation", default="", help="conversation id")
        parser.add_argument("--turn", default="", help="turn id")
        parser.add_argument("--since", type=_moment, help="from this time on: 2026-02-26T21:14:05Z, or a day")
        parser.add_argument("--until", type=_moment, help="up to this time; a day means its beginning")
        parser.add_argument("--from-seq", type=_bound, help="from this position on: 42, or 1772140445267-42")
        parser.add_argument("--to-seq", type=_bound, help="up to this position, and with it")
        parser.add_argument("--speed", type=_speed, default=1.0, help=SPEEDS)
        parser.add_argument(
            "--to", type=_target, default=Target("text"),
            help=f"what to write, or where to show it: {TARGETS}",
        )  # fmt: skip

    @every_tenant()
    def handle(self, *args: Any, **options: Any) -> None:
        """Write the selected envelopes; nothing found is an error."""
        selection = Selection(
            session_id=options["session"],
            conversation_id=options["conversation"],
            turn_id=options["turn"],
            since=options["since"],
            until=options["until"],
            first=options["from_seq"],
            last=options["to_seq"],
        )
        recording = Recording(selection.rows())
        if not recording:
            raise CommandError(NOTHING)
        target: Target = options["to"]
        try:
            if target.is_open_stream:
                self._show(selection, target, options["speed"], len(recording))
            else:
                self._print(recording, target.form, options["speed"])
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            # The reader (head, less) has seen enough; what Python flushes at its end has to go somewhere.
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _show(self, selection: Selection, target: "Target", speed: float, count: int) -> None:
        """Hand the replay to the serving process, and wait until it has been shown."""
        request = ReplayRequest.objects.create(
            stream_id=target.stream_id,
            session_id=target.session_id,
            selection=selection.as_json(),
            speed=speed,
            total=count,
            requested_by="manage.py replay",
        )
        try:
            with _progress(count, target.form) as progress:
                for shown in watch(request):
                    progress.update(shown - progress.n)
        except KeyboardInterrupt:
            withdraw(request)
            raise CommandError("Withdrawn; what the server has begun to show it shows to the end.") from None
        except ReplayNotTaken as error:
            raise CommandError(str(error)) from error
        self.stderr.write(f"Shown: {request.shown} events.")

    def _print(self, recording: Recording, form: str, speed: float) -> None:
        text = Transcript()
        writers = {"jsonl": as_jsonl, "sse": as_sse, "text": text.add}
        # At once, a flush for each of a million lines would take most of the time.
        at_pace = speed > 0 or self.stdout.isatty()
        with _progress(len(recording), form) as progress:
            for row in paced(recording, speed):
                self._write(writers[form](row), progress, flush=at_pace)
                progress.update()
            self._write(text.end(), progress, flush=True)

    def _write(self, text: str, progress: "tqdm[Any]", *, flush: bool) -> None:
        # On a terminal where the replay is written too, the bar makes room.
        aside = progress.external_write_mode(file=sys.stdout)
        with contextlib.nullcontext() if progress.disable else aside:
            self.stdout.write(text, ending="")
            if flush:
                self.stdout.flush()


class Target(NamedTuple):
    """Where a replay goes: to standard output in a form, or to open streams."""

    form: str
    stream_id: str = ""
    session_id: str = ""

    @property
    def is_open_stream(self) -> bool:
        """Whether the serving process shows it."""
        return self.form in ("stream", "session")


def _target(text: str) -> Target:
    form, _, name = text.partition(":")
    if form in ("jsonl", "sse", "text") and not name:
        return Target(form)
    if form in ("stream", "session") and name:
        return Target(form, **{f"{form}_id": name})
    raise argparse.ArgumentTypeError(f"{text!r} is none of {TARGETS}")


def _progress(count: int, form: str) -> "tqdm[Any]":
    # Text runs on in its line, where a bar would cut it; on a terminal it shows the progress by itself.
    hidden = not sys.stderr.isatty() or (form == "text" and sys.stdout.isatty())
    return tqdm(total=count, unit="event", file=sys.stderr, disable=hidden)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        # The year 1 in a zone east of Greenwich began before any year that there is.
        return moment.astimezone(UTC) if timezone.is_aware(moment) else timezone.make_aware(moment)
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 2026-02-26T21:14:05Z") from error


def _bound(text: str) -> Bound:
    try:
        return Bound.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = -1.0
    if not 0 <= speed < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no speed: {SPEEDS}")
    return speed
