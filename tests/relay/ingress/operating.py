"""A bundle whose operations the tests call."""

import asyncio
import threading
from typing import Any

from comm.bundles import Bundle, OperationCall, OperationRefused, TurnContext, operation
from comm.models import Conversation


class Operating(Bundle):
    """Declares an operation for every way in which one can go."""

    cancelled = threading.Event()

    async def run(self, turn: TurnContext) -> None:
        await turn.communicator.delta("answer", "done")

    @operation
    async def echo(self, call: OperationCall) -> dict[str, Any]:
        """Give back what it was called with."""
        return {
            "data": call.data, "method": call.method, "tenant": call.tenant, "project": call.project,
            "user_type": call.user_type, "conversation_id": call.conversation_id, "hour": call.now().hour,
        }  # fmt: skip

    @operation(name="tell-me", methods=("POST",))
    async def tell(self, call: OperationCall) -> str:
        await call.communicator.step("Told", "completed", step="told")
        await call.communicator.service_event(type="all.tabs", data={}, broadcast=True)
        return "told"

    @operation
    def rows(self, call: OperationCall) -> int:
        """Synchronous, with the database."""
        call.communicator.step_sync("Counting")
        return Conversation.objects.count()

    @operation(user_types=("privileged",))
    async def secret(self, call: OperationCall) -> str:
        return "the secret"

    @operation
    async def refuse(self, call: OperationCall) -> None:
        raise OperationRefused("The table has no rows.", status=409, code="table_empty")

    @operation
    async def fail(self, call: OperationCall) -> None:
        raise ValueError("what nobody should read")

    @operation
    async def inner_timeout(self, call: OperationCall) -> None:
        raise TimeoutError("of its own")

    @operation
    async def hang(self, call: OperationCall) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            self.cancelled.set()

    @operation
    async def unwritable(self, call: OperationCall) -> Any:
        return {"object": object()}
