"""The recorder stream from both of its ends: a real layer that fills it, and a recorder that reads it."""

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from comm.groups import project_group, session_group
from comm.history import Position
from comm.publisher import MESSAGE_TYPE
from comm.recorder_stream import StreamKeys
from comm.sinks import Published
from recorder.process import RecorderProcess
from recorder.store import RecorderStore
from relay.layers.redis import RedisChannelLayer
from tests.recorder.publishing import published
from tests.waiting import eventually


def message_of(offered: Published, group: str) -> dict[str, Any]:
    """The channel-layer message that the publisher makes of it."""
    return {
        "type": MESSAGE_TYPE,
        "group": group,
        "route": offered.route,
        "target_sid": offered.target_sid,
        "body": offered.body,
    }


class Stream:
    """One recorder stream under a prefix: `say` and `announce` fill it through a layer, `keys` and `client` look
    at it. Whoever makes it closes it, on the event loop that used it."""

    def __init__(self, url: str, prefix: str = "", **layer_options: Any) -> None:
        self.url = url
        self.prefix = prefix or f"test-{secrets.token_hex(6)}"
        self.keys = StreamKeys.of(self.prefix)
        self.client: Any = redis.Redis.from_url(url, socket_timeout=10)
        self.layer = RedisChannelLayer(url=url, prefix=self.prefix, **layer_options)

    async def say(self, count: int = 1, *, session_id: str = "session-1", **fields: Any) -> list[Position]:
        """Publish events of a session; return their positions."""
        positions = []
        group = session_group(session_id)
        for number in range(count):
            offered = published(number + 1, session_id=session_id, **fields)
            position = await self.layer.group_send(group, message_of(offered, group))
            assert position is not None
            positions.append(position)
        return positions

    async def announce(self, count: int = 1, **fields: Any) -> None:
        """Publish events of a project."""
        group = project_group("acme", "shop")
        for number in range(count):
            offered = published(None, type="chat.service", data={"message": f"<{number}>"}, **fields)
            await self.layer.group_send(group, message_of(offered, group))

    def put(self, **fields: Any) -> str:
        """Append an entry of whatever kind, past the layer; return its id."""
        entry_id: bytes = self.client.xadd(self.keys.stream, fields)
        return entry_id.decode()

    @property
    def length(self) -> int:
        """How many entries are not acknowledged."""
        return int(self.client.xlen(self.keys.stream))

    def another(self, consumer: str = "another") -> RecorderStore:
        """A recorder's view of the stream, to take entries and do nothing with them; close it."""
        return RecorderStore(self.url, self.prefix, consumer, block_seconds=0.1)

    def lose_everything(self) -> None:
        """Lose all data, as a store does that keeps none and was started again."""
        names = list(self.client.scan_iter(f"{self.prefix}:*"))
        if names:
            self.client.delete(*names)

    @contextmanager
    def recording(self) -> Iterator[RecorderProcess]:
        """Run a recorder on a thread; at the end stop it, and wait for it."""
        stop = threading.Event()
        recorder = RecorderProcess(stop, url=self.url, prefix=self.prefix)
        thread = threading.Thread(target=recorder.run, name="recorder of a test")
        thread.start()
        try:
            yield recorder
        finally:
            stop.set()
            thread.join(60)
            assert not thread.is_alive()

    def until_recorded(self) -> None:
        """Wait until nothing of the stream is left, and no gap waits."""

        def recorded() -> bool:
            gaps = self.client.exists(self.keys.gaps, self.keys.taken)
            return self.length == 0 and not gaps and bool(self.client.exists(self.keys.stream))

        eventually(recorded, timeout=60, what="everything's recording")

    async def aclose(self) -> None:
        """Close both ends, and leave nothing in the store."""
        await self.layer.aclose()
        self.lose_everything()
        self.client.close()
