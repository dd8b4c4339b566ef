"""Ending a process with everything that it started, also what has left its group."""

import os
import signal
import time
from pathlib import Path

PROC = Path("/proc")
ROUNDS = 200
"""Each kills what it finds; a process that forks as fast as it is found is caught while its parent is stopped."""


def descendants(root: int) -> list[int]:
    """Return the processes below one, by their parents."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (parent := _parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def is_below(pid: int, root: int) -> bool:
    """Tell whether a process is another one, or comes from it."""
    while pid > 1:
        if pid == root:
            return True
        parent = _parent(PROC / str(pid))
        if parent is None:
            return False
        pid = parent
    return False


def kill_tree(root: int) -> None:
    """End a process and all below it; it adopts their orphans, so that none gets away before it ends itself."""
    for _ in range(ROUNDS):
        living = [pid for pid in descendants(root) if not _is_dead(pid)]
        if not living:
            break
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in living:
                _signal(pid, number)
        time.sleep(0.002)
    _signal(root, signal.SIGKILL)


def _parent(entry: Path) -> int | None:
    try:
        stat = (entry / "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The name in parentheses may hold anything; the parent is the second field after it.
    return int(stat.rpartition(")")[2].split()[1])


def _is_dead(pid: int) -> bool:
    try:
        stat = (PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in ("Z", "X")


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return
