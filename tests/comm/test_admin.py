"""Conversations, turns and messages in the admin."""

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from comm.models import Attachment, Conversation, Message, Turn

pytestmark = pytest.mark.django_db


@pytest.fixture
def admin() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("auditor"))
    return client


@pytest.fixture
def turn() -> Turn:
    conversation = Conversation.objects.create(
        tenant="t",
        project="p",
        conversation_id="c1",
        owner="o",
        session_id="s",
        bundle_id="demo",
        title="<b>Hi</b>",
    )
    turn = Turn.objects.create(
        turn_id="turn_1", conversation=conversation, number=1, bundle_id="demo", session_id="s",
        request={"text": "<script>alert(1)</script>"},
    )  # fmt: skip
    message = Message.objects.create(conversation=conversation, turn=turn, role="user", content="hello there")
    Attachment.objects.create(message=message, filename="a.csv", mime="text/csv", size=3, path="x/y")
    return turn


@pytest.mark.parametrize("model", ["conversation", "turn", "message"])
def test_lists_show_filter_and_search(admin: Client, turn: Turn, model: str) -> None:
    url = reverse(f"admin:comm_{model}_changelist")
    page = admin.get(url)
    assert page.status_code == 200
    assert b"1 " + model.encode() in page.content
    assert admin.get(url, {"q": "nothing like it"}).status_code == 200


def test_a_turn_leads_to_its_conversation_and_shows_its_request_escaped(admin: Client, turn: Turn) -> None:
    page = admin.get(reverse("admin:comm_turn_change", args=[turn.pk])).content.decode()
    assert reverse("admin:comm_conversation_change", args=[turn.conversation_id]) in page
    assert "&lt;script&gt;" in page
    assert "<script>alert(1)" not in page
    assert "<b>Hi</b>" not in page


def test_a_conversation_lists_its_turns_and_a_message_its_files(admin: Client, turn: Turn) -> None:
    conversation = admin.get(reverse("admin:comm_conversation_change", args=[turn.conversation_id]))
    assert b"turn_1" in conversation.content
    message = admin.get(reverse("admin:comm_message_change", args=[turn.messages.get().pk]))
    assert b"a.csv" in message.content


@pytest.mark.parametrize("model", ["conversation", "turn", "message"])
def test_nothing_can_be_added_changed_or_deleted(admin: Client, turn: Turn, model: str) -> None:
    assert admin.get(reverse(f"admin:comm_{model}_add")).status_code == 403
    row = {"conversation": turn.conversation, "turn": turn, "message": turn.messages.get()}[model]
    assert admin.post(reverse(f"admin:comm_{model}_change", args=[row.pk]), {}).status_code == 403
    assert (
        admin.post(reverse(f"admin:comm_{model}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
    )
