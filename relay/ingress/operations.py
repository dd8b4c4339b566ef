"""Calling an operation of a bundle: who may, on whose behalf, and where its events go."""

import asyncio
import concurrent.futures
import contextvars
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
from asgiref.sync import async_to_sync

from comm.bundles.base import Bundle
from comm.bundles.operations import (
    Operation,
    OperationCall,
    OperationFailed,
    OperationRefused,
    OperationTimedOut,
    OperationUnknown,
    operation_of,
)
from comm.bundles.registry import get_bundle, known_bundle_id
from comm.communicator import ChatCommunicator
from comm.envelope import ConversationContext, ServiceContext
from comm.exceptions import BundleUnknown
from comm.publisher import home_loop
from comm.turns.conversations import conversation_status
from comm.turns.incoming import Caller
from relay import gateway
from relay.conf import relay_settings
from relay.exceptions import BadGateway, GatewayTimeout, MethodNotAllowed, NotFound, OperationDenied, Refusal

ANSWER_SECONDS = 5.0
"""What a cancelled operation may take to end before its caller is answered anyway."""


@dataclass(frozen=True, slots=True)
class OperationRequest:
    """What was asked for: the path's parts, the data, and the stream that its events are for (empty: the session)."""

    tenant: str
    project: str
    bundle_id: str
    operation: str
    method: str
    data: dict[str, Any]
    stream_id: str = ""
    conversation_id: str = ""


def find_operation(bundle_id: str, name: str, method: str, user_type: str) -> tuple[Bundle, Operation]:
    """Return a bundle and its operation. Errors: NotFound (404), MethodNotAllowed (405), OperationDenied (403)."""
    try:
        bundle = get_bundle(known_bundle_id(bundle_id))
        operation = operation_of(bundle, name)
    except (BundleUnknown, OperationUnknown) as error:
        raise NotFound(_sentence(error)) from None
    if method not in operation.methods:
        raise MethodNotAllowed(
            f"The operation {name} answers {' and '.join(operation.methods)}.", operation.methods
        )
    if operation.user_types and user_type not in operation.user_types:
        raise OperationDenied(f"The operation {name} is for {' and '.join(operation.user_types)} users.")
    return bundle, operation


def call_operation(caller: Caller, request: OperationRequest) -> dict[str, Any]:
    """Carry out an operation on the loop that owns the channel layer, and return the reply.

    Errors: those of find_operation and of the gateway; a Refusal as the operation words it; BadGateway (502),
    GatewayTimeout (504).
    """
    gateway.admit_operation(caller)
    bundle, operation = find_operation(request.bundle_id, request.operation, request.method, caller.user_type)
    _check_conversation(caller, request)
    call = _call(caller, request, bundle)
    limit = relay_settings().OPERATION_SECONDS
    try:
        result = _run_at_home(operation, bundle, call, limit)
        encoded = msgspec.json.encode(result)
    except OperationRefused as error:
        raise Refusal(str(error), status=error.status, code=error.code) from None
    except (OperationTimedOut, concurrent.futures.TimeoutError):
        raise GatewayTimeout(f"The operation took over {limit:g} seconds and was ended.") from None
    except OperationFailed as error:
        raise BadGateway(_sentence(error)) from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadGateway(f"The operation's result cannot be written as JSON ({error}).") from None
    return {
        "status": "ok",
        "bundle_id": call.bundle_id,
        "operation": operation.name,
        "result": msgspec.json.decode(encoded),
    }


def _run_at_home(operation: Operation, bundle: Bundle, call: OperationCall, limit: float) -> Any:
    async def run() -> Any:
        return await operation.run(bundle, call, limit)

    loop = home_loop()
    if loop is None:
        return async_to_sync(run)()
    # An empty context: this thread's would bring an executor that ends with the request.
    running = contextvars.Context().run(asyncio.run_coroutine_threadsafe, run(), loop)
    try:
        return running.result(limit + ANSWER_SECONDS)
    except concurrent.futures.TimeoutError:
        running.cancel()
        raise


def _call(caller: Caller, request: OperationRequest, bundle: Bundle) -> OperationCall:
    communicator = ChatCommunicator(
        service=ServiceContext(
            request_id=uuid.uuid4().hex,
            tenant=request.tenant,
            project=request.project,
            user=caller.user_id,
            user_type=caller.user_type,
        ),
        conversation=ConversationContext(caller.session_id, request.conversation_id, ""),
        target_sid=request.stream_id or None,
        event_filter=bundle.event_filter,
    )
    return OperationCall(
        operation=request.operation,
        method=request.method,
        data=request.data,
        bundle_id=known_bundle_id(request.bundle_id),
        tenant=request.tenant,
        project=request.project,
        session_id=caller.session_id,
        user_id=caller.user_id,
        user_type=caller.user_type,
        username=caller.username,
        communicator=communicator,
        conversation_id=request.conversation_id,
        stream_id=request.stream_id,
        timezone=caller.timezone,
        utc_offset_min=caller.utc_offset_min,
    )


def _check_conversation(caller: Caller, request: OperationRequest) -> None:
    """Raise NotFound for a conversation that is not the caller's own."""
    wanted = request.conversation_id
    if wanted and conversation_status(caller.owner, request.tenant, request.project, wanted) is None:
        raise NotFound("There is no such conversation.")


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:] + "."
