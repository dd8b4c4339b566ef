"""The steps of a turn that may be cut off: none is left running when the turn ends."""

from collections.abc import Mapping
from typing import Any, Literal

from comm.communicator import ChatCommunicator

AGENT = "llm"


class Steps:
    """Tells steps, and remembers which of them have begun and not ended."""

    def __init__(self, communicator: ChatCommunicator) -> None:
        self._comm = communicator
        self._open: dict[str, tuple[str, Mapping[str, Any]]] = {}

    async def begin(self, step: str, title: str, data: Mapping[str, Any] | None = None) -> None:
        """Tell that a step has begun."""
        self._open[step] = (title, data or {})
        await self._comm.step(title, "started", step=step, agent=AGENT, data=data)

    async def tell(self, step: str, title: str, markdown: str = "") -> None:
        """Tell how a step goes on."""
        await self._comm.step(title, "running", step=step, agent=AGENT, markdown=markdown or None)

    async def end(
        self,
        step: str,
        title: str,
        status: Literal["completed", "error", "skipped"] = "completed",
        *,
        data: Mapping[str, Any] | None = None,
        markdown: str = "",
    ) -> None:
        """Tell that a step has ended; its first data stay."""
        _, first = self._open.pop(step, (title, {}))
        await self._comm.step(
            title, status, step=step, agent=AGENT, data={**first, **(data or {})}, markdown=markdown or None
        )

    async def end_all(self, status: Literal["error", "skipped"]) -> None:
        """End what is under way."""
        for step, (title, _) in list(self._open.items()):
            await self.end(step, title, status)
