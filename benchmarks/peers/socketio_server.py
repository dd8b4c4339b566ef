"""python-socketio with its Redis manager: each client in the room of its session."""

import os
from typing import Any
from urllib.parse import parse_qs

import socketio

from .events import delta

server = socketio.AsyncServer(
    async_mode="asgi",
    client_manager=socketio.AsyncRedisManager(os.environ["REDIS_URL"]),
    cors_allowed_origins="*",
)
# The pool's default allows 100 connections, and each emit that waits holds one.
emitter = socketio.AsyncRedisManager(
    os.environ["REDIS_URL"], write_only=True, redis_options={"max_connections": 10_000}
)


@server.event
async def connect(sid: str, environ: dict[str, Any], auth: Any = None) -> None:
    """Put a client into its session's room."""
    await server.enter_room(sid, "chat-" + parse_qs(environ["QUERY_STRING"])["user_session_id"][0])


async def publish(session: str, number: int, text: str) -> None:
    """Emit one event to a session's room from a process that is no server."""
    await emitter.emit("chat_delta", delta(session, number, text), room=f"chat-{session}")


application = socketio.ASGIApp(server)
