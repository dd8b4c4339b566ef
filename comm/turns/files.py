"""Keeping the files of messages: written before the rows commit, removed when they don't."""

import logging
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from django.core.files.base import ContentFile, File
from django.core.files.storage import Storage, storages
from django.db import transaction
from django.db.models.signals import post_delete
from django.dispatch import receiver

from comm.conf import comm_settings
from comm.models import Attachment, Message

from .context import TurnAttachment
from .incoming import IncomingFile

logger = logging.getLogger(__name__)


def _storage() -> Storage:
    return storages[comm_settings().ATTACHMENTS_STORAGE]


def keep_files(message: Message, files: Sequence[IncomingFile], saved: list[str]) -> list[Attachment]:
    """Store files and their rows; the names in the storage are added to `saved` as they are written."""
    rows = []
    for file in files:
        attachment_id = uuid.uuid4()
        path = _storage().save(f"{message.conversation_id}/{attachment_id}", ContentFile(file.content))
        saved.append(path)
        rows.append(
            Attachment(
                message=message,
                attachment_id=attachment_id,
                filename=file.filename,
                mime=file.mime,
                size=len(file.content),
                path=path,
            )
        )
    return Attachment.objects.bulk_create(rows)


def remove_files(paths: Iterable[str]) -> None:
    """Remove stored files whose rows do not exist (any more)."""
    for path in paths:
        try:
            _storage().delete(path)
        except OSError:
            logger.exception("Attachment %s could not be removed", path)


def as_turn_attachment(row: Attachment) -> TurnAttachment:
    """Return a file as bundles see it."""
    return TurnAttachment(str(row.attachment_id), row.filename, row.mime, row.size, row.path)


def find_attachment(
    owner: str, tenant: str, project: str, conversation_id: str, attachment_id: uuid.UUID
) -> Attachment | None:
    """Return an attachment of one of the owner's conversations; None for everybody else's."""
    return Attachment.objects.filter(
        attachment_id=attachment_id,
        message__conversation__owner=owner,
        message__conversation__tenant=tenant,
        message__conversation__project=project,
        message__conversation__conversation_id=conversation_id,
    ).first()


def open_attachment(attachment: Attachment) -> "File[Any]":
    """Open a stored file for reading; whoever opens it closes it. Errors: OSError when it is not there."""
    return _storage().open(attachment.path)


def stored_before(moment: datetime) -> Iterator[str]:
    """Return the names of all stored files that were written before a moment."""
    storage = _storage()
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            inner, files = storage.listdir(folder)
        except FileNotFoundError:
            continue
        folders += [f"{folder}{name}/" for name in inner]
        for name in files:
            if storage.get_modified_time(folder + name) < moment:
                yield folder + name


@receiver(post_delete, sender=Attachment, dispatch_uid="comm.turns.files")
def _remove_with_row(*, instance: Attachment, **kwargs: Any) -> None:
    """Remove a file when its row is gone for good: a deletion that is rolled back keeps it."""
    transaction.on_commit(lambda: remove_files([instance.path]))
