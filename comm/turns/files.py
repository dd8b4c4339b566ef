"""Keeping the files of messages: written before the rows commit, removed when they don't."""

import logging
import uuid
from collections.abc import Iterable, Sequence

from django.core.files.base import ContentFile
from django.core.files.storage import Storage, storages

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
