"""Which run the store's present life is, and when one before it has lost something."""

import threading
from typing import Any

import pytest
from django.db import connection

from recorder import lives
from recorder.lives import mark_recorded, note_life, time_text
from recorder.models import RecordedGap, RecorderRun
from recorder.store import Life
from tests.waiting import eventually

pytestmark = pytest.mark.django_db

BORN, NOW = 1_700_000_000_000, 1_700_000_900_000


def life(born_ms: int = BORN, *, now_ms: int = NOW, untouched: bool = True, newest: int = NOW) -> Life:
    return Life(born_ms, now_ms, untouched, (newest, 0))


def test_a_life_begins_with_the_store_not_with_the_first_recorder() -> None:
    run = note_life(life())
    assert (run.started_ms, run.store_born_ms, run.ended_ms) == (BORN, BORN, None)


def test_every_recorder_of_a_life_gets_the_same_run() -> None:
    assert note_life(life()) == note_life(life(untouched=False, now_ms=NOW + 5))
    assert not RecordedGap.objects.exists()


def test_a_later_birth_ends_the_life_before_and_names_the_time() -> None:
    old = note_life(life())
    mark_recorded(old, BORN + 7)
    mark_recorded(old, BORN + 3)
    new = note_life(life(NOW, now_ms=NOW + 100))
    old.refresh_from_db()
    assert (old.ended_ms, old.ended_cleanly, old.recorded_until_ms) == (NOW, False, BORN + 7)
    assert new.started_ms == NOW
    gap = RecordedGap.objects.get()
    assert (gap.session_id, gap.first, gap.last, gap.events) == ("", time_text(BORN + 7), time_text(NOW), 0)
    mark_recorded(old, NOW + 7)
    old.refresh_from_db()
    assert old.recorded_until_ms == BORN + 7, "a life that has ended is not marked any more"


def test_a_life_that_nobody_marked_may_have_lost_everything() -> None:
    note_life(life())
    note_life(life(NOW))
    assert RecordedGap.objects.get().first == time_text(BORN)


@pytest.mark.parametrize("clean", [True, False])
def test_a_servers_own_run_before_it_is_no_life_of_a_store(clean: bool) -> None:
    server = RecorderRun.objects.create(
        started_ms=BORN - 1, ended_ms=BORN - 1 if clean else None, ended_cleanly=clean
    )
    assert note_life(life()).started_ms == BORN
    server.refresh_from_db()
    assert server.ended_cleanly is clean
    assert not RecordedGap.objects.exists()


def test_after_a_servers_own_run_the_rows_of_a_life_are_whole_only_from_now_on() -> None:
    note_life(life())
    RecorderRun.objects.create(started_ms=BORN + 10, ended_ms=BORN + 20, ended_cleanly=True)
    run = note_life(life())
    assert (run.started_ms, run.store_born_ms) == (NOW, BORN)
    assert note_life(life(now_ms=NOW + 1)) == run


def test_entries_that_went_into_another_database_are_not_vouched_for() -> None:
    assert note_life(life(untouched=False)).started_ms == NOW


def test_a_store_that_came_back_with_older_data_has_lost_some() -> None:
    old = note_life(life())
    seen = (NOW - 5, 3)
    new = note_life(life(newest=NOW - 500), seen=seen)
    assert new != old
    assert (new.started_ms, new.store_born_ms) == (NOW, BORN)
    assert "older data" in RecordedGap.objects.get().reason
    another = note_life(life(newest=NOW - 500, now_ms=NOW + 1), seen=seen)
    assert another == new, "a second recorder that saw the same says nothing new"
    assert note_life(life(newest=NOW - 2), seen=seen) == new


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_recorders_that_notice_a_loss_at_once_note_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    note_life(life())
    seen = (NOW - 5, 3)
    ending = lives._end
    noting: list[threading.Thread] = []

    def also_note() -> None:
        note_life(life(newest=NOW - 500, now_ms=NOW + 1), seen=seen)
        connection.close()

    def somebody_else_waits() -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_stat_clear_snapshot()")
            cursor.execute(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            return cursor.fetchone() is not None

    def end(*arguments: Any) -> None:
        # The loss is being noted, and another recorder comes upon it.
        noting.append(threading.Thread(target=also_note))
        noting[0].start()
        eventually(somebody_else_waits, what="the other recorder's waiting")
        ending(*arguments)

    monkeypatch.setattr(lives, "_end", end)
    run = note_life(life(newest=NOW - 500), seen=seen)
    noting[0].join()
    assert RecorderRun.objects.filter(ended_ms__isnull=True).get() == run
    assert RecordedGap.objects.count() == 1


def test_a_new_store_that_has_given_out_little_is_one_loss_not_two() -> None:
    note_life(life())
    new = note_life(life(NOW, newest=0), seen=(NOW - 5, 3))
    assert new.started_ms == NOW
    assert "lost its data" in RecordedGap.objects.get().reason
