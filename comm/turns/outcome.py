"""What stays of a turn beside its answer: folded markers, steps, followups, usage."""

from typing import Any

from comm.communicator import ChatCommunicator

MARKER_CHARACTERS = 256 * 1024
"""Text kept per marker and artifact; the recorder has all of it."""
ARTIFACTS = 50


def outcome_of(communicator: ChatCommunicator) -> dict[str, Any]:
    """Return the outcome as it stands in the turn's row; bounded, whatever was streamed."""
    markers = [
        {
            "agent": part["agent"],
            "marker": part["marker"],
            "artifact_name": part["artifact_name"],
            "title": part["title"],
            "format": part["format"],
            "sub_type": part["extra"].get("sub_type", ""),
            "text": part["text"][:MARKER_CHARACTERS],
            "truncated": part["truncated"] or len(part["text"]) > MARKER_CHARACTERS,
        }
        for part in communicator.get_delta_aggregates()[:ARTIFACTS]
    ]
    return {
        "markers": markers,
        "steps": list(communicator.steps),
        "followups": list(communicator.followup_items),
        "usage": communicator.usage or {},
        "final_answer": communicator.final_answer,
    }
