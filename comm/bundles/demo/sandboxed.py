"""What the demo bundle does in a sandbox: the same calls as outside."""

from typing import Any

from comm.turns.context import TurnContext

from .reading import read_document
from .report import outline, profile_of
from .speech import AGENT


async def profile(turn: TurnContext, step: str, name: str, mime: str, content: bytes) -> dict[str, Any]:
    """Profile a file, show that as a step, and return the profile."""
    communicator = turn.communicator
    title = f"Profiling {name} in the sandbox"
    await communicator.step(title, "started", step=step, agent=AGENT)
    document = read_document(name, mime, content)
    note = f"It is {outline(document)}."
    await communicator.step(title, "completed", step=step, agent=AGENT, markdown=note)
    return profile_of(document)
