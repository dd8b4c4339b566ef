"""Settings of recorder: `RECORDER` in the Django settings, over the defaults below."""

from functools import cache
from typing import Any, NamedTuple

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.dispatch import receiver

MIB = 1024 * 1024


class RecorderSettings(NamedTuple):
    """Every setting of recorder with its default."""

    FLUSH_SECONDS: float = 0.25
    """What a killed process can lose; a commit on SQLite takes some 5 ms, so more often buys little."""
    BATCH_ROWS: int = 500
    """Rows of one INSERT; a larger batch holds SQLite's write lock for longer than a POST should wait."""
    BUFFER_EVENTS: int = 100_000
    BUFFER_BYTES: int = 128 * MIB
    """Past either, what comes is not recorded and a gap row says so: a sink must not hold up a turn."""
    RETRY_SECONDS: float = 1.0
    RETRY_SECONDS_MAX: float = 15.0
    CLOSE_SECONDS: float = 10.0
    """How long a shutdown waits for a database that does not take the last rows."""

    REDIS_URL: str = ""
    """The store of a shared channel layer: with it, the recorder is a process (`manage.py runrecorder`)."""
    REDIS_PREFIX: str = "backchannel"
    """The layer's prefix."""
    CLAIM_SECONDS: float = 5.0
    """What a recorder has held for so long is another's: a batch takes a tenth of a second."""
    TRANSACTION_IDLE_SECONDS: float = 5.0
    """After this PostgreSQL ends the transaction of a recorder that stands still: others wait for its rows."""
    ARCHIVE_WAIT_SECONDS: float = 10.0
    """How long a resume waits for the recorder: its flush, or the claim of what a dead one left, and a start."""


@cache
def recorder_settings() -> RecorderSettings:
    """Return RECORDER over its defaults; an unknown key is an ImproperlyConfigured error."""
    given: dict[str, Any] = getattr(settings, "RECORDER", {})
    unknown = sorted(set(given) - set(RecorderSettings._fields))
    if unknown:
        raise ImproperlyConfigured(f"RECORDER has no setting {', '.join(unknown)}")
    return RecorderSettings(**given)


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "RECORDER":
        recorder_settings.cache_clear()
