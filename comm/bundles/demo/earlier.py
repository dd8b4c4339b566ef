"""The files that came with earlier messages of a conversation: questions go on about them."""

from comm.models import Attachment
from comm.turns.context import TurnAttachment, TurnContext

KEPT_FILES = 3


async def earlier_attachments(turn: TurnContext) -> list[TurnAttachment]:
    """Return the files of the latest earlier message that brought some, at most KEPT_FILES."""
    before = Attachment.objects.filter(
        message__conversation__tenant=turn.tenant,
        message__conversation__project=turn.project,
        message__conversation__conversation_id=turn.conversation_id,
        # Turn ids are times: what was sent after this turn began is another turn's.
        message__turn__turn_id__lt=turn.turn_id,
    )
    rows = [row async for row in before.order_by("-message_id", "id")[:KEPT_FILES]]
    return [
        TurnAttachment(str(row.attachment_id), row.filename, row.mime, row.size, row.path)
        for row in rows
        if row.message_id == rows[0].message_id
    ]
