"""A PostgreSQL database behind the tenants' wall: who owns it, and the role that works in it."""

import atexit
import functools
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from tests.databases import ADMIN, execute, postgres_or_skip
from tests.processes import ROOT


@dataclass(frozen=True)
class WalledDatabase:
    """One database, migrated and walled by its owner; `url` is the restricted role's, `owner_url` the owner's."""

    name: str
    role: str
    url: str
    owner_url: str
    superuser_url: str

    def manage(self, *arguments: str, url: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """Run a management command as the restricted role, or as whom another URL names."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                **ADMIN,
                "REDIS_URL": "",
                "TENANT_WALL": "true",
                "DATABASE_URL": url or self.url,
                **env,
            },
            capture_output=True,
            text=True,
            timeout=120,
        )

    def seen(self, statement: str, tenant: str | None = None) -> list[Any]:
        """Run a SELECT through a connection of the restricted role's own, with the variable set to a tenant."""
        with psycopg.connect(self.url) as connection:
            if tenant is not None:
                connection.execute("SELECT set_config('backchannel.tenant', %s, false)", [tenant])
            return connection.execute(statement.encode()).fetchall()

    def all(self, statement: str) -> list[Any]:
        """Run a SELECT as the owner, for whom there is no wall."""
        with psycopg.connect(self.owner_url) as connection:
            return connection.execute(statement.encode()).fetchall()


def walled_database(user: str) -> WalledDatabase:
    """Return a walled database for the tests of one name; without PostgreSQL they are skipped, in CI they fail."""
    return _make(postgres_or_skip(), user)


@functools.cache
def _make(server: str, user: str) -> WalledDatabase:
    mark = uuid.uuid4().hex[:12]
    name, owner, role = f"backchannel_wall_{mark}", f"owner_{mark}", f"server_{mark}"
    passwords = {owner: secrets.token_hex(16), role: secrets.token_hex(16)}
    for each, password in passwords.items():
        execute(server, f"CREATE ROLE {each} LOGIN PASSWORD '{password}'")
    execute(server, f"CREATE DATABASE {name} OWNER {owner}")
    atexit.register(_remove, server, name, owner, role)
    made = WalledDatabase(
        name=name,
        role=role,
        url=_url(server, name, role, passwords[role]),
        owner_url=_url(server, name, owner, passwords[owner]),
        superuser_url=urlunsplit(urlsplit(server)._replace(path=f"/{name}")),
    )
    folder = tempfile.mkdtemp(prefix="backchannel-wall-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for arguments in (["migrate", "-v", "0"], ["ensure_admin"], ["tenant_wall", "--role", role]):
        done = made.manage(*arguments, url=made.owner_url, DATA_DIR=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    return made


def _remove(server: str, name: str, *roles: str) -> None:
    execute(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    for role in roles:
        execute(server, f"DROP ROLE IF EXISTS {role}")


def _url(server: str, name: str, role: str, password: str) -> str:
    parts = urlsplit(server)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{role}:{password}@{place}", path=f"/{name}"))
