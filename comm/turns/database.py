"""A thread with a database connection of its own, for statements that no bundle may hold up."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.db import InterfaceError, OperationalError, connections, reset_queries

from comm.tenants import EVERYBODY, NOBODY, Sight, current_sight, sight_scope, tenant_scope

logger = logging.getLogger(__name__)

RESTED_SECONDS = 0.5
"""A connection that was not used for so long is asked first whether it still lives."""
CLOSE_SECONDS = 5.0


class DatabaseThread:
    """Runs synchronous ORM code, one piece after another; call it with the piece. Whoever makes it closes it.

    A piece works for the tenant that its caller works for (see for_tenant), else for all: what the house asks for
    itself is about everybody's turns. The thread keeps one connection, which it replaces when it has died. A piece
    that fails because the database is away is not run again: whoever asked knows what may be repeated.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._used_at = 0.0

    async def __call__(self, work: Callable[[], Any]) -> Any:
        """Return what `work` returns, once it has run on the thread."""
        sight = current_sight()
        if sight == NOBODY:
            sight = EVERYBODY
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._run, work, sight)

    def later(self, work: Callable[[], Any]) -> None:
        """Run a piece for everybody after what was asked for, without waiting; a failure is only logged."""
        self._pool.submit(self._run_unasked, work)

    async def aclose(self) -> None:
        """Close the connection, after what was asked for; a thread that hangs is left behind."""
        closing = asyncio.get_running_loop().run_in_executor(self._pool, connections.close_all)
        await asyncio.wait([closing], timeout=CLOSE_SECONDS)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run_unasked(self, work: Callable[[], Any]) -> None:
        try:
            self._run(work, EVERYBODY)
        except Exception:
            # Nobody waits for it: sweep and lease do what it could not.
            logger.exception("What was left behind could not be put in order")

    def _run(self, work: Callable[[], Any], sight: Sight) -> Any:
        if time.monotonic() - self._used_at > RESTED_SECONDS:
            _close_dead_connections()
        try:
            with sight_scope(sight):
                return work()
        except (InterfaceError, OperationalError):
            connections.close_all()
            raise
        finally:
            self._used_at = time.monotonic()
            # With DEBUG on Django keeps every statement, with whole answers in it, until the next request;
            # this thread serves none.
            reset_queries()


def for_tenant(
    tenant: str, database: Callable[[Callable[[], Any]], Awaitable[Any]]
) -> Callable[[Callable[[], Any]], Awaitable[Any]]:
    """Return the way to a database thread that works for one tenant, whatever task it is called from."""

    async def run(work: Callable[[], Any]) -> Any:
        with tenant_scope(tenant):
            return await database(work)

    return run


def _close_dead_connections() -> None:
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None and not connection.is_usable():
            connection.close()


class Outage:
    """Says which failure of many in a row is news: only the first is, and that it is over."""

    def __init__(self) -> None:
        self._lasts = False

    def begins(self) -> bool:
        """Note a failure; True for the first one."""
        news, self._lasts = not self._lasts, True
        return news

    def is_over(self) -> bool:
        """Note a success; True after a failure."""
        news, self._lasts = self._lasts, False
        return news
