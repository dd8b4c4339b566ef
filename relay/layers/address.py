"""Where a Redis is, and how to get in: read from a URL."""

import ssl
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

DEFAULT_PORT = 6379


@dataclass(frozen=True)
class Address:
    """A Redis or Valkey server; `str()` of it names no password."""

    host: str = "localhost"
    port: int = DEFAULT_PORT
    path: str = ""
    """Of a Unix socket, which then stands in for host and port."""
    database: int = 0
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Read `redis://[user:password@]host[:port][/database]`, `rediss://…` or `unix:///path?db=0`.

        Anything else is a ValueError whose sentence can be shown.
        """
        parts = urlsplit(url)
        try:
            port = parts.port or DEFAULT_PORT
        except ValueError:
            raise ValueError("its port is no number up to 65535") from None
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError("it must begin with redis://, rediss:// or unix://")
        on_socket = parts.scheme == "unix"
        query = parse_qs(parts.query)
        database = query.get("db", ["0"])[0] if on_socket or "db" in query else parts.path.strip("/") or "0"
        if not (database.isascii() and database.isdigit()):
            raise ValueError(f"its database {database!r} is no number")
        return cls(
            host=parts.hostname or "localhost",
            port=port,
            path=unquote(parts.path) if on_socket else "",
            database=int(database),
            username=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            tls=ssl.create_default_context() if parts.scheme == "rediss" else None,
        )

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"
