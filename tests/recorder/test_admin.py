"""The recordings in the admin: found, read, followed, and never changed."""

from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from comm.envelope import Event
from comm.models import Conversation, Turn
from comm.sinks import Published
from recorder import browsing
from recorder.models import RecordedEnvelope, RecordedGap, RecorderRun
from recorder.rows import write_rows
from tests.recorder.publishing import EPOCH, published

pytestmark = pytest.mark.django_db

LIST = "/admin/recorder/recordedenvelope/"
DAY_MS = 86_400_000
SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def browser(client: Client) -> Client:
    """Somebody who may view the recordings, and no more."""
    viewer = User.objects.create_user("auditor", password="pw", is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client.force_login(viewer)
    return client


@pytest.fixture
def listed(browser: Client) -> Callable[..., list[RecordedEnvelope]]:
    """Open the list with a query; return the rows that it shows, in its order."""

    def listed(**query: Any) -> list[RecordedEnvelope]:
        response = browser.get(LIST, query)
        assert response.status_code == 200
        return list(response.context["cl"].result_list)

    return listed


@pytest.fixture
def record() -> Callable[..., None]:
    """Write envelopes as the sink does."""

    def record(*offered: Published) -> None:
        assert write_rows(offered, []) == []

    return record


@pytest.fixture
def two_turns(record: Callable[..., None]) -> None:
    """Two short turns of two users in two tenants."""
    record(
        published(1, type="chat.start", data={"message": "What is <b>this</b>?"}, session_id=SECRET),
        published(2, session_id=SECRET),
        published(3, session_id=SECRET, marker="canvas"),
        published(4, session_id=SECRET, marker="house-made"),
        published(
            1, session_id="other-session-of-bob", turn_id="turn-2", conversation_id="conversation-2",
            user="bob", tenant="umbrella", type="accounting.usage",
            event=Event("counter", "accounting", "completed", "Usage"),
        ),
    )  # fmt: skip


def test_the_list_shows_what_happened_newest_first(two_turns: None, listed: Any, browser: Client) -> None:
    assert [(row.turn_id, row.seq) for row in listed()] == [
        ("turn-1", 4), ("turn-1", 3), ("turn-1", 2), ("turn-2", 1), ("turn-1", 1),
    ]  # fmt: skip
    page = browser.get(LIST).content.decode()
    shown = ("2026-02-26 21:14:05.269", "chat_delta", "chat.delta", "canvas", "writer", "&lt;2&gt;", "turn-1")
    assert [part for part in shown if part not in page] == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"route": "chat_start"}, 1),
        ({"type": "accounting.usage"}, 1),
        ({"marker": "canvas"}, 1),
        ({"marker": "*"}, 1),
        ({"tenant": "acme"}, 4),
        ({"user": "bob"}, 1),
        ({"turn_id": "turn-1"}, 4),
        ({"conversation_id": "conversation-2"}, 1),
        ({"session_of": "0"}, 0),
        ({"session_of": "none"}, 0),
        ({"session_of": "9" * 30}, 0),
        ({"tenant": "acme", "marker": "canvas"}, 1),
        ({"timestamp__year": "2026", "timestamp__month": "2"}, 5),
        ({"timestamp__year": "2025"}, 0),
    ],
)
def test_filters_narrow_the_list_down(
    two_turns: None, listed: Any, query: dict[str, str], found: int
) -> None:
    assert len(listed(**query)) == found


@pytest.mark.parametrize(
    ("term", "found"),
    [("turn-2", 1), ("conversation-1", 4), (SECRET, 4), ("bob", 1), ("chat.delta", 3), ("turn", 0)],
)
def test_search_finds_ids_users_and_types(two_turns: None, listed: Any, term: str, found: int) -> None:
    assert len(listed(q=term)) == found


def test_filters_offer_the_values_that_there_are(two_turns: None, browser: Client) -> None:
    filters = {spec.title: spec.lookup_choices for spec in browser.get(LIST).context["cl"].filter_specs if
               hasattr(spec, "lookup_choices") and spec.title != "timestamp"}  # fmt: skip
    assert filters["type"] == [(t, t) for t in ("accounting.usage", "chat.delta", "chat.start")]
    assert filters["tenant"] == [("acme", "acme"), ("umbrella", "umbrella")]
    assert filters["user"] == [("ada", "ada"), ("bob", "bob")]
    assert "turn" not in filters


def test_a_filter_offers_a_chosen_value_that_is_not_among_the_first(record: Any, browser: Client) -> None:
    record(*(published(seq, user=f"user-{seq:03}") for seq in range(1, 61)))
    page = browser.get(LIST, {"user": "user-060"})
    user = next(spec for spec in page.context["cl"].filter_specs if spec.title == "user")
    assert len(user.lookup_choices) == 51
    assert user.lookup_choices[-1] == ("user-060", "user-060")


def test_an_event_leads_to_all_events_of_its_turn(two_turns: None, browser: Client, listed: Any) -> None:
    row = RecordedEnvelope.objects.get(turn_id="turn-1", seq=3)
    page = browser.get(f"{LIST}{row.pk}/change/").content.decode()
    assert f'href="{LIST}?turn_id=turn-1"' in page
    assert f'href="{LIST}?conversation_id=conversation-1"' in page
    assert f'href="{LIST}?session_of={row.pk}"' in page
    assert [found.seq for found in listed(turn_id="turn-1")] == [1, 2, 3, 4]
    assert [found.seq for found in listed(session_of=row.pk)] == [1, 2, 3, 4]


def test_an_event_leads_to_its_turn_where_there_is_one(two_turns: None, browser: Client) -> None:
    conversation = Conversation.objects.create(
        tenant="acme", project="shop", conversation_id="conversation-1", owner="ada", session_id=SECRET
    )
    turn = Turn.objects.create(turn_id="turn-1", conversation=conversation, number=1, session_id=SECRET)
    with_turn, without = (RecordedEnvelope.objects.filter(turn_id=f"turn-{n}").first() for n in (1, 2))
    url = f"/admin/comm/turn/{turn.pk}/change/"
    assert f'<a href="{url}">' in browser.get(f"{LIST}{with_turn.pk}/change/").content.decode()
    assert browser.get(url).status_code == 200
    assert b"the turn itself" not in browser.get(f"{LIST}{without.pk}/change/").content


def test_the_envelope_is_readable_and_harmless(record: Any, browser: Client) -> None:
    record(published(1, text='<script>alert("1")</script> größer', session_id=SECRET, extra={"of": SECRET}))
    page = browser.get(f"{LIST}{RecordedEnvelope.objects.get().pk}/change/").content.decode()
    assert "<script>alert" not in page
    shown = unescape(page.split('<pre class="recorded-envelope">')[1].split("</pre>")[0])
    assert shown.startswith('{\n  "type": "chat.delta",\n')
    assert '"text": "<script>alert(\\"1\\")</script> größer"' in shown


def test_no_page_gives_a_session_away(two_turns: None, browser: Client) -> None:
    row = RecordedEnvelope.objects.filter(session_id=SECRET).first()
    RecordedGap.objects.create(session_id=SECRET, first="1-1", last="1-2", events=2, reason="full")
    gaps = "/admin/recorder/recordedgap/"
    for url in (LIST, f"{LIST}{row.pk}/change/", f"{LIST}?session_of={row.pk}", gaps):
        page = browser.get(url).content.decode()
        assert SECRET[:8] in page
        assert SECRET not in page


@pytest.mark.parametrize("model", ["recordedenvelope", "recordedgap", "recorderrun"])
def test_nothing_can_be_added_changed_or_deleted_not_even_by_a_superuser(
    model: str, client: Client, record: Any
) -> None:
    record(published(1))
    RecordedGap.objects.create(session_id="s", first="1-1", last="1-2", events=2, reason="full")
    RecorderRun.objects.create(started_ms=EPOCH)
    client.force_login(User.objects.create_superuser("root", password="pw"))
    rows = {"recordedenvelope": RecordedEnvelope, "recordedgap": RecordedGap, "recorderrun": RecorderRun}
    row = rows[model].objects.get()
    base = f"/admin/recorder/{model}/"
    assert client.get(base).status_code == 200
    detail = client.get(f"{base}{row.pk}/change/")
    assert detail.status_code == 200
    assert b'type="submit"' not in detail.content.replace(b'<button type="submit">Log out</button>', b"")
    assert client.get(f"{base}add/").status_code == 403
    assert client.post(f"{base}{row.pk}/change/", {"events": 1}).status_code == 403
    assert client.post(f"{base}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    chosen = {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"}
    client.post(base, chosen)
    assert rows[model].objects.count() == 1


def test_who_may_not_view_recordings_sees_none(client: Client, record: Any) -> None:
    record(published(1))
    client.force_login(User.objects.create_user("clerk", password="pw", is_staff=True))
    assert client.get(LIST).status_code == 403
    assert client.get(f"{LIST}{RecordedEnvelope.objects.get().pk}/change/").status_code == 403


def test_the_date_hierarchy_leads_down_to_a_day(record: Any, browser: Client) -> None:
    for number, days in enumerate((-60, -59, 0, 1, 40)):
        record(published(number + 1, after_ms=days * DAY_MS))

    def choices(**query: str) -> list[str]:
        page = browser.get(LIST, query).content.decode()
        _, _, hierarchy = page.partition('<nav class="toplinks">')
        links = hierarchy.partition("</nav>")[0].split("</a>")[:-1]
        return [unescape(link.rpartition(">")[2]) for link in links]

    assert choices() == ["2025", "2026"]
    assert choices(timestamp__year="2026") == ["‹ All dates", "February 2026", "April 2026"]
    assert choices(timestamp__year="2026", timestamp__month="2") == ["‹ 2026", "February 26", "February 27"]
    assert choices(user="nobody") == []


def test_pages_end_where_counting_ends(record: Any, browser: Client, monkeypatch: Any) -> None:
    monkeypatch.setattr(browsing, "LISTED_ROWS", 120)
    monkeypatch.setattr("recorder.admin.RecordedEnvelopeAdmin.listed_rows", 120)
    record(*(published(seq) for seq in range(1, 151)))
    page = browser.get(LIST, {"p": 2})
    assert len(page.context["cl"].result_list) == 20
    assert "These are the first 120 that fit" in page.content.decode()
    assert "that fit" not in browser.get(LIST, {"type": "nothing"}).content.decode()


def test_the_list_asks_no_question_that_reads_every_row(record: Any, browser: Client) -> None:
    """A plan with a full scan takes seconds on a million rows."""
    record(*(published(seq, after_ms=seq * DAY_MS) for seq in range(1, 200)))
    for query in ("", "?turn_id=turn-1", "?q=turn-1", "?type=chat.delta", "?timestamp__year=2026"):
        with CaptureQueriesContext(connection) as captured:
            assert browser.get(LIST + query).status_code == 200
        asked = [question["sql"] for question in captured if "recorder_recordedenvelope" in question["sql"]]
        assert len(asked) > 5
        assert [sql for sql in asked if "LIMIT" not in sql or "DISTINCT" in sql] == []
