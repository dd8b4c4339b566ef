"""The database connection that tells PostgreSQL, before a statement, whose rows the statement may see."""

from collections.abc import Callable
from typing import Any

from django.db.backends.postgresql.base import DatabaseWrapper as PostgresqlWrapper
from psycopg.pq import TransactionStatus

from comm.tenants import EVERY_VARIABLE, TENANT_VARIABLE, Sight, current_sight

_SET = f"SELECT set_config('{TENANT_VARIABLE}', %s, false), set_config('{EVERY_VARIABLE}', %s, false)"


class DatabaseWrapper(PostgresqlWrapper):
    """A connection whose two variables always say what the running code may see.

    They are set when a statement is about to go out under another sight than the one before it, which costs a
    round trip; else the statement costs what it did. What the variables are is never guessed: a new connection
    (also one of a pool), a rollback and a commit that was one leave them unknown, and what is unknown is set
    anew. So nothing of one request is left for the next, however long a connection lives and whichever thread
    has it. A pooler in front must keep a connection to its client for as long as that lives (session pooling).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sight: Sight | None = None
        self.execute_wrappers.append(self._execute_in_sight)

    def init_connection_state(self) -> None:
        """Begin to know nothing of the connection that was just made."""
        self._sight = None
        super().init_connection_state()

    def create_cursor(self, name: str | None = None) -> Any:
        """Return a cursor; what is copied or called through it without a statement is under the present sight."""
        self._show()
        return super().create_cursor(name)

    def _execute_in_sight(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]
    ) -> Any:
        # A cursor may be older than the scope that it is used in.
        self._show()
        return execute(sql, params, many, context)

    def _show(self) -> None:
        sight = current_sight()
        if sight == self._sight or self._has_failed():
            return
        # Until it is known to have worked, it is not known what the variables are.
        self._sight = None
        with self.wrap_database_errors, self.connection.cursor() as cursor:
            cursor.execute(_SET, [sight.tenant, "on" if sight.every else ""])
        self._sight = sight

    def _has_failed(self) -> bool:
        """Tell whether the transaction has failed: it takes nothing but its rollback now."""
        status: TransactionStatus = self.connection.info.transaction_status
        return status == TransactionStatus.INERROR

    # A variable that was set in a transaction has its earlier value back when the transaction is rolled back.

    def commit(self) -> None:
        """Commit; where the transaction has failed, PostgreSQL answers by a rollback."""
        if self.connection is not None and self._has_failed():
            self._sight = None
        super().commit()

    def rollback(self) -> None:
        """Roll back."""
        self._sight = None
        super().rollback()

    def savepoint_rollback(self, sid: str) -> None:
        """Roll back to a savepoint."""
        super().savepoint_rollback(sid)
        self._sight = None
