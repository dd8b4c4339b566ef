"""`manage.py prune_recordings`: delete old recorded envelopes."""

import argparse
import re
import sys
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils import timezone
from tqdm import tqdm

from comm.tenants import every_tenant
from recorder.pruning import Pruning, prune

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Command(BaseCommand):
    """Delete recorded envelopes by age, tenant and type, in small batches."""

    help = "Delete recorded envelopes that are older than --older-than; with --dry-run only count them."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare what is to go."""
        parser.add_argument("--older-than", type=_age, required=True, help="90d, 12h, 30m, 2w")
        parser.add_argument("--tenant", default="", help="only this tenant's")
        parser.add_argument("--type", default="", help="only this type, such as chat.delta")
        parser.add_argument("--dry-run", action="store_true", help="delete nothing, say how many would go")

    @every_tenant()
    def handle(self, *args: Any, **options: Any) -> None:
        """Delete, and say how many rows went."""
        pruning = Pruning(timezone.now() - options["older_than"], options["tenant"], options["type"])
        total = pruning.rows().count()
        if options["dry_run"]:
            self.stdout.write(f"{total} recorded envelopes would be deleted.")
            return
        deleted = 0
        with tqdm(total=total, unit="row", file=sys.stderr, disable=not sys.stderr.isatty()) as progress:
            for rows in prune(pruning):
                deleted += rows
                progress.update(rows)
        self.stdout.write(f"{deleted} recorded envelopes were deleted.")


def _age(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; write it as 90d, 12h, 30m or 2w")
    return timedelta(**{UNITS[match[2]]: int(match[1])})
