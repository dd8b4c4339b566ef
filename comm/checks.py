"""System checks of comm: a wrong setting is told at start, not at the first message."""

from collections.abc import Sequence
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.module_loading import import_string

from .conf import comm_settings
from .firewall import tenant_firewall
from .wall import BACKEND, gap_in_wall, walled_tables


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


@register()
def check_wall_settings(**kwargs: Any) -> list[CheckMessage]:
    """The wall between tenants needs the connection that tells PostgreSQL whose rows to show."""
    engine = connections.settings["default"]["ENGINE"]
    if not _wants_wall() or engine == BACKEND:
        return []
    told = f"COMM['TENANT_WALL'] is on, but the database's ENGINE is {engine}, not {BACKEND}"
    hint = "Row-level security is PostgreSQL's: set DATABASE_URL=postgres://…, or TENANT_WALL=false."
    return [Error(told, hint=hint, id="comm.E007")]


@register(Tags.database, deploy=True)
def check_wall(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """The wall holds for the role that is connected; `check --deploy --database default` asks the database.

    Not at each migrate, which the owner of the tables runs, for whom it does not hold.
    """
    if "default" not in (databases or ()) or connections["default"].vendor != "postgresql":
        return []
    database = connections["default"]
    if _wants_wall():
        gap = gap_in_wall(database)
        hint = "docs/tenants.md says how roles and wall are made."
        return [Error(gap, hint=hint, id="comm.E008")] if gap else []
    if not walled_tables(database):
        return []
    told = "the tables stand behind the tenants' wall, but TENANT_WALL is off: nobody's rows would be seen"
    hint = "Set TENANT_WALL=true, or let the owner run `manage.py tenant_wall --remove`."
    return [Warning(told, hint=hint, id="comm.W001")]


def _wants_wall() -> bool:
    try:
        return comm_settings().TENANT_WALL
    except ImproperlyConfigured:
        # check_comm_settings tells of it.
        return False
