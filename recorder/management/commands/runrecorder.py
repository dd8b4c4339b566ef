"""`manage.py runrecorder`: record what the processes of a fleet publish."""

import signal
import sys
import threading
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from redis import RedisError

from comm.exceptions import WallDown
from comm.recorder_stream import StreamKeys
from recorder.conf import recorder_settings
from recorder.postgres import bound_connection
from recorder.process import RecorderProcess
from recorder.store import Lag, connect, lag_of

NO_STORE = (
    "Without REDIS_URL every server records for itself, and there is nothing for a recorder process to read. "
    "Set REDIS_URL (and DATABASE_URL) as the web processes have it."
)


class Command(BaseCommand):
    """Record until SIGTERM or SIGINT; with --status, tell how far the recording is behind."""

    help = "Write what the channel layer leaves in the recorder stream into the database; several may run."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the two ways to ask how it goes."""
        parser.add_argument(
            "--status", action="store_true", help="tell how far the recording is behind, and end"
        )
        parser.add_argument(
            "--max-lag-seconds", type=float, default=None,
            help="with --status: exit with 1 when the oldest envelope has waited for longer",
        )  # fmt: skip

    def handle(self, *args: Any, **options: Any) -> None:
        """Record, or tell."""
        conf = recorder_settings()
        if not conf.REDIS_URL:
            raise CommandError(NO_STORE)
        if options["status"]:
            self._tell(options["max_lag_seconds"])
            return
        stop = threading.Event()
        _stop_on_signals(stop)
        bound_connection()
        try:
            RecorderProcess(stop, url=conf.REDIS_URL, prefix=conf.REDIS_PREFIX).run()
        except WallDown as error:
            raise CommandError(f"The recorder cannot start. {error}") from error

    def _tell(self, most_seconds: float | None) -> None:
        conf = recorder_settings()
        try:
            with connect(conf.REDIS_URL) as client:
                lag = lag_of(client, StreamKeys.of(conf.REDIS_PREFIX))
        except (RedisError, OSError) as error:
            raise CommandError(f"The store does not answer: {error}") from error
        self.stdout.write(_described(lag))
        if most_seconds is not None and lag.seconds > most_seconds:
            self.stderr.write(f"The recording is {lag.seconds} s behind, more than {most_seconds} s.")
            sys.exit(1)


def _described(lag: Lag) -> str:
    lines = [
        f"waiting   {lag.waiting} envelopes, {lag.held_bytes} bytes",
        f"oldest    {lag.seconds} s",
        f"gaps      of {lag.gaps} sessions or projects, not written down yet",
        f"recorders {len(lag.consumers)}",
    ]
    for consumer in lag.consumers:
        lines.append(f"  {consumer.name}: {consumer.pending} in hand, asked {consumer.idle_ms} ms ago")
    return "\n".join(lines)


def _stop_on_signals(stop: threading.Event) -> None:
    """Let the first SIGTERM or SIGINT end the work in hand, and a second one end the process at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
