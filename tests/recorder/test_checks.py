"""Wrong settings of the recorder are told at start."""

from typing import Any

import pytest
from django.conf import settings as present

from recorder.checks import check_archive_is_recorded, check_one_recorder, check_recorder_settings


def ids(found: list[Any]) -> list[str]:
    return [message.id for message in found]


def test_the_defaults_are_right() -> None:
    assert check_recorder_settings() == []
    assert check_archive_is_recorded() == []
    assert check_one_recorder() == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"FLUSH_SECOND": 1}, "recorder.E001"),
        ({"FLUSH_SECONDS": "often"}, "recorder.E002"),
        ({"FLUSH_SECONDS": 0}, "recorder.E002"),
        ({"BATCH_ROWS": -1}, "recorder.E002"),
        ({"BATCH_ROWS": 10.5}, "recorder.E002"),
        ({"CLOSE_SECONDS": float("nan")}, "recorder.E002"),
        ({"BATCH_ROWS": 100, "BUFFER_EVENTS": 99}, "recorder.E003"),
        ({"RETRY_SECONDS": 60}, "recorder.E004"),
        ({"REDIS_URL": None}, "recorder.E002"),
        ({"CLAIM_SECONDS": 0}, "recorder.E002"),
    ],
)
def test_a_wrong_setting_is_named(settings: Any, given: dict[str, Any], expected: str) -> None:
    settings.RECORDER = given
    found = check_recorder_settings()
    assert ids(found) == [expected]
    assert next(iter(given)) in found[0].msg


def test_an_archive_without_its_sink_is_a_warning(settings: Any) -> None:
    settings.COMM = {**present.COMM, "SINKS": []}
    assert ids(check_archive_is_recorded()) == ["recorder.W001"]
    settings.COMM = {**present.COMM, "SINKS": [], "ARCHIVE": "comm.archive.Archive"}
    assert check_archive_is_recorded() == []


def test_a_recorder_process_stands_behind_the_archive_too(settings: Any) -> None:
    settings.COMM = {**present.COMM, "SINKS": []}
    settings.RECORDER = {"REDIS_URL": "redis://127.0.0.1:6379/0"}
    assert check_archive_is_recorded() == []
    assert check_one_recorder() == []


def test_a_sink_beside_a_recorder_process_is_a_warning(settings: Any) -> None:
    settings.COMM = {**present.COMM, "SINKS": ["recorder.sink.RecorderSink"]}
    settings.RECORDER = {"REDIS_URL": "redis://127.0.0.1:6379/0"}
    assert ids(check_one_recorder()) == ["recorder.W002"]
