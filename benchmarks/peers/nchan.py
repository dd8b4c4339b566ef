"""nchan, for reference: an nginx for the streams, another for what is published, joined by Redis."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import tempfile
from pathlib import Path

from benchmarks.processes import Measured
from benchmarks.subjects import Subject

from .events import delta

MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
CONNECTIONS = 64
CONFIGURATION = """
load_module {module};
worker_processes 1; daemon off; error_log stderr error; pid {folder}/pid;
events {{ worker_connections 16384; }}
http {{
  access_log off; client_body_temp_path {folder}/body; keepalive_requests 100000000;
  upstream store {{ nchan_redis_server {redis}; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /sse/stream {{
      nchan_subscriber eventsource; nchan_channel_id $arg_user_session_id; nchan_redis_pass store;
      nchan_subscriber_first_message newest; nchan_subscriber_timeout 0;
    }}
    location = /publish {{
      nchan_publisher http; nchan_channel_id $arg_session; nchan_redis_pass store;
      nchan_message_buffer_length 5000; nchan_message_timeout 1h;
    }}
  }}
}}
"""


def is_installed() -> bool:
    """Tell whether Debian's package is here."""
    return MODULE.exists() and shutil.which("nginx") is not None


def serve(subject: Subject, port: int, env: dict[str, str], core: int) -> Measured:
    """Start an nginx of its own folder below the subject's."""
    folder = tempfile.mkdtemp(dir=env["FOLDER"])
    configuration = Path(folder) / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(module=MODULE, folder=folder, port=port, redis=env["REDIS_URL"]),
        encoding="ascii",
    )
    server = Measured(["nginx", "-c", str(configuration), "-p", folder], env, core)
    server.wait_until(lambda: socket.create_connection(("127.0.0.1", port), timeout=1).close())
    return server


_idle: asyncio.LifoQueue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.LifoQueue()


async def start() -> None:
    """Open the connections that the producer posts on."""
    port = int(os.environ["PUBLISH_PORT"])
    for _ in range(CONNECTIONS):
        _idle.put_nowait(await asyncio.open_connection("127.0.0.1", port))


async def publish(session: str, number: int, text: str) -> None:
    """Post one event; answered when the channel has it."""
    body = json.dumps(delta(session, number, text)).encode()
    reader, writer = await _idle.get()
    try:
        writer.write(
            b"POST /publish?session=%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
            % (session.encode(), len(body), body)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        with contextlib.suppress(ValueError):
            await reader.readexactly(int(length))
    finally:
        _idle.put_nowait((reader, writer))
