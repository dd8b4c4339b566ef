"""The sandbox: a bundle, or one function of it, in a process of its own, with the same communicator.

    result = await run_in_sandbox(turn, "myapp.tools.compute", rows, timeout_seconds=20)

`compute(turn, rows)`, sync or async, sees a turn like any other: message, history, attachments, `stopped`, the
communicator with all of its methods. What it emits travels over a Unix socket to this process, which filters and
publishes it. `SandboxedBundle("myapp.bundles.Untrusted")` runs a whole bundle so. See docs/sandbox.md.
"""

from .bundle import SandboxedBundle
from .supervisor import SandboxFailed, run_in_sandbox

__all__ = ["SandboxFailed", "SandboxedBundle", "run_in_sandbox"]
