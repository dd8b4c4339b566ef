"""Settings of the sandbox: `SANDBOX` in the Django settings, over the defaults below."""

from functools import cache
from typing import Any, NamedTuple

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.dispatch import receiver

MIB = 1024 * 1024


class SandboxSettings(NamedTuple):
    """Every setting of the sandbox with its default."""

    RUNNER: str = "subprocess"
    """subprocess or bubblewrap, or the dotted path of a comm.sandbox.runners.Runner."""
    TIMEOUT_SECONDS: float = 60.0
    """Of one run, from its start."""
    START_SECONDS: float = 15.0
    """How long a process may take to connect; Python with a bundle's imports takes one or two."""
    CPU_SECONDS: int = 60
    MEMORY_BYTES: int = 2048 * MIB
    """Address space: numeric libraries reserve much more than they use."""
    FILE_BYTES: int = 256 * MIB
    OPEN_FILES: int = 256
    EVENTS: int = 100_000
    """What one run may emit; a long answer has some 5,000 deltas."""
    TOTAL_BYTES: int = 512 * MIB
    """What one run may send in all."""
    OUTPUT_BYTES: int = 64 * 1024
    """Of its standard output, kept for the log."""


@cache
def sandbox_settings() -> SandboxSettings:
    """Return SANDBOX over its defaults; an unknown key is an ImproperlyConfigured error."""
    given: dict[str, Any] = getattr(settings, "SANDBOX", {})
    unknown = sorted(set(given) - set(SandboxSettings._fields))
    if unknown:
        raise ImproperlyConfigured(f"SANDBOX has no setting {', '.join(unknown)}")
    return SandboxSettings(**given)


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "SANDBOX":
        sandbox_settings.cache_clear()
