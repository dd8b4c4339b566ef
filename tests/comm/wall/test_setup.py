"""Putting the wall up: the command, the checks, and what it costs."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from django.core.checks import run_checks
from django.db import connection, connections, transaction
from django.test import override_settings

from comm import wall
from comm.models import Conversation, Message, Turn
from comm.tenants import every_tenant, tenant_scope
from recorder.models import RecordedEnvelope
from recorder.rows import write_rows
from tests.comm.wall.tenants import ALL, COMM, NONE, Tenant, as_default, connect_as, tenants_seen
from tests.recorder.publishing import published
from tests.walled import WalledDatabase

pytestmark = pytest.mark.wire


def settings_sent(work: Callable[[], Any]) -> int:
    """Count how often a piece of work tells PostgreSQL whose rows it sees."""
    sent = []
    before = connection.connection.cursor_factory.execute
    try:
        connection.connection.cursor_factory.execute = lambda self, query, *rest, **named: (
            sent.append(query) or before(self, query, *rest, **named)
        )
        work()
    finally:
        connection.connection.cursor_factory.execute = before
    return sum("set_config" in str(query) for query in sent)


def test_the_variable_is_sent_when_the_sight_changes_and_only_then(acme: Tenant, zenith: Tenant) -> None:
    def many(tenant: Tenant) -> None:
        with tenant_scope(tenant.name):
            for _ in range(5):
                tenants_seen()
                with transaction.atomic():
                    tenants_seen()

    assert settings_sent(lambda: many(acme)) == 1
    assert settings_sent(lambda: many(acme)) == 0
    assert settings_sent(lambda: many(zenith)) == 1


def plan_of(rows: Any) -> str:
    return str(rows.explain())


def test_the_policies_leave_the_indexes_in_use(
    database: WalledDatabase, acme: Tenant, zenith: Tenant
) -> None:
    with tenant_scope(acme.name):
        Conversation.objects.bulk_create(
            Conversation(tenant=acme.name, project="p", conversation_id=uuid.uuid4().hex, owner=f"user-{n}")
            for n in range(3000)
        )
        owned = list(Conversation.objects.values_list("pk", flat=True))
        Message.objects.bulk_create(Message(conversation_id=pk, role="user") for pk in owned)
        rows = [
            published(seq, session_id=f"session-{seq % 50}", epoch=seq, tenant=acme.name, turn_id=f"t{seq}")
            for seq in range(5000)
        ]
        write_rows(rows, [])
    for table in ("comm_conversation", "comm_message", "recorder_recordedenvelope"):
        analyze(database, table)
    questions = [
        Message.objects.filter(conversation_id=owned[7]).order_by("id"),
        Turn.objects.filter(conversation_id=owned[7], status="running"),
        Conversation.objects.filter(owner="user-7", tenant=acme.name, project="p").order_by(
            "-last_activity_at"
        ),
        RecordedEnvelope.objects.filter(turn_id="t77").order_by("epoch", "seq"),
        RecordedEnvelope.objects.filter(session_id="session-7", epoch=7, seq__gt=3).order_by("epoch", "seq")[
            :9
        ],
        RecordedEnvelope.objects.filter(timestamp__lt=datetime(2020, 1, 1, tzinfo=UTC)).order_by(
            "-timestamp", "-id"
        )[:9],
    ]
    for sight in (tenant_scope(acme.name), every_tenant()):
        with sight:
            for question in questions:
                plan = plan_of(question)
                assert "Seq Scan on comm_conversation" not in plan, plan
                assert "Seq Scan on comm_message" not in plan, plan
                assert "Seq Scan on recorder_recordedenvelope" not in plan, plan
                assert "hashed" not in plan, plan


def analyze(database: WalledDatabase, table: str) -> None:
    """Let the owner count what is there: the restricted role may not."""
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        owner.execute(f"ANALYZE {table}".encode())


def test_the_command_may_be_run_again_and_takes_the_wall_down(database: WalledDatabase, acme: Tenant) -> None:
    again = database.manage("tenant_wall", "--role", database.role, url=database.owner_url)
    assert again.returncode == 0, again.stderr
    assert acme.count() == NONE
    down = database.manage("tenant_wall", "--remove", url=database.owner_url)
    try:
        assert "The wall is down" in down.stdout, down.stderr
        assert acme.count() == ALL
        assert "comm_attachment" in wall.gap_in_wall(connection)
    finally:
        up = database.manage("tenant_wall", "--role", database.role, url=database.owner_url)
    assert "comm_conversation" in up.stdout, up.stderr
    assert wall.gap_in_wall(connection) == ""


def test_the_role_may_make_temporary_tables_where_not_everybody_may(database: WalledDatabase) -> None:
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        name = owner.execute("SELECT quote_ident(current_database())").fetchone()[0]  # type: ignore[index]
        owner.execute(f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC".encode())
        try:
            with connection.cursor() as cursor:
                cursor.execute("CREATE TEMPORARY TABLE incoming (n int)")
                cursor.execute("DROP TABLE incoming")
        finally:
            owner.execute(f"GRANT TEMPORARY ON DATABASE {name} TO PUBLIC".encode())


def test_the_command_refuses_a_role_that_the_wall_does_not_hold(database: WalledDatabase) -> None:
    owner = database.owner_url.split("//")[1].split(":")[0]
    superuser = database.superuser_url.split("//")[1].split("@")[0].split(":")[0]
    for role, reason in ((owner, "owns comm_"), (superuser, "is a superuser"), ("nobody_here", "no role")):
        refused = database.manage("tenant_wall", "--role", role, url=database.owner_url)
        assert refused.returncode == 1
        assert reason in refused.stderr
    not_owner = database.manage("tenant_wall", "--role", database.role)
    assert not_owner.returncode == 1
    assert "nothing was changed" in not_owner.stderr


def test_the_deploy_check_tells_whether_the_wall_holds(database: WalledDatabase) -> None:
    def found() -> list[str]:
        messages = run_checks(tags=["database"], include_deployment_checks=True, databases=["default"])
        return [f"{message.id}: {message.msg}" for message in messages]

    assert found() == []
    with override_settings(COMM={**COMM, "TENANT_WALL": False}):
        assert any(told.startswith("comm.W001") for told in found())
    with as_default(connect_as(database.owner_url)):
        assert any("comm.E008" in told and "owns comm_" in told for told in found())
    with as_default(connect_as(database.superuser_url)):
        assert any("comm.E008" in told and "superuser" in told for told in found())


def test_a_wall_without_postgresql_is_told_at_once(tmp_path: Any) -> None:
    config = {**connections.settings["default"], "ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    with as_default(config):
        told = [message for message in run_checks() if message.id == "comm.E007"]
        assert len(told) == 1
        assert "sqlite3" in told[0].msg
        assert "not PostgreSQL" in wall.gap_in_wall(connection)
    assert not [message for message in run_checks() if message.id == "comm.E007"]


def test_without_the_setting_the_stock_connection_and_no_middleware_are_used(
    database: WalledDatabase,
) -> None:
    ask = (
        "from django.conf import settings as s; from django.db import connections; c = connections['default'];"
        "print(type(c).__module__, 'relay.tenants.TenantMiddleware' in s.MIDDLEWARE, len(c.execute_wrappers))"
    )
    off = database.manage("shell", "-v", "0", "-c", ask, TENANT_WALL="")
    assert off.stdout.split() == ["django.db.backends.postgresql.base", "False", "0"], off.stderr
    on = database.manage("shell", "-v", "0", "-c", ask)
    assert on.stdout.split() == ["comm.postgresql.base", "True", "1"], on.stderr
