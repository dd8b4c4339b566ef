"""Hearing what the channel layer was given: a channel of one's own in a group."""

import asyncio
import json
from typing import Any, NamedTuple

from channels.layers import get_channel_layer

from comm.groups import project_group, session_group


class Heard(NamedTuple):
    """One message as it left the layer; `envelope` is the decoded body."""

    route: str
    target_sid: str | None
    envelope: dict[str, Any]


class Listener:
    """Joins a group and hears what is sent to it."""

    def __init__(self, group: str) -> None:
        self.group = group
        self.layer = get_channel_layer()
        self.channel = ""

    @classmethod
    async def on_session(cls, session_id: str) -> "Listener":
        return await cls(session_group(session_id)).join()

    @classmethod
    async def on_project(cls, tenant: str, project: str) -> "Listener":
        return await cls(project_group(tenant, project)).join()

    async def join(self) -> "Listener":
        self.channel = await self.layer.new_channel()
        await self.layer.group_add(self.group, self.channel)
        return self

    async def next(self, timeout: float = 5.0) -> Heard:
        """Return the next message; fail when none comes."""
        message = await asyncio.wait_for(self.layer.receive(self.channel), timeout)
        return Heard(message["route"], message["target_sid"], json.loads(message["body"]))

    async def until(self, type: str) -> list[Heard]:
        """Return all messages up to and with the first of a type."""
        heard = [await self.next()]
        while heard[-1].envelope["type"] != type:
            heard.append(await self.next())
        return heard
