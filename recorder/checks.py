"""System checks of recorder: a wrong setting is told at start, not when rows are lost."""

from typing import Any

from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured

from comm.conf import comm_settings

from .conf import RecorderSettings, recorder_settings

SINK = "recorder.sink.RecorderSink"
ARCHIVE = "recorder.archive.RecordedArchive"


@register()
def check_recorder_settings(**kwargs: Any) -> list[CheckMessage]:
    """RECORDER has only known keys, with numbers that make sense together."""
    try:
        conf = recorder_settings()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="recorder.E001")]
    found: list[CheckMessage] = []
    for name, value in conf._asdict().items():
        default = RecorderSettings._field_defaults[name]
        if isinstance(default, str):
            if not isinstance(value, str):
                found.append(Error(f"RECORDER[{name!r}] is {value!r}, not a text", id="recorder.E002"))
            continue
        kinds = int if isinstance(default, int) else (int, float)
        number = isinstance(value, kinds) and not isinstance(value, bool)
        if not number or not 0 < value < float("inf"):
            wanted = "a whole number" if kinds is int else "a number"
            found.append(Error(f"RECORDER[{name!r}] is {value!r}, not {wanted} above 0", id="recorder.E002"))
    return found or _check_together(conf)


def _check_together(conf: RecorderSettings) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    if conf.BUFFER_EVENTS < conf.BATCH_ROWS:
        found.append(Error("RECORDER['BUFFER_EVENTS'] must hold at least BATCH_ROWS", id="recorder.E003"))
    if conf.RETRY_SECONDS_MAX < conf.RETRY_SECONDS:
        found.append(Error("RECORDER['RETRY_SECONDS_MAX'] is below RETRY_SECONDS", id="recorder.E004"))
    return found


@register()
def check_archive_is_recorded(**kwargs: Any) -> list[CheckMessage]:
    """An archive of recorded rows needs somebody who records: else it would skip what nobody wrote."""
    try:
        conf = comm_settings()
    except ImproperlyConfigured:
        # comm's own check tells of it.
        return []
    if conf.ARCHIVE == ARCHIVE and SINK not in conf.SINKS and not _has_process():
        hint = "Set ARCHIVE=comm.archive.Archive, or add the sink."
        told = f"COMM['ARCHIVE'] is {ARCHIVE}, but {SINK} is not in SINKS"
        return [Warning(told, hint=hint, id="recorder.W001")]
    return []


@register()
def check_one_recorder(**kwargs: Any) -> list[CheckMessage]:
    """Either a sink in each server records, or a process that reads the layer's stream; not both."""
    try:
        conf = comm_settings()
    except ImproperlyConfigured:
        return []
    if SINK in conf.SINKS and _has_process():
        hint = "Take it out of SINKS: with REDIS_URL, `manage.py runrecorder` records what every process publishes."
        told = (
            f"{SINK} is in SINKS while RECORDER['REDIS_URL'] is set: project events are recorded twice over"
        )
        return [Warning(told, hint=hint, id="recorder.W002")]
    return []


def _has_process() -> bool:
    try:
        return bool(recorder_settings().REDIS_URL)
    except ImproperlyConfigured:
        return False
