"""manage.py prune_attachments: remove stored files that belong to no message."""

from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils import timezone

from comm.models import Attachment
from comm.tenants import every_tenant
from comm.turns.files import remove_files, stored_before

OLDER_THAN_HOURS = 1.0
"""A file is written before its row commits: a young one may be on its way."""


class Command(BaseCommand):
    """Finds what a process left behind that died between writing a file and committing its row."""

    help = "Remove stored attachments that belong to no message."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take an age and a dry run."""
        parser.add_argument("--older-than-hours", type=float, default=OLDER_THAN_HOURS)
        parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")

    @every_tenant()
    def handle(self, *args: Any, **options: Any) -> None:
        """Remove them, and say how many."""
        before = timezone.now() - timedelta(hours=max(0.0, options["older_than_hours"]))
        orphans = [
            name for name in stored_before(before) if not Attachment.objects.filter(path=name).exists()
        ]
        if not options["dry_run"]:
            remove_files(orphans)
        verb = "would be removed" if options["dry_run"] else "removed"
        self.stdout.write(f"{len(orphans)} files {verb}.")
