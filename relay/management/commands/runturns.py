"""`manage.py runturns`: a worker, which runs the turns that web processes accept."""

from argparse import ArgumentParser
from typing import Any

import uvloop
from django.core.management.base import BaseCommand, CommandError

from comm.processes import living
from relay.worker import ROLE, Worker, WorkerCannotStart, beats_folder


class Command(BaseCommand):
    """Runs turns until SIGTERM or SIGINT, in this process."""

    help = "Run turns for the web processes, until SIGTERM. With --check: tell whether a worker lives on this host."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take --check."""
        parser.add_argument(
            "--check",
            action="store_true",
            help="exit with 0 when a worker on this host has shown a sign of life in the last seconds, else with 1",
        )

    def handle(self, *args: Any, check: bool, **options: Any) -> None:
        """Work, or look whether somebody does."""
        if check:
            self._check()
            return
        try:
            uvloop.run(Worker().run())
        except WorkerCannotStart as error:
            raise CommandError(f"The worker cannot start. {error}") from error

    def _check(self) -> None:
        beats = living(beats_folder(), ROLE)
        if not beats:
            raise CommandError("No worker lives on this host.")
        for beat in beats:
            state = "draining" if beat["draining"] else "working"
            self.stdout.write(f"worker {beat['pid']}: {state}, {beat['turns']} turns")
