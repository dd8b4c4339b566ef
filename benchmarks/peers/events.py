"""What every peer publishes: the same delta, as JSON of the same keys and some 700 bytes."""

from typing import Any


def delta(session: str, number: int, text: str) -> dict[str, Any]:
    """Return one event."""
    return {
        "type": "chat.delta", "timestamp": "2026-02-26T21:14:05.267Z", "ts": 1772140445267,
        "service": {
            "request_id": "benchmark", "tenant": "default", "project": "default", "user": "", "user_type": "anonymous",
        },
        "conversation": {"session_id": session, "conversation_id": "conversation", "turn_id": "turn"},
        "event": {"agent": "assistant", "step": "stream", "status": "running", "title": ""}, "data": {},
        "delta": {"text": text, "index": number, "marker": "answer", "completed": False}, "text": "", "idx": number,
    }  # fmt: skip
