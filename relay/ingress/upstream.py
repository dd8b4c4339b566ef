"""What a client sends up its own connection: the same messages as by POST, answered by an acknowledgement."""

import logging
import uuid
from collections.abc import Callable
from typing import Any

from channels.db import database_sync_to_async
from django.db import InterfaceError, OperationalError

from relay.exceptions import RelayError, Unavailable
from relay.peers import Peer
from relay.transports.opening import Opening

from . import service
from .bodies import RawSubmission
from .checking import check_storable, convert, identifier
from .errors import UNAVAILABLE_RETRY_SECONDS as RETRY_SECONDS
from .errors import Internal
from .refusals import Sender

logger = logging.getLogger(__name__)

Answer = dict[str, Any]


class Upstream:
    """The way up of one open stream. Its methods raise nothing: a refusal is an answer with `ok` false.

    A message may carry `idempotency_key`, which works as the header of that name does on POST.
    """

    def __init__(self, opening: Opening, peer: Peer) -> None:
        self._opening = opening
        self._peer = peer

    async def chat_message(self, read: Callable[[], RawSubmission], author: str = "") -> Answer:
        """Submit a message; `read` is called once it is admitted, `author` is a name to keep it under."""
        return await self._answer(lambda: dict(service.submit(self._sender(author), read)))

    async def conversation_state(self, document: Any) -> Answer:
        """Tell the state of a conversation; the stream gets it as an event as well."""

        def tell() -> Answer:
            asked = convert(document if document is not None else {}, dict[str, Any], "data")
            check_storable(asked)
            sender = self._sender()
            sender.tenant = identifier(asked.get("tenant"), "tenant") or sender.tenant
            sender.project = identifier(asked.get("project"), "project") or sender.project
            conversation_id = identifier(asked.get("conversation_id"), "conversation_id")
            bundle_id = identifier(asked.get("bundle_id"), "bundle_id")
            return service.state_of(sender, conversation_id, bundle_id)

        return await self._answer(tell)

    def _sender(self, author: str = "") -> Sender:
        caller = service.caller_of(self._opening.session, self._opening.clock)
        return Sender(
            caller=caller,
            stream_id=self._peer.stream_id,
            tenant=self._opening.tenant,
            project=self._opening.project,
            request_id=uuid.uuid4().hex,
            author=author,
        )

    async def _answer(self, work: Callable[[], Answer]) -> Answer:
        try:
            return {"ok": True, **await database_sync_to_async(work)()}
        except RelayError as error:
            return refusal_of(error)
        except (OperationalError, InterfaceError):
            logger.exception("The database does not answer")
            return refusal_of(Unavailable("The database does not answer.", retry_after=RETRY_SECONDS))
        except Exception:
            # The top of this message's work: its sender is told, and the connection goes on.
            logger.exception("A message of session %s failed", self._opening.session.session_id)
            return refusal_of(Internal("Something failed on the server; it is in the log."))


def refusal_of(error: RelayError) -> Answer:
    """Return `{ok: false, status, error_type, error, reason?, retry_after?, …}`."""
    return {"ok": False, "status": error.status, **error.detail()}
