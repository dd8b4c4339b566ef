"""A bundle that runs another one in the sandbox."""

from comm.bundles.base import Bundle
from comm.turns.context import TurnContext

from .supervisor import run_in_sandbox


class SandboxedBundle(Bundle):
    """Runs a bundle, named by its dotted path, in a process of its own for each turn; nothing of it is imported here.

    Subclass it, or register an instance: `untrusted = SandboxedBundle("myapp.bundles.Untrusted")`. Its filters are
    this bundle's: they are asked in this process.
    """

    def __init__(self, path: str, *, timeout_seconds: float | None = None, runner: str = "") -> None:
        super().__init__()
        self.path = path
        self.timeout_seconds = timeout_seconds
        self.runner = runner

    async def run(self, turn: TurnContext) -> None:
        """Run the bundle's turn. Errors: SandboxFailed."""
        await run_in_sandbox(
            turn,
            "comm.sandbox.child.run_bundle",
            self.path,
            timeout_seconds=self.timeout_seconds,
            runner=self.runner,
        )
