"""What the admin says of the recording itself: what is missing, whose lives were recorded, how far it is behind."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from comm.groups import project_group
from recorder.lag import described
from recorder.lives import LOST, note_life
from recorder.models import RecordedGap, RecorderRun
from recorder.store import Consumer, Lag, Life
from tests.contract.backends import redis_url
from tests.recorder.streaming import Stream

pytestmark = pytest.mark.django_db

LIST = "/admin/recorder/recordedenvelope/"
SECRET = "0123456789abcdef0123456789abcdef"
BORN = 1_764_111_600_000


@pytest.fixture
def browser(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("auditor", password="pw"))
    return client


def cells(browser: Client, model: str) -> str:
    page = browser.get(f"/admin/recorder/{model}/")
    assert page.status_code == 200
    return page.content.decode()


def test_a_loss_of_the_whole_store_reads_as_a_time_of_every_session(browser: Client) -> None:
    note_life(Life(BORN, BORN, True, (0, 0)))
    note_life(Life(BORN + 60_250, BORN + 60_250, True, (0, 0)))
    page = cells(browser, "recordedgap")
    assert "every session" in page
    assert "2025-11-25 23:00:00.000 UTC" in page
    assert "2025-11-25 23:01:00.250 UTC" in page
    assert "nobody knows how many" in page
    assert LOST in page


def test_gaps_of_a_session_and_of_a_project_read_as_theirs(browser: Client) -> None:
    RecordedGap.objects.create(session_id=SECRET, first="7-1", last="7-4", events=4, reason="full")
    RecordedGap.objects.create(
        session_id=project_group("acme", "shop"), first="", last="", events=3, reason="full"
    )
    page = cells(browser, "recordedgap")
    for part in ("01234567…", ">7-1<", ">7-4<", ">4<", "events of a project", ">3<"):
        assert part in page
    for gap in RecordedGap.objects.all():
        detail = browser.get(f"/admin/recorder/recordedgap/{gap.pk}/change/").content.decode()
        assert SECRET not in detail


def test_lives_say_what_lived_and_until_when_all_is_recorded(browser: Client) -> None:
    RecorderRun.objects.create(started_ms=BORN - 5000, ended_ms=BORN - 4000, ended_cleanly=True)
    RecorderRun.objects.create(started_ms=BORN, store_born_ms=BORN, recorded_until_ms=BORN + 30_500)
    page = cells(browser, "recorderrun")
    assert "a server" in page
    assert "the store in Redis" in page
    assert "2025-11-25 23:00:30.500" in page
    assert "clean: everything is recorded" in page
    assert "it goes on" in page


# --- the lag ----------------------------------------------------------------------------------------


@pytest.fixture
def stream(settings: Any) -> Iterator[Stream]:
    """A stream that the admin looks at."""
    made = Stream(redis_url())
    settings.RECORDER = {"REDIS_URL": made.url, "REDIS_PREFIX": made.prefix}
    yield made
    made.lose_everything()
    made.client.close()


def lag_line(browser: Client) -> str:
    page = browser.get(LIST).content.decode()
    return page.split('<p class="recorder-lag">')[1].split("</p>")[0] if "recorder-lag" in page else ""


def test_without_a_recorder_process_the_list_says_nothing_of_it(browser: Client, settings: Any) -> None:
    settings.RECORDER = {}
    assert lag_line(browser) == ""


def test_the_list_says_how_many_of_its_rows_are_still_to_come(browser: Client, stream: Stream) -> None:
    for _ in range(2):
        stream.put(p="", g="g", m="m")
    stream.client.hset(stream.keys.gaps, "session.s", "7-1 7-1 1")
    said = lag_line(browser)
    assert said.startswith("2 envelopes are not recorded yet; the oldest has waited for ")
    assert "Gaps of 1 session or project are" in said
    assert "No recorder is running" in said


def test_the_list_says_that_nothing_is_missing(browser: Client, stream: Stream) -> None:
    recorder = stream.another()
    recorder.join()
    recorder.read(1, wait=False)
    assert lag_line(browser) == "Everything that was published is recorded."
    recorder.close()


def test_the_list_is_there_when_the_store_is_not(browser: Client, settings: Any) -> None:
    settings.RECORDER = {"REDIS_URL": "redis://127.0.0.1:1/0"}
    assert "Redis does not answer" in lag_line(browser)


def test_a_recorder_that_has_not_asked_for_long_is_none() -> None:
    lag = Lag(1, 61.25, 100, 0, [Consumer("dead", 1, 61_250)])
    assert described(lag) == (
        "1 envelope is not recorded yet; the oldest has waited for 61.2 s. "
        "No recorder is running: start one with manage.py runrecorder."
    )
