"""The feed of a chatbot turn: its lines are rows before the turn's end is, whatever the database does meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from channels.db import database_sync_to_async
from django.db import DataError, OperationalError
from django.test import override_settings

from comm.chatbot.feed import CHATDATA, context_of
from comm.chatbot.items import items_of
from comm.events import MESSAGE_TYPE, EventQueue, get_event_manager
from comm.models import Conversation, LogLine
from comm.turns import leases

from .conftest import QUICK, House

pytestmark = pytest.mark.django_db(transaction=True)

SHOWN = ["message", "log", "log", "message"]


@pytest.fixture(autouse=True)
async def seen_as_chatbot(house: House) -> AsyncIterator[None]:
    with override_settings(
        COMM={**QUICK, "TURN_OBSERVERS": {"chatbot": "comm.chatbot.feed.ChatbotFeed"}},
    ):
        yield
        # It is the process's: the next test has another event loop.
        await get_event_manager().aclose()


async def shown(house: House, bundle_id: str = "stepper") -> list[str]:
    """Run a turn; return the types of what was told up to its end, which must come."""
    conversation_id = "workflow-1"
    queue: EventQueue = await get_event_manager().queue_from_now(
        context_of(Conversation(tenant="t", project="p", conversation_id=conversation_id))
    )
    await house.say("two", conversation_id=conversation_id, bundle_id=bundle_id, channel="chatbot")
    kinds = []
    while True:
        event = await asyncio.wait_for(queue.get(), 15)
        if event["type"] != CHATDATA:
            return [*kinds, event["type"]]
        kinds.append(event["data"]["type"])


def failing(times: int, error: Exception, after: bool = False) -> Callable[..., Any]:
    """Return an insert that fails so often at first, or is done and then fails."""
    insert, left = LogLine.objects.bulk_create, [times]

    def create(*args: Any, **kwargs: Any) -> Any:
        done = insert(*args, **kwargs) if after or not left[0] else None
        if left[0]:
            left[0] -= 1
            raise error
        return done

    return create


async def test_whoever_sees_the_end_of_a_turn_sees_all_of_its_lines(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert = LogLine.objects.bulk_create

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.3)
        return insert(*args, **kwargs)

    monkeypatch.setattr(LogLine.objects, "bulk_create", slow)
    seen: list[list[str]] = []
    finish = leases.finish

    def note(*args: Any, **kwargs: Any) -> bool:
        done = finish(*args, **kwargs)
        seen.append([item["type"] for item in items_of(Conversation.objects.get())])
        return done

    monkeypatch.setattr(leases, "finish", note)
    assert await shown(house) == [*SHOWN, "complete"]
    assert seen == [SHOWN]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_database_that_is_away_for_a_moment_costs_no_line_and_no_end(
    house: House, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    away = failing(3, OperationalError("the connection was lost"), after)
    monkeypatch.setattr(LogLine.objects, "bulk_create", away)
    assert await shown(house) == [*SHOWN, "complete"]
    items = await database_sync_to_async(lambda: items_of(Conversation.objects.get()))()
    assert [item["type"] for item in items] == SHOWN


async def test_a_line_that_the_database_refuses_does_not_hide_the_end(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LogLine.objects, "bulk_create", failing(99, DataError("no such text")))
    assert await shown(house) == ["message", "message", "complete"]
    assert "steps could not be logged" in caplog.text


async def test_a_line_with_what_no_database_holds_is_shown(house: House) -> None:
    assert await shown(house, bundle_id="odd") == ["message", "log", "stat", "message", "complete"]
    line = await LogLine.objects.aget()
    assert (line.message, line.step) == ("Title\ufffd", "s\ufffd")


async def test_a_channel_layer_that_is_away_for_a_moment_costs_no_item_and_no_end(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, refused = house.layer.group_send, []

    async def refusing(group: str, message: dict[str, Any]) -> Any:
        if message["type"] == MESSAGE_TYPE and len(refused) < 3:
            refused.append(group)
            raise ConnectionError("the layer is away")
        return await send(group, message)

    monkeypatch.setattr(house.layer, "group_send", refusing)
    assert await shown(house) == [*SHOWN, "complete"]
    assert len(refused) == 3
