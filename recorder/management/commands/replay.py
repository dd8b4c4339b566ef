"""`manage.py replay`: print recorded envelopes as they were."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NamedTuple

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime
from tqdm import tqdm

from recorder.models import RecordedEnvelope, ReplayRequest
from recorder.replay import TextWriter, as_jsonl, as_sse, paced
from recorder.requests import ReplayNotTaken, watch, withdraw
from recorder.selection import Bound, Selection

CHUNK_ROWS = 500


class Command(BaseCommand):
    """Select recorded envelopes and write them to standard output, in order."""

    help = "Replay recorded envelopes: of a session, a conversation or a turn, as they were emitted."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare what can be selected, how fast it runs and what is written."""
        parser.add_argument("--session", default="", help="session id")
        parser.add_argument("--conversation", default="", help="conversation id")
        parser.add_argument("--turn", default="", help="turn id")
        parser.add_argument("--since", type=_moment, help="from this time on: 2026-02-26 or 2026-02-26T21:14:05Z")
        parser.add_argument("--until", type=_moment, help="up to this time")
        parser.add_argument("--from-seq", type=_bound, help="from this position on: 42, or 1772140445267-42")
        parser.add_argument("--to-seq", type=_bound, help="up to this position")
        parser.add_argument("--speed", type=_speed, default=1.0, help="1 as it was, 10 ten times as fast, 0 at once")
        parser.add_argument(
            "--to", type=_target, default=Target("text"),
            help="what to write (jsonl, sse, text), or where to show it: stream:<stream_id>, session:<session_id>",
        )  # fmt: skip

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
        count = selection.rows().count()
        if not count:
            raise CommandError("Nothing is recorded that fits; check the ids, and the times, which are UTC unless given.")
        target: Target = options["to"]
        if target.is_open_stream:
            self._show(selection, target, options["speed"], count)
            return
        rows = paced(selection.rows().iterator(chunk_size=CHUNK_ROWS), options["speed"])
        try:
            self._write(rows, count, target.form)
        except KeyboardInterrupt:
            self.stdout.write("")
        except BrokenPipeError:
            # The reader (head, less) has seen enough; nothing can be written any more.
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

    def _write(self, rows: Iterable[RecordedEnvelope], count: int, form: str) -> None:
        text = TextWriter()
        writers: dict[str, Callable[[RecordedEnvelope], str]] = {"jsonl": as_jsonl, "sse": as_sse, "text": text}
        with _progress(count, form) as progress:
            for row in rows:
                with progress.external_write_mode(file=sys.stdout):
                    self.stdout.write(writers[form](row), ending="")
                    self.stdout.flush()
                progress.update()
            self.stdout.write(text.close(), ending="")


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
    raise argparse.ArgumentTypeError(f"{text!r} is none of jsonl, sse, text, stream:<stream_id>, session:<session_id>")


def _progress(count: int, form: str) -> "tqdm[Any]":
    # Text runs on in its line, where a bar would cut it; on a terminal it shows the progress by itself.
    hidden = not sys.stderr.isatty() or (form == "text" and sys.stdout.isatty())
    return tqdm(total=count, unit="event", file=sys.stderr, disable=hidden)


def _moment(text: str) -> datetime:
    try:
        day = parse_date(text)
        moment = datetime(day.year, day.month, day.day) if day else parse_datetime(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: {error}") from error
    if moment is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 2026-02-26T21:14:05Z")
    return moment if timezone.is_aware(moment) else timezone.make_aware(moment)


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
        raise argparse.ArgumentTypeError(f"{text!r} is no speed; 1 is as it was, 10 ten times as fast, 0 at once")
    return speed
