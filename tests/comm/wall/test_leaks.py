"""Nothing of one request is left for the next, whatever connections, transactions and threads do."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from channels.db import database_sync_to_async
from django.db import DatabaseError, connection, connections, transaction

from comm.models import Conversation
from comm.tenants import Sight, each_within, nobody, tenant_scope
from tests.comm.wall.tenants import ALL, NONE, Tenant, raw, tenants_seen

pytestmark = pytest.mark.wire


class Undone(Exception):
    """Ends a block early."""


def backend() -> int:
    return int(raw("SELECT pg_backend_pid()")[0][0])


def test_one_connection_carries_nothing_from_one_request_to_the_next(acme: Tenant, zenith: Tenant) -> None:
    pid = backend()
    for tenant, other in ((acme, zenith), (zenith, acme)):
        with tenant_scope(tenant.name):
            assert (tenant.count(), other.count()) == (ALL, NONE)
        assert (acme.count(), zenith.count()) == (NONE, NONE)
    assert backend() == pid


def test_scopes_nest_and_end_with_errors(acme: Tenant, zenith: Tenant) -> None:
    with contextlib.suppress(Undone), tenant_scope(acme.name):
        with tenant_scope(zenith.name):
            assert tenants_seen() == {zenith.name}
        assert tenants_seen() == {acme.name}
        with nobody():
            assert tenants_seen() == set()
        raise Undone
    assert tenants_seen() == set()


def test_a_rollback_cannot_bring_an_earlier_tenant_back(acme: Tenant, zenith: Tenant) -> None:
    with tenant_scope(acme.name):
        assert tenants_seen() == {acme.name}
    with tenant_scope(zenith.name):
        with contextlib.suppress(Undone), transaction.atomic():
            # Set within the transaction, and so undone with it.
            assert tenants_seen() == {zenith.name}
            raise Undone
        assert tenants_seen() == {zenith.name}


def test_a_rollback_to_a_savepoint_cannot_either(acme: Tenant, zenith: Tenant) -> None:
    with transaction.atomic(), tenant_scope(acme.name):
        assert tenants_seen() == {acme.name}
        with tenant_scope(zenith.name):
            with contextlib.suppress(Undone), transaction.atomic():
                assert tenants_seen() == {zenith.name}
                raise Undone
            assert tenants_seen() == {zenith.name}
        with pytest.raises(DatabaseError), transaction.atomic():
            raw("SELECT 1 / 0")
        assert tenants_seen() == {acme.name}


def test_a_commit_that_was_a_rollback_cannot_either(acme: Tenant, zenith: Tenant) -> None:
    with tenant_scope(acme.name):
        assert tenants_seen() == {acme.name}
    with tenant_scope(zenith.name):
        with transaction.atomic():
            assert tenants_seen() == {zenith.name}
            with contextlib.suppress(DatabaseError):
                raw("SELECT 1 / 0")
        assert tenants_seen() == {zenith.name}


def test_within_a_failed_transaction_the_error_is_the_statements_own(acme: Tenant) -> None:
    def go_on() -> None:
        with transaction.atomic():
            with contextlib.suppress(DatabaseError):
                raw("SELECT 1 / 0")
            with tenant_scope(acme.name):
                tenants_seen()

    with pytest.raises(DatabaseError, match="aborted"):
        go_on()
    with tenant_scope(acme.name):
        assert tenants_seen() == {acme.name}


def test_a_new_connection_in_the_middle_of_a_scope_sees_the_same(acme: Tenant) -> None:
    with tenant_scope(acme.name):
        pid = backend()
        connection.close()
        assert tenants_seen() == {acme.name}
        assert backend() != pid


def test_a_cursor_shows_what_its_user_may_see_and_not_who_opened_it(acme: Tenant, zenith: Tenant) -> None:
    with tenant_scope(acme.name), connection.cursor() as cursor:
        cursor.execute("SELECT tenant FROM comm_conversation")
        with tenant_scope(zenith.name):
            cursor.execute("SELECT tenant FROM comm_conversation")
            assert cursor.fetchall() == [(zenith.name,)]
    with tenant_scope(acme.name):
        tenants_seen()
    with connection.cursor() as cursor, cursor.copy("COPY comm_conversation TO STDOUT") as copy:
        # No statement went through Django.
        assert list(copy) == []


@pytest.mark.parametrize("block", [transaction.atomic, contextlib.nullcontext])
def test_rows_that_are_read_in_chunks_stay_those_of_their_query(
    acme: Tenant, zenith: Tenant, block: Callable[[], Any]
) -> None:
    with tenant_scope(acme.name):
        for _ in range(30):
            acme.new_conversation()
    with block():
        with tenant_scope(acme.name):
            rows = Conversation.objects.values_list("tenant", flat=True).iterator(chunk_size=2)
            first = next(rows)
        with tenant_scope(zenith.name):
            assert tenants_seen() == {zenith.name}
            assert {first, *rows} == {acme.name}


def test_a_stream_is_made_within_its_own_sight(acme: Tenant) -> None:
    made = each_within(Sight(acme.name), (Conversation.objects.count() for _ in range(3)))
    for _ in range(3):
        assert next(made) == 1
        assert tenants_seen() == set()
    assert list(made) == []


async def test_tasks_and_their_threads_see_their_own_tenant_however_they_mix(
    acme: Tenant, zenith: Tenant
) -> None:
    pool = ThreadPoolExecutor(max_workers=3)
    names = await asyncio.gather(
        *(asyncio.get_running_loop().run_in_executor(pool, lambda: Tenant().name) for _ in range(6))
    )

    async def work(name: str) -> None:
        with tenant_scope(name):
            for _ in range(10):
                in_pool = database_sync_to_async(tenants_seen, thread_sensitive=False, executor=pool)
                assert await in_pool() == {name}
                await asyncio.sleep(0)
                async with ThreadSensitiveContext():
                    assert [c.tenant async for c in Conversation.objects.all()] == [name]
                    await sync_to_async(connections.close_all)()

    await asyncio.gather(*map(work, names))
    assert await database_sync_to_async(tenants_seen, thread_sensitive=False, executor=pool)() == set()
    with tenant_scope(names[0]):
        # A bare thread takes no context along: it works for nobody until it says for whom.
        assert await asyncio.get_running_loop().run_in_executor(pool, tenants_seen) == set()
    at_once = threading.Barrier(3)
    for done in [pool.submit(lambda: (at_once.wait(20), connections.close_all())) for _ in range(3)]:
        done.result()
    pool.shutdown()


def test_a_thread_that_was_never_told_sees_nothing(acme: Tenant) -> None:
    found: list[Any] = []

    def look() -> None:
        found.append(tenants_seen())
        connections.close_all()

    with tenant_scope(acme.name):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert found == [set()]
