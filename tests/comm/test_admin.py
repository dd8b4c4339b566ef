"""Conversations, turns and messages in the admin."""

import pytest
from django.contrib.auth.models import Permission, User
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.test import Client
from django.urls import reverse
from pytest_django.fixtures import Settings

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
def test_nothing_can_be_added_or_changed(admin: Client, turn: Turn, model: str) -> None:
    assert admin.get(reverse(f"admin:comm_{model}_add")).status_code == 403
    row = {"conversation": turn.conversation, "turn": turn, "message": turn.messages.get()}[model]
    assert admin.post(reverse(f"admin:comm_{model}_change", args=[row.pk]), {}).status_code == 403


@pytest.mark.parametrize("model", ["turn", "message"])
def test_parts_of_a_conversation_are_not_deleted(admin: Client, turn: Turn, model: str) -> None:
    row = {"turn": turn, "message": turn.messages.get()}[model]
    url = reverse(f"admin:comm_{model}_delete", args=[row.pk])
    assert admin.post(url, {"post": "yes"}).status_code == 403
    assert Message.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_conversation_is_deleted_as_a_whole_with_its_files(
    admin: Client, turn: Turn, settings: Settings
) -> None:
    backend = {"BACKEND": "django.core.files.storage.InMemoryStorage"}
    settings.STORAGES = {**settings.STORAGES, "attachments": backend}
    path = storages["attachments"].save("x/y", ContentFile(b"a,b"))
    Attachment.objects.update(path=path)
    url = reverse("admin:comm_conversation_delete", args=[turn.conversation_id])
    assert b"a.csv" in admin.get(url).content
    assert admin.post(url, {"post": "yes"}).status_code == 302
    assert not Turn.objects.exists()
    assert not storages["attachments"].exists(path)


def test_whoever_may_only_look_deletes_nothing(turn: Turn) -> None:
    viewer = Client()
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_conversation"))
    viewer.force_login(user)
    url = reverse("admin:comm_conversation_delete", args=[turn.conversation_id])
    assert viewer.post(url, {"post": "yes"}).status_code == 403
    assert Conversation.objects.exists()
