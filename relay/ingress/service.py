"""Taking a message in, and telling about conversations: the same for every transport."""

import uuid
from collections.abc import Callable
from typing import Any

from django.urls import reverse

from comm.conf import comm_settings
from comm.tenants import tenant_scope
from comm.turns.conversations import conversation_status, fetch_conversation, list_conversations
from comm.turns.incoming import Acknowledgement, Caller, IncomingMessage
from relay import gateway
from relay.clocks import Clock
from relay.exceptions import BadRequest, NotFound
from relay.models import Session
from relay.registry import find_stream_of

from .attachments import accept_files
from .bodies import RawSubmission
from .checking import identifier
from .parsing import ATTACHMENT_EVENT, TEXT_EVENTS, FileHint, Submission, parse_submission
from .refusals import Sender, announced, notify, tell_state

UNKNOWN_CLOCK = Clock()
IDEMPOTENCY_KEY_CHARACTERS = 200
"""As long as the column that keeps it."""


def caller_of(session: Session, clock: Clock = UNKNOWN_CLOCK) -> Caller:
    """The session, and the user behind it, as comm wants to know them."""
    return Caller(
        session_id=session.session_id,
        owner=session.owner,
        user_type=session.user_type,
        user_id=session.user_id or "",
        username=session.username,
        timezone=clock.timezone,
        utc_offset_min=clock.utc_offset_min,
    )


def sender_of(caller: Caller, stream_id: str) -> Sender:
    """The caller on one of its streams; a message falls back to the stream's tenant and project."""
    conf = comm_settings()
    stream = find_stream_of(caller.session_id, stream_id)
    return Sender(
        caller=caller,
        stream_id=stream_id,
        tenant=stream.tenant if stream else conf.DEFAULT_TENANT,
        project=stream.project if stream else conf.DEFAULT_PROJECT,
        request_id=uuid.uuid4().hex,
    )


def submit(sender: Sender, read: Callable[[], RawSubmission], idempotency_key: str = "") -> Acknowledgement:
    """Admit, read, check and accept one message; every refusal also reaches the sender's stream.

    `read` is called only for an admitted message. Errors: any RelayError with a status below 500, or 503.
    """
    with announced(sender):
        warnings = gateway.admit(sender.caller)
        raw = read()
        key = identifier(
            idempotency_key or raw.idempotency_key, "Idempotency-Key", IDEMPOTENCY_KEY_CHARACTERS
        )
        submission = parse_submission(raw.document, raw.attachment_meta)
        sender.conversation_id = submission.conversation_id
        acknowledgement = gateway.take(_message(sender, submission, raw, key))
    notify(sender, warnings)
    return acknowledgement


def state_of(sender: Sender, conversation_id: str, bundle_id: str) -> dict[str, Any]:
    """Return the state of a conversation, and send it to the sender's stream where it named one.

    Without an id it is the caller's latest one. Errors: NotFound.
    """
    sender.conversation_id = conversation_id
    with tenant_scope(sender.tenant):
        status = conversation_status(
            sender.caller.owner, sender.tenant, sender.project, conversation_id, bundle_id
        )
    if status is None:
        raise NotFound("There is no such conversation.")
    if sender.stream_id:
        sender.conversation_id = status["conversation_id"]
        tell_state(sender, status)
    return status


def conversations_of(session: Session, tenant: str, project: str, bundle_id: str) -> dict[str, Any]:
    """Return the caller's conversations in a tenant and project."""
    return {"items": list_conversations(session.owner, tenant, project, bundle_id)}


def conversation_of(session: Session, tenant: str, project: str, conversation_id: str) -> dict[str, Any]:
    """Return a conversation's messages and turns. Errors: NotFound, also for one of somebody else."""
    found = fetch_conversation(session.owner, tenant, project, conversation_id)
    if found is None:
        raise NotFound("There is no such conversation.")
    for message in found["messages"]:
        for file in message["attachments"]:
            place = {"tenant": tenant, "project": project, "conversation_id": conversation_id}
            file["url"] = reverse("attachment", kwargs={**place, "attachment_id": file["id"]})
    return found


def _message(sender: Sender, submission: Submission, raw: RawSubmission, key: str) -> IncomingMessage:
    files = accept_files(raw.files, _hints(submission), submission.text)
    if not (submission.text.strip() or files or _needs_no_text(submission)):
        raise BadRequest("text", "is empty, and no file came with it")
    return IncomingMessage(
        caller=sender.caller,
        tenant=submission.tenant or sender.tenant,
        project=submission.project or sender.project,
        text=submission.text,
        kind=submission.kind,
        generation=submission.generation,
        reactive=submission.reactive,
        conversation_id=submission.conversation_id,
        bundle_id=submission.bundle_id,
        target_turn_id=submission.target_turn_id,
        author=sender.author or sender.caller.username,
        chat_history=submission.chat_history,
        payload=submission.payload,
        config=submission.config,
        external_events=submission.external_events,
        files=files,
        origin_stream_id=sender.stream_id,
        request_id=sender.request_id,
        idempotency_key=key,
    )


def _needs_no_text(submission: Submission) -> bool:
    """An empty steer is a stop; a payload or an event of the client's own says something without words."""
    said = [event["type"] for event in submission.external_events]
    own = [type for type in said if type not in TEXT_EVENTS and not type.startswith(ATTACHMENT_EVENT)]
    without = bool(own) or not submission.reactive
    return without or submission.kind == "steer" or submission.payload is not None


def _hints(submission: Submission) -> Callable[[int, str], FileHint]:
    def hint(index: int, name: str) -> FileHint:
        if index < len(submission.hints_in_order):
            return submission.hints_in_order[index]
        return submission.hints_by_name.get(name, FileHint())

    return hint
