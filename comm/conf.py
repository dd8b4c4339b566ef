"""Settings of comm: `COMM` in the Django settings, over the defaults below."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.dispatch import receiver


class CommSettings(NamedTuple):
    """Every setting of comm with its default."""

    DEFAULT_TENANT: str = "default"
    DEFAULT_PROJECT: str = "default"

    TENANT_WALL: bool = False
    """PostgreSQL's row-level security as the second wall between tenants; comm.tenants says how it is lived with."""

    BUNDLES: Mapping[str, str] = {"demo": "comm.bundles.demo.DemoBundle"}
    """Bundle id → dotted path of a Bundle class, an instance, or a callable that returns one."""
    DEFAULT_BUNDLE: str = "demo"

    EVENT_FILTERS: Sequence[str] = ()
    """Dotted paths of filters that see every event before the bundle's own do."""
    FIREWALL: Mapping[str, Mapping[str, Any]] = {}
    """Tenant → rules of comm.firewall; "*" is for tenants without rules of their own."""

    SINKS: Sequence[str] = ()
    ARCHIVE: str = "comm.archive.Archive"
    SERVICES: Sequence[str] = ()
    """What else runs with a serving process."""
    WORKER_SERVICES: Sequence[str] = ()
    """What else runs with a worker."""

    TURN_OBSERVERS: Mapping[str, str] = {"chatbot": "comm.chatbot.feed.ChatbotFeed"}
    """Channel of a message → dotted path of a comm.turns.observing.TurnObserver that sees its turns."""
    TURN_QUEUE: str = ""
    """Dotted path of the comm.turns.queue.TurnQueue that hands turns to workers; empty: who serves runs them."""
    TURN_LEASE_SECONDS: float = 12.0
    """A dead process's turn is declared within this plus one sweep: under 15 s."""
    TURN_RENEW_SECONDS: float = 1.0
    """Often, so that a database that is away for 10 s costs no turn: what is left of a lease is over 10 s then."""
    TURN_SWEEP_SECONDS: float = 1.0
    """Two indexed statements each time."""
    TURN_CONCURRENCY: int = 64
    """Turns that one process runs at once; more wait as accepted rows."""
    WORKER_START_SECONDS: float = 30.0
    """How long a worker that starts waits for PostgreSQL and the channel layer, which may be starting with it."""
    STOP_GRACE_SECONDS: float = 2.0
    """How long a stopped bundle may wrap up before its task is cancelled."""
    DRAIN_GRACE_SECONDS: float = 10.0
    """How long started turns may go on after SIGTERM; orchestrators kill after 30 s by default."""
    HISTORY_MESSAGES: int = 50
    """Messages of the conversation that a bundle is handed."""
    SYNC_PUBLISH_TIMEOUT_SECONDS: float = 10.0
    """How long a synchronous emit waits for the event loop to publish."""
    EVENT_SINK_SECONDS: float = 10.0
    """How long a communicator's event sink may take for one batch; a bundle waits for it."""
    ATTACHMENTS_STORAGE: str = "attachments"
    """Alias in STORAGES where attachments are kept."""


@cache
def comm_settings() -> CommSettings:
    """Return COMM over its defaults; an unknown key is an ImproperlyConfigured error."""
    given: dict[str, Any] = getattr(settings, "COMM", {})
    unknown = sorted(set(given) - set(CommSettings._fields))
    if unknown:
        raise ImproperlyConfigured(f"COMM has no setting {', '.join(unknown)}")
    return CommSettings(**given)


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "COMM":
        comm_settings.cache_clear()
