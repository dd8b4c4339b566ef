"""A turn's timeline, and what an auditor does with a selection."""

import json

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from comm.envelope import Event
from comm.sinks import Published
from recorder.models import RecordedEnvelope, ReplayRequest
from recorder.rows import write_rows
from recorder.selection import Selection
from recorder.timeline import timeline_of
from tests.recorder.publishing import published

pytestmark = pytest.mark.django_db

LIST = "/admin/recorder/recordedenvelope/"


@pytest.fixture
def browser(client: Client) -> Client:
    viewer = User.objects.create_user("auditor", password="pw", is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client.force_login(viewer)
    return client


@pytest.fixture
def turn() -> None:
    """A turn with a step that begins and ends, two markers that take turns, and an end."""

    def step(seq: int, status: str) -> Published:
        return published(seq, type="chat.step", event=Event("a", "read", status, "Read <b>it</b>"))

    rows = [
        published(1, type="chat.start", data={"message": "Why?"}),
        step(2, "started"),
        published(3, marker="thinking", text="Hm "),
        published(4, marker="answer", text="Be"),
        published(5, marker="thinking", text="so."),
        step(6, "completed"),
        published(7, marker="answer", text="cause <script>"),
        published(8, type="chat.complete", data={"final_answer": "Because"}),
    ]
    assert write_rows(rows, []) == []


def test_text_is_folded_per_marker_and_steps_into_one_line(turn: None) -> None:
    timeline = timeline_of("turn-1")
    told = [(e.kind, e.title, e.status, e.text) for e in timeline.entries]
    assert told == [
        ("event", "chat.start", told[0][2], ""),
        ("step", "Read <b>it</b>", "completed", ""),
        ("text", "thinking", "", "Hm so."),
        ("text", "answer", "", "Because <script>"),
        ("event", "chat.complete", told[4][2], ""),
    ]
    assert timeline.events == 8
    assert [len(entry.rows) for entry in timeline.entries] == [1, 2, 2, 2, 1]
    assert timeline.entries[2].at_ms <= timeline.entries[2].until_ms <= timeline.duration_ms


def test_the_page_shows_the_turn_escaped_and_leads_to_its_envelopes(browser: Client, turn: None) -> None:
    page = browser.get(f"{LIST}turn/turn-1/")
    text = page.content.decode()
    assert page.status_code == 200
    assert "Because &lt;script&gt;" in text
    assert "<b>it</b>" not in text
    first = RecordedEnvelope.objects.in_order()[0]
    for link in (f"{LIST}{first.pk}/change/", f"{LIST}?turn_id=turn-1", f"{LIST}?session_of={first.pk}"):
        assert link in text
    assert f'href="{LIST}turn/turn-1/"' in browser.get(LIST).content.decode()


def test_a_turn_that_is_not_recorded_is_not_found_and_strangers_see_none(browser: Client, turn: None) -> None:
    assert browser.get(f"{LIST}turn/nobody/").status_code == 404
    browser.force_login(User.objects.create_user("staff", is_staff=True))
    assert browser.get(f"{LIST}turn/turn-1/").status_code == 403


def test_a_selection_is_exported_as_the_relay_messages_in_order(browser: Client, turn: None) -> None:
    chosen = list(RecordedEnvelope.objects.order_by("-seq").values_list("pk", flat=True)[:3])
    reply = browser.post(LIST, {"action": "export_jsonl", "_selected_action": chosen})
    assert reply["Content-Type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in b"".join(reply.streaming_content).decode().splitlines()]
    assert [line["id"].split("-")[1] for line in lines] == ["6", "7", "8"]
    assert set(lines[0]) == {"id", "target_sid", "session_id", "event", "data", "timestamp"}


def test_a_selection_is_handed_to_the_server_for_one_target(browser: Client, turn: None) -> None:
    chosen = list(RecordedEnvelope.objects.values_list("pk", flat=True)[:2])
    action = {"action": "replay_to_stream", "_selected_action": chosen}
    asked = browser.post(LIST, action)
    assert b"2 events will be shown again" in asked.content
    for wrong in ({}, {"stream_id": "a", "session_id": "b"}):
        refused = browser.post(LIST, {**action, "confirmed": "yes", "speed": "1", **wrong})
        assert b"one of the two" in refused.content
    assert not ReplayRequest.objects.exists()
    browser.post(LIST, {**action, "confirmed": "yes", "speed": "0", "stream_id": "tab-1"})
    request = ReplayRequest.objects.get()
    assert (request.stream_id, request.speed, request.total, request.requested_by) == (
        "tab-1",
        0,
        2,
        "auditor",
    )
    assert {row.pk for row in Selection.from_json(request.selection).rows()} == set(chosen)
    assert browser.get("/admin/recorder/replayrequest/").status_code == 200
