"""What the wall shows and lets write, on a real PostgreSQL, as the role that owns nothing."""

import uuid

import pytest
from django.db import ProgrammingError, connection
from django.db.models import Model

from comm import wall
from comm.models import Attachment, Conversation, LogLine, Message, Turn
from comm.tenants import NOBODY, current_sight, every_tenant, tenant_scope
from comm.turns import acceptance
from comm.turns.acceptance import accept
from comm.turns.incoming import Caller, IncomingMessage
from recorder.models import RecordedEnvelope, RecordedGap, ReplayRequest
from recorder.rows import write_rows
from tests.comm.wall.tenants import ALL, NONE, Tenant, raw, tenants_seen
from tests.recorder.publishing import published
from tests.walled import WalledDatabase

pytestmark = pytest.mark.wire

OF_TENANTS: list[type[Model]] = [Conversation, Turn, Message, LogLine, Attachment, RecordedEnvelope]
OF_NO_TENANT: list[type[Model]] = [RecordedGap, ReplayRequest]


def test_every_table_that_should_stand_behind_the_wall_does(acme: Tenant) -> None:
    assert set(wall.walled_models()) == {*OF_TENANTS, *OF_NO_TENANT}
    assert wall.gap_in_wall(connection) == ""
    assert wall.walled_tables(connection) == {m._meta.db_table for m in wall.walled_models()}


def test_a_tenant_sees_its_own_rows_and_no_others(acme: Tenant, zenith: Tenant) -> None:
    with tenant_scope(acme.name):
        assert (acme.count(), zenith.count()) == (ALL, NONE)
        for model in OF_TENANTS:
            assert raw(f"SELECT count(*) FROM {model._meta.db_table}") == [(1,)]
        assert raw("SELECT tenant FROM comm_conversation") == [(acme.name,)]
    with tenant_scope(zenith.name):
        assert (acme.count(), zenith.count()) == (NONE, ALL)
        assert raw("SELECT id FROM comm_message WHERE id = %s", acme.message.pk) == []


def test_every_tenant_sees_all_of_them_and_what_belongs_to_none(acme: Tenant, zenith: Tenant) -> None:
    with every_tenant():
        assert (acme.count(), zenith.count()) == (ALL, ALL)
        gap = RecordedGap.objects.create(session_id=acme.name, events=1)
        request = ReplayRequest.objects.create(selection={})
        assert RecordedGap.objects.filter(pk=gap.pk).exists()
    with tenant_scope(acme.name):
        assert RecordedGap.objects.count() == ReplayRequest.objects.count() == 0
        with pytest.raises(ProgrammingError, match="row-level security"):
            ReplayRequest.objects.create(selection={})
    assert request.pk


def test_without_a_tenant_nothing_is_seen_changed_or_deleted(acme: Tenant) -> None:
    assert current_sight() == NOBODY
    for model in wall.walled_models():
        assert raw(f"SELECT count(*) FROM {model._meta.db_table}") == [(0,)]
    assert Conversation.objects.update(title="mine now") == 0
    assert raw("WITH gone AS (DELETE FROM comm_message RETURNING 1) SELECT count(*) FROM gone") == [(0,)]
    with pytest.raises(ProgrammingError, match="row-level security"):
        Conversation.objects.create(tenant=acme.name, conversation_id=uuid.uuid4().hex)
    with pytest.raises(ProgrammingError, match="row-level security"):
        Conversation.objects.create(tenant="", conversation_id=uuid.uuid4().hex)
    with pytest.raises(ProgrammingError, match="row-level security"):
        Message.objects.create(conversation_id=acme.conversation.pk, role="user")
    with pytest.raises(ProgrammingError, match="row-level security"):
        write_rows([published(2, session_id=acme.name, tenant=acme.name)], [])
    with tenant_scope(acme.name):
        assert acme.count() == ALL


def test_a_tenant_cannot_write_into_another_or_give_its_rows_away(acme: Tenant, zenith: Tenant) -> None:
    with tenant_scope(acme.name):
        for write in (
            lambda: Message.objects.create(conversation_id=zenith.conversation.pk, role="user"),
            lambda: Attachment.objects.create(message_id=zenith.message.pk, filename="b", size=1),
            lambda: Conversation.objects.filter(tenant=acme.name).update(tenant=zenith.name),
            lambda: Turn.objects.filter(pk=acme.turn.pk).update(conversation=zenith.conversation.pk),
            lambda: raw("TRUNCATE comm_logline"),
        ):
            with pytest.raises(ProgrammingError, match=r"row-level security|permission denied"):
                write()
        assert Turn.objects.filter(pk=zenith.turn.pk).update(status="error") == 0


@pytest.mark.parametrize("name", ["*", "on", "every", "", "' OR true --", "acmé 名"])
def test_no_name_of_a_tenant_means_all(acme: Tenant, name: str) -> None:
    with tenant_scope(name):
        assert acme.count() == NONE
        assert tenants_seen() <= {name}


def test_the_owner_sees_everything_so_that_it_can_migrate_and_dump(
    database: WalledDatabase, acme: Tenant
) -> None:
    found = database.all(f"SELECT count(*) FROM comm_conversation WHERE tenant = '{acme.name}'")
    assert found == [(1,)]


def incoming(tenant: str) -> IncomingMessage:
    return IncomingMessage(Caller("s", "ada"), tenant=tenant, project="p", text="hello")


def test_accepting_a_message_works_for_its_tenant(acme: Tenant, zenith: Tenant) -> None:
    ack = accept(incoming(acme.name))
    with tenant_scope(zenith.name):
        assert not Turn.objects.filter(turn_id=ack["turn_id"]).exists()
    with tenant_scope(acme.name):
        assert Turn.objects.get(turn_id=ack["turn_id"]).conversation.tenant == acme.name


def test_a_turn_id_that_another_tenant_has_is_not_given_out(
    acme: Tenant, zenith: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = uuid.uuid4().hex
    # More that are taken than an acceptance has tries after a conflict.
    ids = iter([zenith.turn.turn_id] * 5 + [free])
    monkeypatch.setattr(acceptance, "mint_turn_id", lambda: next(ids))
    assert accept(incoming(acme.name))["turn_id"] == free
