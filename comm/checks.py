"""System checks of comm: a wrong setting is told at start, not at the first message."""

from typing import Any

from django.core.checks import CheckMessage, Error, register
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from .conf import comm_settings
from .firewall import tenant_firewall


@register()
def check_comm_settings(**kwargs: Any) -> list[CheckMessage]:
    """COMM has only known keys, its dotted paths import, and its times fit together."""
    try:
        conf = comm_settings()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="comm.E001")]
    found: list[CheckMessage] = []
    for path in [
        *conf.BUNDLES.values(),
        *conf.EVENT_FILTERS,
        *conf.SINKS,
        *conf.SERVICES,
        *conf.WORKER_SERVICES,
        *conf.TURN_OBSERVERS.values(),
        conf.ARCHIVE,
        *filter(None, [conf.TURN_QUEUE]),
    ]:
        try:
            import_string(path)
        except ImportError as error:
            found.append(Error(f"COMM names {path}, which cannot be imported: {error}", id="comm.E002"))
    for tenant in conf.FIREWALL:
        try:
            tenant_firewall(tenant)
        except ImproperlyConfigured as error:
            found.append(Error(str(error), id="comm.E005"))
    if conf.DEFAULT_BUNDLE not in conf.BUNDLES:
        found.append(
            Error(
                f"COMM['DEFAULT_BUNDLE'] is {conf.DEFAULT_BUNDLE!r}, which is not in COMM['BUNDLES']",
                id="comm.E003",
            )
        )
    if conf.TURN_RENEW_SECONDS * 2 > conf.TURN_LEASE_SECONDS:
        found.append(
            Error("COMM['TURN_LEASE_SECONDS'] must be at least twice TURN_RENEW_SECONDS", id="comm.E004")
        )
    if not conf.EVENT_SINK_SECONDS > 0:
        found.append(Error("COMM['EVENT_SINK_SECONDS'] must be above 0", id="comm.E006"))
    return found
