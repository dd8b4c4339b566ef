"""How soon the audit answers over a million recorded envelopes, on SQLite and PostgreSQL.

Run from the project's root: `python -m benchmarks.audit` (SQLite), or with `DATABASE_URL` naming a PostgreSQL
server where a database may be made. It fills a database of its own, opens each page of the admin as a
logged-in auditor, and drops the database.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

ROOT = Path(__file__).resolve().parent.parent
LIMIT_MS = 300
ROWS_PER_TURN = 1000
RUNS = 7

COLUMNS = (
    'session_id, epoch, seq, event, timestamp, target_sid, data, tenant, project, "user", conversation_id, turn_id, '
    "type, route, agent, marker"
)
SERIES = {
    "sqlite": (
        "WITH RECURSIVE series(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM series WHERE n + 1 < {rows})",
        "datetime(1772140445 + n / 20, 'unixepoch')",
        "printf('%%08d', n / {per_turn})",
    ),
    "postgresql": (
        "WITH series AS (SELECT n::bigint FROM generate_series(0, {rows} - 1) n)",
        "to_timestamp(1772140445 + n / 20)",
        "lpad((n / {per_turn})::text, 8, '0')",
    ),
}
BODY = (
    '{"type":"chat.delta","timestamp":"2026-02-26T21:14:05.267Z","ts":1772140445267,"service":{"request_id":"r",'
    '"tenant":"acme","project":"shop","user":"ada","user_type":"registered"},"conversation":{"session_id":"s",'
    '"conversation_id":"c","turn_id":"t"},"event":{"agent":"assistant","step":"stream","status":"running","title":""},'
    '"data":{},"delta":{"text":"some words of an answer ","index":1,"marker":"answer","completed":false},'
    '"text":"some words of an answer ","idx":1}'
)


def fill(rows: int) -> float:
    """Write the rows in one statement; return the seconds it took."""
    from django.db import connection

    series, moment, turn = (
        part.format(rows=rows, per_turn=ROWS_PER_TURN) for part in SERIES[connection.vendor]
    )
    last = f"n %% {ROWS_PER_TURN} = {ROWS_PER_TURN - 1}"
    began = time.perf_counter()
    with connection.cursor() as cursor:
        # The driver reads % as its own: the statement's remainders are written twice.
        cursor.execute(
            f"INSERT INTO recorder_recordedenvelope ({COLUMNS}) {series} SELECT 'session-' || {turn}, 1772140445267, "
            f"n %% {ROWS_PER_TURN} + 1, CASE WHEN {last} THEN 'chat_complete' ELSE 'chat_delta' END, {moment}, '', %s, "
            f"CASE WHEN n %% 7 = 0 THEN 'umbrella' ELSE 'acme' END, 'shop', 'user-' || (n / 50000), "
            f"'conversation-' || {turn}, 'turn-' || {turn}, "
            f"CASE WHEN {last} THEN 'chat.complete' ELSE 'chat.delta' END, "
            f"CASE WHEN {last} THEN 'chat_complete' ELSE 'chat_delta' END, 'assistant', "
            f"CASE WHEN {last} THEN '' WHEN n %% 3 = 0 THEN 'thinking' ELSE 'answer' END FROM series",
            [BODY],
        )
        cursor.execute("ANALYZE")
    return time.perf_counter() - began


def pages(rows: int) -> dict[str, str]:
    """What an auditor opens: name → address."""
    base = "/admin/recorder/recordedenvelope/"
    turn = f"turn-{rows // ROWS_PER_TURN // 2:08d}"
    return {
        "change list": base,
        "change list, one day": f"{base}?timestamp__year=2026&timestamp__month=2&timestamp__day=26",
        "filter by type": f"{base}?type=chat.complete",
        "filter by marker": f"{base}?marker=thinking",
        "filter by tenant": f"{base}?tenant=umbrella",
        "filter by route": f"{base}?route=chat_complete",
        "all events of a turn": f"{base}?turn_id={turn}",
        "search for a turn": f"{base}?q={turn}",
        "search for a user": f"{base}?q=user-3",
        "search for what is not there": f"{base}?q=nobody",
        f"timeline of a turn of {ROWS_PER_TURN}": f"{base}turn/{turn}/",
    }


def measure(rows: int) -> None:
    """Fill the database of the environment and print a table row per page."""
    import django

    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connection
    from django.test import Client

    call_command("migrate", verbosity=0)
    seconds = fill(rows)
    print(f"\n## {connection.vendor}, {rows:,} rows (filled in {seconds:.0f} s)\n", flush=True)
    client = Client(SERVER_NAME="localhost")
    client.force_login(User.objects.create_superuser("auditor"))
    print("| page | median ms | worst ms |\n|---|---:|---:|")
    slow = []
    for name, address in pages(rows).items():
        taken = []
        client.get(address)
        for _ in range(RUNS):
            began = time.perf_counter()
            response = client.get(address)
            taken.append((time.perf_counter() - began) * 1000)
            assert response.status_code == 200, (name, response.status_code)
        print(f"| {name} | {statistics.median(taken):.0f} | {max(taken):.0f} |", flush=True)
        if statistics.median(taken) > LIMIT_MS:
            slow.append(name)
    if slow:
        print(f"\nOver {LIMIT_MS} ms: {', '.join(slow)}.")
    connection.close()


def main() -> None:
    """Measure in a process of its own, against a database of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        measure(options.rows)
        return
    server = os.environ.get("DATABASE_URL", "")
    again = [sys.executable, "-m", "benchmarks.audit", "--inside", "--rows", str(options.rows)]
    with tempfile.TemporaryDirectory(prefix="backchannel-audit-") as folder:
        env = {**os.environ, "DATA_DIR": folder, "DJANGO_SETTINGS_MODULE": "project.settings", "DEBUG": "false",
               "ALLOWED_HOSTS": "localhost", "DATABASE_URL": f"sqlite:///{folder}/audit.sqlite3"}  # fmt: skip
        if not server.startswith("postgres"):
            subprocess.run(again, cwd=ROOT, env=env, check=True)
            return
        import psycopg

        name = f"backchannel_audit_{uuid.uuid4().hex[:8]}"
        env["DATABASE_URL"] = urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
            try:
                subprocess.run(again, cwd=ROOT, env=env, check=True)
            finally:
                connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


if __name__ == "__main__":
    main()
