"""Databases of a test's own: migrated, with the admin account, made by copying."""

import atexit
import contextlib
import functools
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from tests.processes import ROOT

ADMIN = {"ADMIN_USERNAME": "admin", "ADMIN_PASSWORD": "correct-horse-battery"}
LOCAL_POSTGRES = "postgres://postgres@127.0.0.1:5432/postgres"


def manage(*arguments: str, env: dict[str, str]) -> str:
    """Run a management command in an environment; return what it prints."""
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@functools.cache
def postgres_server() -> str:
    """Return the URL of a PostgreSQL where databases may be made, whatever the tests' own database is.

    Errors: psycopg.Error without one.
    """
    url = os.environ.get("POSTGRES_URL") or LOCAL_POSTGRES
    psycopg.connect(url, connect_timeout=10).close()
    return url


def postgres_or_skip() -> str:
    """Return what `postgres_server` does; without one the test is skipped, and fails in CI."""
    try:
        return postgres_server()
    except psycopg.Error as error:
        reason = f"no PostgreSQL at POSTGRES_URL or 127.0.0.1:5432: {error}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def new_postgres(server: str) -> str:
    """Return the URL of a new database on this server; it is dropped when the tests end."""
    name = f"backchannel_{uuid.uuid4().hex[:12]}"
    return _create(server, name, f'TEMPLATE "{_postgres_template(server)}"')


def empty_postgres(server: str) -> str:
    """Return the URL of a new database without any table; it is dropped when the tests end."""
    return _create(server, f"backchannel_empty_{uuid.uuid4().hex[:12]}")


def drop_postgres(server: str, url: str) -> None:
    """Drop a database now, whoever is connected to it."""
    execute(server, f'DROP DATABASE IF EXISTS "{urlsplit(url).path[1:]}" WITH (FORCE)')


def new_sqlite(folder: Path) -> str:
    """Return the URL of a new database in this folder."""
    path = folder / "server.sqlite3"
    shutil.copy(_sqlite_template(), path)
    return f"sqlite:///{path}"


def execute(url: str, statement: str) -> None:
    """Run one statement outside of a transaction."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def _create(server: str, name: str, how: str = "") -> str:
    execute(server, f'CREATE DATABASE "{name}" {how}')
    url = urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    atexit.register(drop_postgres, server, url)
    return url


@functools.cache
def _postgres_template(server: str) -> str:
    name = f"backchannel_template_{uuid.uuid4().hex[:12]}"
    url = _create(server, name)
    _prepare(_lasting_folder(), url)
    return name


@functools.cache
def _sqlite_template() -> Path:
    folder = _lasting_folder()
    _prepare(folder, f"sqlite:///{folder}/template.sqlite3")
    with contextlib.closing(sqlite3.connect(folder / "template.sqlite3")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder / "template.sqlite3"


def _prepare(folder: Path, database_url: str) -> None:
    env = {**os.environ, "DATA_DIR": str(folder), "DATABASE_URL": database_url, "REDIS_URL": "", **ADMIN}
    manage("migrate", "--verbosity", "0", env=env)
    manage("ensure_admin", env=env)


def _lasting_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="backchannel-template-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
