"""Items of a workflow, made of its rows."""

import pytest
from django.utils import timezone

from comm.chatbot.items import items_of
from comm.models import Conversation, Message, Turn

pytestmark = pytest.mark.django_db


def test_what_a_turn_used_is_not_there_before_its_answer() -> None:
    conversation = Conversation.objects.create(tenant="t", project="p", conversation_id="c", owner="o")
    turn = Turn.objects.create(
        turn_id="turn_1",
        conversation=conversation,
        number=1,
        status=Turn.Status.COMPLETED,
        finished_at=timezone.now(),
        outcome={"usage": {"input_tokens": 5}},
    )
    assert items_of(conversation) == [], "it ended after the messages were read"
    Message.objects.create(conversation=conversation, turn=turn, role=Message.Role.ASSISTANT, content="Done.")
    assert sorted(item["type"] for item in items_of(conversation)) == ["message", "stat"]
    turn.status = Turn.Status.ERROR
    turn.save()
    Message.objects.all().delete()
    assert [item["type"] for item in items_of(conversation)] == ["stat"], (
        "a failed turn need not have said anything"
    )
