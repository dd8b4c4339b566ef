"""The chatbot feature's requests: starting a workflow, joining one, stopping one."""

import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
from django.http import HttpRequest
from rest_framework.request import Request
from rest_framework.response import Response

from comm.chatbot.feed import context_id
from comm.chatbot.items import Item, items_of
from comm.conf import comm_settings
from comm.models import Attachment, Conversation
from comm.tenants import tenant_scope
from comm.turns.files import open_attachment
from comm.turns.incoming import Caller, IncomingFile, IncomingMessage
from relay import gateway
from relay.clocks import read_clock
from relay.conf import relay_settings
from relay.credentials import Credentials, identify
from relay.exceptions import BadRequest, ConversationForbidden, NotFound
from relay.models import Session
from relay.sessions import session_of

from . import bodies
from .attachments import check_total
from .checking import check_storable, convert, identifier
from .csrf import check_csrf
from .service import caller_of
from .views import Endpoint, caller_from, path_part

CHANNEL = "chatbot"
LISTED_FILES = 50


class _UserInput(msgspec.Struct):
    prompt: str | None = None
    userLanguage: str | None = None
    listFileId: list[str] | None = None


class _Start(msgspec.Struct):
    userInput: _UserInput | None = None
    workflowId: str | None = None
    prompt: str | None = None
    userLanguage: str | None = None
    listFileId: list[str] | None = None
    tenant: str | None = None
    project: str | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A workflow whose stream is to be opened: whose session it is, and where its events are."""

    session: Session
    owner: str
    tenant: str
    project: str
    workflow_id: str

    @property
    def context_id(self) -> str:
        """The event manager's context."""
        return context_id(self.tenant, self.project, self.workflow_id)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the database has of a workflow: its items, whether it still runs, and its last error."""

    items: list[Item]
    running: bool
    end: str
    error: dict[str, Any]


def start(request: HttpRequest) -> Started:
    """Start a workflow with a prompt, hand a prompt to a running one, or join it without a prompt (ORM, synchronous).

    Errors: any RelayError; then nothing is stored.
    """
    gateway.refuse_when_draining()
    bodies.check_length(request)
    document = convert(bodies.read_json(request), dict[str, Any], "body")
    check_storable(document)
    asked: _Start = convert(document, _Start, "")
    said = asked.userInput or _UserInput(asked.prompt, asked.userLanguage, asked.listFileId)
    field = "userInput.prompt" if asked.userInput else "prompt"
    workflow_id = identifier(request.GET.get("workflowId") or asked.workflowId, "workflowId")
    credentials = Credentials.from_request(request)
    identity = identify(credentials)
    session = session_of(identity, credentials, create=True, transport="sse")
    if identity is not None and identity.by_cookie:
        check_csrf(request, origin_proves=identity.origin_proves)
    headers = request.headers
    clock = read_clock(headers.get("X-User-Timezone", ""), headers.get("X-User-UTC-Offset", ""))
    caller = caller_of(session, clock)
    conf = comm_settings()
    tenant = identifier(asked.tenant, "tenant") or conf.DEFAULT_TENANT
    project = identifier(asked.project, "project") or conf.DEFAULT_PROJECT
    prompt = _prompt(said, field)
    with tenant_scope(tenant):
        if prompt or said.listFileId:
            workflow_id = _submit(caller, tenant, project, workflow_id, prompt, said)
        elif not workflow_id:
            raise BadRequest(field, "is missing; say what to do, or which workflow to join")
        else:
            find_workflow(caller.owner, tenant, project, workflow_id)
    return Started(session, caller.owner, tenant, project, workflow_id)


def find_workflow(owner: str, tenant: str, project: str, workflow_id: str) -> Conversation:
    """Return a workflow of the owner. Errors: NotFound, ConversationForbidden for one of somebody else."""
    found = Conversation.objects.filter(tenant=tenant, project=project, conversation_id=workflow_id).first()
    if found is None:
        raise NotFound("There is no such workflow.")
    if found.owner != owner:
        raise ConversationForbidden("This workflow belongs to somebody else.")
    return found


def snapshot(started: Started) -> Snapshot:
    """Return what the database has of a workflow (ORM, synchronous)."""
    with tenant_scope(started.tenant):
        return _snapshot(started)


def _snapshot(started: Started) -> Snapshot:
    workflow = find_workflow(started.owner, started.tenant, started.project, started.workflow_id)
    last = workflow.turns.exclude(finished_at=None).order_by("-number").first()
    end = {"completed": "complete", "stopped": "stopped", "absorbed": "complete"}
    return Snapshot(
        items=items_of(workflow),
        running=workflow.state == "in_progress",
        end=end.get(last.status, "error") if last else "complete",
        error=dict(last.error) if last else {},
    )


def _prompt(said: _UserInput, field: str) -> str:
    limit = relay_settings().TEXT_CHARACTERS
    prompt = said.prompt or ""
    if len(prompt) > limit:
        raise BadRequest(field, f"has {len(prompt):,} characters; at most {limit:,} are allowed")
    return prompt if prompt.strip() else ""


def _submit(
    caller: Caller, tenant: str, project: str, workflow_id: str, prompt: str, said: _UserInput
) -> str:
    gateway.admit(caller)
    language = identifier(said.userLanguage, "userLanguage", 35)
    acknowledgement = gateway.take(
        IncomingMessage(
            caller=caller,
            tenant=tenant,
            project=project,
            text=prompt,
            conversation_id=workflow_id,
            bundle_id=relay_settings().CHATBOT_BUNDLE,
            author=caller.username,
            config={"userLanguage": language} if language else {},
            files=_files(caller, said.listFileId or []),
            request_id=uuid.uuid4().hex,
            channel=CHANNEL,
        )
    )
    return acknowledgement["conversation_id"]


def _files(caller: Caller, ids: list[str]) -> list[IncomingFile]:
    """Return files that the caller has sent before, to be sent again with this message."""
    if len(ids) > LISTED_FILES:
        raise BadRequest("listFileId", f"names {len(ids)} files; at most {LISTED_FILES} are allowed")
    rows = [_file(caller, id, place) for place, id in enumerate(ids)]
    check_total(sum(row.size for row in rows))
    files = []
    for place, row in enumerate(rows):
        try:
            with open_attachment(row) as stored:
                files.append(IncomingFile(row.filename, row.mime, stored.read()))
        except OSError:
            raise BadRequest(f"listFileId[{place}]", "names a file that is not there any more") from None
    return files


def _file(caller: Caller, id: str, place: int) -> Attachment:
    field = f"listFileId[{place}]"
    try:
        attachment_id = uuid.UUID(id)
    except ValueError:
        raise BadRequest(field, "is no id of a file") from None
    found = Attachment.objects.filter(
        attachment_id=attachment_id, message__conversation__owner=caller.owner
    ).first()
    if found is None:
        raise BadRequest(field, "names no file of yours")
    return found


class StopView(Endpoint):
    """POST /api/chatbot/stop/{workflowId}."""

    def post(self, request: Request, workflow_id: str) -> Response:
        """Stop what runs of a workflow; 404 for one that is not the caller's."""
        session = self.resolve()
        caller = caller_from(self.http, session)
        conf = comm_settings()
        tenant = identifier(self.http.GET.get("tenant"), "tenant") or conf.DEFAULT_TENANT
        project = identifier(self.http.GET.get("project"), "project") or conf.DEFAULT_PROJECT
        try:
            with tenant_scope(tenant):
                find_workflow(caller.owner, tenant, project, path_part(workflow_id))
        except ConversationForbidden:
            raise NotFound("There is no such workflow.") from None
        stop = IncomingMessage(
            caller=caller, tenant=tenant, project=project, kind="steer", conversation_id=workflow_id,
            request_id=uuid.uuid4().hex, channel=CHANNEL,
        )  # fmt: skip
        acknowledgement = gateway.take(stop)
        running = acknowledgement["status"] == "steer_accepted"
        return Response(
            {
                "workflowId": workflow_id,
                "status": "stopping" if running else "idle",
                "turnId": acknowledgement["turn_id"],
            }
        )
