"""Runners: how the sandboxed process is started. A container runtime would be one more."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

from .tree import kill_tree

CHILD = "comm.sandbox.child"
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ")
"""Of this process's environment; everything else, keys and passwords among it, stays here."""
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc")
PROBE_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Spawn:
    """What to start: in which folder, with which environment beside what is passed on."""

    folder: Path
    environment: Mapping[str, str]


class Runner:
    """Base class of runners: starts the sandboxed process, and ends it with everything below it."""

    name = ""

    def problem(self) -> str:
        """Say why this runner cannot be used here; an empty string says it can."""
        return ""

    def command(self, spawn: Spawn) -> list[str]:
        """Return the command that starts the process."""
        raise NotImplementedError

    async def start(self, spawn: Spawn) -> asyncio.subprocess.Process:
        """Start the process in a session of its own, with a clean environment. Errors: OSError."""
        return await asyncio.create_subprocess_exec(
            *self.command(spawn),
            env=environment_of(spawn),
            cwd=spawn.folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )

    async def end(self, process: asyncio.subprocess.Process) -> None:
        """Kill the process with everything below it, and reap it."""
        if process.returncode is None:
            await asyncio.to_thread(kill_tree, process.pid)
        await process.wait()


class SubprocessRunner(Runner):
    """A process with resource limits; it sees the file system and the network as this user does."""

    name = "subprocess"

    def command(self, spawn: Spawn) -> list[str]:
        """This interpreter, without the user's site directory."""
        return [sys.executable, "-s", "-B", "-m", CHILD]


class BubblewrapRunner(Runner):
    """A process in namespaces of its own: no network, a read-only file system without this server's data."""

    name = "bubblewrap"

    def problem(self) -> str:
        """Try it: containers often forbid the namespaces that it needs."""
        if shutil.which("bwrap") is None:
            return "bwrap is not installed"
        probe = [*_namespaces(), "--ro-bind", "/", "/", "true"]
        try:
            done = subprocess.run(probe, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"bwrap does not run ({error})"
        return "" if done.returncode == 0 else f"bwrap does not run here ({done.stderr.strip()[:200]})"

    def command(self, spawn: Spawn) -> list[str]:
        """Bind what Python needs, and the sandbox's own folder."""
        binds: list[str] = []
        for folder in dict.fromkeys((*SYSTEM_FOLDERS, sys.base_prefix, sys.prefix, *code_folders())):
            binds += ["--ro-bind-try", folder, folder]
        for hidden in (str(settings.DATA_DIR), *(str(Path(folder) / ".env") for folder in code_folders())):
            if Path(hidden).is_dir():
                binds += ["--tmpfs", hidden]
            elif Path(hidden).exists():
                binds += ["--ro-bind", "/dev/null", hidden]
        own = ["--bind", str(spawn.folder), str(spawn.folder), "--chdir", str(spawn.folder)]
        inside = ["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
        return [*_namespaces(), *inside, *binds, *own, sys.executable, "-s", "-B", "-m", CHILD]


RUNNERS: dict[str, type[Runner]] = {runner.name: runner for runner in (SubprocessRunner, BubblewrapRunner)}


def environment_of(spawn: Spawn) -> dict[str, str]:
    """Return the sandbox's whole environment."""
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return {
        **passed,
        "HOME": str(spawn.folder),
        "TMPDIR": str(spawn.folder),
        "PYTHONPATH": os.pathsep.join(code_folders()),
        "PYTHONIOENCODING": "utf-8",
        **spawn.environment,
    }


def code_folders() -> list[str]:
    """Return where this project's own modules are imported from: the folders of the path outside the installation."""
    inside = (sys.prefix, sys.base_prefix)
    folders = [
        str(Path(folder or os.getcwd()).resolve()) for folder in sys.path if not folder.endswith(".zip")
    ]
    own = [folder for folder in folders if not folder.startswith(inside) and Path(folder).is_dir()]
    return list(dict.fromkeys([str(settings.BASE_DIR), *own]))


def _namespaces() -> list[str]:
    return ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
