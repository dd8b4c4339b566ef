"""Tenants with a row in every table, and what the present sight sees of them."""

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import environ
from django.conf import settings
from django.db import connection, connections

from comm import wall
from comm.models import Attachment, Conversation, LogLine, Message, Turn
from comm.tenants import tenant_scope
from recorder.models import RecordedEnvelope
from recorder.rows import write_rows
from tests.recorder.publishing import published

COMM = {"TENANT_WALL": True, "BUNDLES": settings.COMM["BUNDLES"]}
ALL, NONE = [1] * 6, [0] * 6
"""What `Tenant.count` counts: one row of each table, or none."""


def connect_as(url: str, engine: str = wall.BACKEND) -> dict[str, Any]:
    """Return the settings of a database at a URL, complete as Django completes them."""
    named = environ.Env.db_url_config(url)
    return {**connections.settings["default"], "OPTIONS": {}, "CONN_MAX_AGE": None, **named, "ENGINE": engine}


@contextlib.contextmanager
def as_default(config: dict[str, Any]) -> Iterator[None]:
    """Let `default` be another database, in this thread and in those that connect meanwhile."""
    settings_before, before = connections.settings["default"], connections["default"]
    connections.settings["default"] = config
    connections["default"] = connections.create_connection("default")
    try:
        yield
    finally:
        connections["default"].close()
        connections.settings["default"], connections["default"] = settings_before, before


class Tenant:
    """A tenant of its own, with a row in every table."""

    def __init__(self) -> None:
        self.name = f"tenant-{uuid.uuid4().hex}"
        with tenant_scope(self.name):
            self.conversation = self.new_conversation()
            self.turn = Turn.objects.create(
                turn_id=uuid.uuid4().hex, conversation=self.conversation, number=1, status="completed"
            )
            self.message = Message.objects.create(conversation=self.conversation, role="user", content="x")
            LogLine.objects.create(
                log_id=uuid.uuid4().hex, conversation=self.conversation, turn=self.turn, message="x",
                created_at=self.message.created_at,
            )  # fmt: skip
            self.attachment = Attachment.objects.create(message=self.message, filename="a", size=1)
            write_rows([published(1, session_id=self.name, tenant=self.name)], [])

    def new_conversation(self) -> Conversation:
        return Conversation.objects.create(
            tenant=self.name, project="p", conversation_id=uuid.uuid4().hex, owner="ada"
        )

    def count(self) -> list[int]:
        """How many rows of each table this tenant has, as the present sight sees them."""
        mine = [
            Conversation.objects.filter(tenant=self.name),
            Turn.objects.filter(pk=self.turn.pk),
            Message.objects.filter(pk=self.message.pk),
            LogLine.objects.filter(turn_id=self.turn.pk),
            Attachment.objects.filter(pk=self.attachment.pk),
            RecordedEnvelope.objects.filter(session_id=self.name),
        ]
        return [rows.count() for rows in mine]


def raw(statement: str, *values: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return list(cursor.fetchall())


def tenants_seen() -> set[str]:
    return set(Conversation.objects.values_list("tenant", flat=True))
