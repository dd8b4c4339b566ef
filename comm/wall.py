"""The tenants' wall in PostgreSQL: which tables stand behind it, its policies, and whether it holds.

A model says in `walled_by` how its rows are told apart: the name of a column that holds the tenant, the name of a
foreign key to another such model (a row is seen where its parent is), or an empty text for rows of no one tenant,
which only code that works for every tenant sees. A bundle's own models join in by saying so.
"""

from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Field, ForeignKey, Model

from .conf import comm_settings
from .exceptions import WallDown
from .tenants import EVERY_VARIABLE, TENANT_VARIABLE

POLICY = "tenant_wall"
BACKEND = "comm.postgresql"
"""The ENGINE of a database whose connections say whose rows they may show."""

# Each in a sub-select: PostgreSQL computes it once for a statement, not once for a row.
_EVERY = f"(SELECT current_setting('{EVERY_VARIABLE}', true)) = 'on'"
_TENANT = f"(SELECT nullif(current_setting('{TENANT_VARIABLE}', true), ''))"


def walled_models() -> list[type[Model]]:
    """Return the models whose rows stand behind the wall."""
    return [model for model in apps.get_models() if hasattr(model, "walled_by")]


def rule_of(model: type[Model]) -> str:
    """Return the SQL condition under which a row of a model is seen, and may be written."""
    walled_by: str = model.walled_by  # type: ignore[attr-defined]
    if not walled_by:
        return _EVERY
    field = model._meta.get_field(walled_by)
    assert isinstance(field, Field), "rows are told apart by a column of their own"
    column = f"{_quoted(model._meta.db_table)}.{_quoted(str(field.column))}"
    if not isinstance(field, ForeignKey):
        return f"{_EVERY} OR {column} = {_TENANT}"
    parent = field.related_model._meta
    key = _quoted(str(parent.pk.column))
    # A scalar sub-select: EXISTS would be turned into a scan of all parents, hashed.
    found = f"SELECT parent.{key} FROM {_quoted(parent.db_table)} parent WHERE parent.{key} = {column}"
    return f"{_EVERY} OR ({found}) IS NOT NULL"


def wall_statements() -> Iterator[str]:
    """Yield what builds the wall, or builds it anew; the owner of the tables runs it.

    Not FORCE: the owner, who migrates and makes dumps, is to see everything. The server connects as another role.
    """
    for model in walled_models():
        table, rule = _quoted(model._meta.db_table), rule_of(model)
        yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
        yield f"DROP POLICY IF EXISTS {POLICY} ON {table}"
        yield f"CREATE POLICY {POLICY} ON {table} USING ({rule}) WITH CHECK ({rule})"


def removal_statements() -> Iterator[str]:
    """Yield what takes the wall down."""
    for model in walled_models():
        table = _quoted(model._meta.db_table)
        yield f"DROP POLICY IF EXISTS {POLICY} ON {table}"
        yield f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY"


def grant_statements(role: str, schema: str, database: str) -> Iterator[str]:
    """Yield what lets a role work with the tables of a schema, and those that the owner will make there.

    The recorder copies its rows through a temporary table, which not every database lets everybody make. Not
    TRUNCATE, which no policy stops, and nothing that changes a table.
    """
    name, place = _quoted(role), _quoted(schema)
    rows, numbers = "SELECT, INSERT, UPDATE, DELETE", "USAGE, SELECT"
    yield f"GRANT TEMPORARY ON DATABASE {_quoted(database)} TO {name}"
    yield f"GRANT USAGE ON SCHEMA {place} TO {name}"
    yield f"GRANT {rows} ON ALL TABLES IN SCHEMA {place} TO {name}"
    yield f"GRANT {numbers} ON ALL SEQUENCES IN SCHEMA {place} TO {name}"
    yield f"ALTER DEFAULT PRIVILEGES IN SCHEMA {place} GRANT {rows} ON TABLES TO {name}"
    yield f"ALTER DEFAULT PRIVILEGES IN SCHEMA {place} GRANT {numbers} ON SEQUENCES TO {name}"


def passes_by(database: BaseDatabaseWrapper, role: str | None = None) -> str:
    """Say why the wall does not hold for a role (default: the one that is connected); empty when it does."""
    with database.cursor() as cursor:
        cursor.execute(
            "SELECT rolname, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = coalesce(%s, current_user)",
            [role],
        )
        found = cursor.fetchone()
        if found is None:
            return f"there is no role {role}"
        name, is_superuser, bypasses = found
        if is_superuser:
            return f"the role {name} is a superuser"
        if bypasses:
            return f"the role {name} has BYPASSRLS"
        cursor.execute(
            "SELECT relname FROM pg_class WHERE oid IN (SELECT to_regclass(name) FROM unnest(%s::text[]) name) "
            "AND pg_has_role(%s, relowner, 'USAGE') LIMIT 1",
            [_tables(), name],
        )
        owned = cursor.fetchone()
    return f"the role {name} owns {owned[0]}, or may act for its owner" if owned else ""


def walled_tables(database: BaseDatabaseWrapper) -> set[str]:
    """Return the tables that stand behind the wall."""
    with database.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class JOIN pg_policy ON polrelid = pg_class.oid AND polname = %s "
            "WHERE relrowsecurity AND pg_class.oid IN (SELECT to_regclass(name) FROM unnest(%s::text[]) name)",
            [POLICY, _tables()],
        )
        return {row[0] for row in cursor.fetchall()}


def gap_in_wall(database: BaseDatabaseWrapper) -> str:
    """Say what is wrong with the wall on a database that should have it; empty when it holds."""
    if database.vendor != "postgresql":
        return "TENANT_WALL is on, but the database is not PostgreSQL, and no other has such a wall"
    reason = passes_by(database)
    if reason:
        return f"TENANT_WALL is on, but {reason}, so PostgreSQL shows it every tenant's rows"
    behind = walled_tables(database)
    left = sorted(model._meta.db_table for model in walled_models() if model._meta.db_table not in behind)
    if left:
        return f"TENANT_WALL is on, but {', '.join(left)} stand open; the owner runs `manage.py tenant_wall`"
    return ""


def demand_wall() -> None:
    """Raise WallDown where TENANT_WALL is on and the wall does not hold (ORM, synchronous); to begin to serve with."""
    if comm_settings().TENANT_WALL and (gap := gap_in_wall(connection)):
        raise WallDown(gap)


def _tables() -> list[str]:
    return [_quoted(model._meta.db_table) for model in walled_models()]


def _quoted(name: str) -> Any:
    return '"' + name.replace('"', '""') + '"'
