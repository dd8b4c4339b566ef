"""manage.py tenant_wall: put up the tenants' wall in PostgreSQL, and let the server's role work behind it."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connection, transaction

from comm import wall


class Command(BaseCommand):
    """Builds the policies and grants; the owner of the tables runs it, after each migrate."""

    help = "Put up the wall between tenants (row-level security), for the role that the server connects as."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the role, or the wish to take the wall down."""
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("--role", help="the role that the server connects as; it must exist")
        what.add_argument("--remove", action="store_true", help="take the wall down; grants stay")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it in one transaction, and say which tables it was about."""
        if connection.vendor != "postgresql":
            raise CommandError("Only PostgreSQL has row-level security; see DATABASE_URL.")
        role = options["role"]
        try:
            if role and (reason := wall.passes_by(connection, role)):
                raise CommandError(f"The wall would not hold: {reason}. {_how_to_make(role)}")
            self._execute(list(wall.removal_statements()) if options["remove"] else _building(role))
        except DatabaseError as error:
            raise CommandError(f"PostgreSQL refuses, and nothing was changed: {error}") from error
        tables = ", ".join(sorted(model._meta.db_table for model in wall.walled_models()))
        done = "The wall is down" if options["remove"] else f"The wall stands for {role}"
        self.stdout.write(f"{done}: {tables}.")

    @staticmethod
    def _execute(statements: list[str]) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)


def _building(role: str) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_schema(), current_database()")
        schema, database = cursor.fetchone()
    return [*wall.grant_statements(role, schema, database), *wall.wall_statements()]


def _how_to_make(role: str) -> str:
    return f"Make one with: CREATE ROLE \"{role}\" LOGIN PASSWORD '…'"
