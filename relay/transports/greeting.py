"""What every transport says at the beginning and at the end of a stream."""

from typing import Any

from comm.envelope import stamp
from relay.peers import Peer

READY = "ready"
GOODBYE = "server_shutdown"

DEFAULT_RETRY_MS = 1000
"""For a stream that came while the others were being told already."""


def ready_body(peer: Peer, resume: dict[str, Any]) -> dict[str, Any]:
    """Return the body of the first frame: whose stream this is, and where it starts."""
    timestamp, _ = stamp()
    return {
        "session_id": peer.session_id,
        "user_type": peer.user_type,
        "stream_id": peer.stream_id,
        "tenant": peer.tenant,
        "project": peer.project,
        "project_events": peer.project_events,
        "timestamp": timestamp,
        "resume": resume,
    }


def goodbye_body(peer: Peer, retry_after_ms: int) -> dict[str, Any]:
    """Return the body of the frame that announces a drain, with this stream's own retry slot."""
    timestamp, _ = stamp()
    return {
        "reason": "draining",
        "session_id": peer.session_id,
        "stream_id": peer.stream_id,
        "timestamp": timestamp,
        "retry_after_ms": retry_after_ms,
    }
