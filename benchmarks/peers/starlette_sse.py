"""sse-starlette with redis-py: each stream subscribes to its session's channel and yields what comes."""

import json
import os
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from .events import delta

# A subscriber holds a connection, and the pool's default allows 100.
redis = Redis.from_url(os.environ["REDIS_URL"], max_connections=10_000)


async def stream(request: Request) -> EventSourceResponse:
    """Open the event stream of one session."""
    channel = "chat-" + request.query_params["user_session_id"]

    async def events() -> AsyncIterator[dict[str, Any]]:
        async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe(channel)
            yield {"event": "ready", "data": "{}"}
            async for message in pubsub.listen():
                yield {"event": "chat_delta", "data": message["data"].decode()}

    return EventSourceResponse(events())


async def publish(session: str, number: int, text: str) -> None:
    """Publish one event to a session's channel."""
    await redis.publish(f"chat-{session}", json.dumps(delta(session, number, text)))


application = Starlette(routes=[Route("/sse/stream", stream)])
