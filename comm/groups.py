"""The names of channel-layer groups; a layer allows under 100 characters of [A-Za-z0-9_.-]."""

import hashlib
import re

SESSION_PREFIX = "session."
"""Groups that begin so have a history: positions, a log, a tail."""

CONTEXT_PREFIX = "context."
"""Groups of an event manager's contexts: with a history too."""

HISTORY_PREFIXES = (SESSION_PREFIX, CONTEXT_PREFIX)

PROJECT_PREFIX = "project."
"""Groups of tenant/project-wide events: transient, without positions."""

HUBS = "hubs"
"""Every hub is in it: what has no place in a log reaches the peers it names through here."""

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,80}", re.ASCII)


def _safe(*parts: str) -> str:
    """Return a name that is unique for these parts, readable where they allow it."""
    if len(parts) == 1 and _PLAIN.fullmatch(parts[0]):
        return parts[0]
    # A dot cannot stand in a plain part, so a digest can never equal one.
    return "h." + hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def session_group(session_id: str) -> str:
    """The group of every peer of one session."""
    return SESSION_PREFIX + _safe(session_id)


def context_group(context_id: str) -> str:
    """The group of the readers of one event-manager context."""
    return CONTEXT_PREFIX + _safe(context_id)


def project_group(tenant: str, project: str) -> str:
    """The group of the streams of one tenant and project that asked for its events."""
    return PROJECT_PREFIX + _safe(tenant, project)


def session_of(group: str) -> str | None:
    """Return the session whose group this is, where the name tells it (a digest does not)."""
    name = group.removeprefix(SESSION_PREFIX)
    return name if name != group and "." not in name else None
