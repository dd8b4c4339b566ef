"""One turn of the demo bundle, and every envelope that it sent, read back from the session's log."""

import json
from typing import Any

from channels.layers import get_channel_layer

from comm.bundles import TurnContext, TurnMessage
from comm.bundles.demo import DemoBundle
from comm.groups import session_group


class Talk:
    """A turn to run; `queue` holds the followups that wait for it."""

    def __init__(self, turn: TurnContext, queue: list[TurnMessage]) -> None:
        self.turn = turn
        self.queue = queue
        self.envelopes: list[dict[str, Any]] = []

    async def run(self) -> "Talk":
        """Run the bundle to its end."""
        layer = get_channel_layer()
        group = session_group(self.turn.session_id)
        start = await layer.group_tail(group)
        await DemoBundle().run(self.turn)
        log = await layer.group_read(group, start, 1_000_000)
        assert log.reaches(start)
        self.envelopes = [json.loads(entry.message["body"]) for entry in log.entries]
        return self

    def of(self, type: str) -> list[dict[str, Any]]:
        """The envelopes of a type."""
        return [envelope for envelope in self.envelopes if envelope["type"] == type]

    def deltas(self, marker: str) -> list[dict[str, Any]]:
        """The deltas of a marker."""
        return [envelope for envelope in self.of("chat.delta") if envelope["delta"]["marker"] == marker]

    def text(self, marker: str = "answer") -> str:
        """The whole text of a marker."""
        return "".join(envelope["delta"]["text"] for envelope in self.deltas(marker))

    def artifacts(self) -> dict[str, str]:
        """Artifact name → text."""
        found: dict[str, str] = {}
        for envelope in self.deltas("canvas"):
            name = envelope["extra"]["artifact_name"]
            found[name] = found.get(name, "") + envelope["delta"]["text"]
        return found
