"""Downloading an attachment: for its owner only, and never as a page of this site."""

import logging
from typing import Any

from django.http import FileResponse
from django.http.response import HttpResponseBase
from rest_framework.request import Request

from comm.turns.files import find_attachment, open_attachment
from relay.exceptions import NotFound

from .views import Endpoint, path_part

logger = logging.getLogger(__name__)

HEADERS = {
    # Whatever a file says it is, no browser shall run it here.
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cache-Control": "private",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class DownloadView(Endpoint):
    """GET /api/cb/conversations/{tenant}/{project}/{conversation_id}/attachments/{attachment_id}."""

    def get(self, request: Request, **path: Any) -> HttpResponseBase:
        """Answer with the file; 404 for everybody but its owner, and when it is there no more."""
        session = self.resolve()
        conversation_id = path_part(path["conversation_id"])
        attachment = find_attachment(
            session.owner,
            path_part(path["tenant"]),
            path_part(path["project"]),
            conversation_id,
            path["attachment_id"],
        )
        if attachment is None:
            raise NotFound("There is no such attachment.")
        try:
            content = open_attachment(attachment)
        except OSError:
            logger.exception("Attachment %s is not in the storage", attachment.attachment_id)
            raise NotFound("The content of this attachment is not there any more.") from None
        return FileResponse(
            content,
            as_attachment=True,
            filename=attachment.filename,
            content_type=attachment.mime,
            headers=HEADERS,
        )
