"""PostgreSQL's plans: what the audit, the archive and the sweeps ask of large tables is answered by an index."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from comm.history import Position
from comm.models import Conversation, Message, Turn
from comm.tenants import every_tenant
from comm.turns import leases
from recorder.archive import RecordedArchive
from recorder.models import RecordedEnvelope
from recorder.pruning import Pruning
from recorder.selection import Bound, Selection
from recorder.timeline import timeline_of

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]

ROWS, PER_TURN, TURNS = 40_000, 100, 20_000
EPOCH = 1_772_140_445_267
TURN, CONVERSATION, SESSION, USER = "turn-00000200", "conversation-00000200", "session-00000200", "user-20"
LIST = "/admin/recorder/recordedenvelope/"
LARGE = {
    "recorder_recordedenvelope", "recorder_recordedgap", "comm_turn", "comm_message", "comm_conversation"
}  # fmt: skip

ENVELOPES = f"""
INSERT INTO recorder_recordedenvelope (session_id, epoch, seq, event, timestamp, target_sid, data, tenant, project,
    "user", conversation_id, turn_id, type, route, agent, marker)
SELECT 'session-' || lpad((n / {PER_TURN})::text, 8, '0'), {EPOCH}, n %% {PER_TURN} + 1, 'chat_delta',
    to_timestamp(1772140445 + n), '', %s, 'tenant-' || (n / 1000), 'shop',
    'user-' || (n / 1000), 'conversation-' || lpad((n / {PER_TURN})::text, 8, '0'),
    'turn-' || lpad((n / {PER_TURN})::text, 8, '0'), 'type-' || (n %% 20), 'route-' || (n %% 7), 'assistant',
    CASE WHEN n %% 3 = 0 THEN 'thinking' ELSE 'answer' END
FROM generate_series(0::bigint, {ROWS} - 1) n
"""
BODY = (
    '{"type":"chat.delta","event":{"agent":"a","step":"s","status":"running","title":""},"data":{},'
    '"delta":{"text":"words","index":1,"marker":"answer","completed":false},"text":"' + 400 * "w" + '"}'
)
GAPS = """
INSERT INTO recorder_recordedgap (session_id, first, last, events, reason, noted_at)
SELECT 'session-' || n, '1-1', '1-2', 2, 'full', now() FROM generate_series(1, 20000) n
"""


_QUESTION = re.compile(r"(?<!\w)(SELECT|UPDATE)\s.*", re.DOTALL)
"""The question in a statement, which may be that of a cursor."""


class Scan(NamedTuple):
    """A whole table read for one query."""

    table: str
    sql: str


def insert_like(model: Any, rows: int, **given: str) -> None:
    """Fill a table by one statement; columns that are not given have an empty value of their kind."""
    empty = {"CharField": "''", "TextField": "''", "JSONField": "'{}'", "DateTimeField": "now()"}
    columns, values = [], []
    for field in model._meta.concrete_fields:
        if field.primary_key or (field.null and field.name not in given):
            continue
        columns.append(connection.ops.quote_name(field.column))
        values.append(given.get(field.name, empty.get(field.get_internal_type(), "0")))
    table = connection.ops.quote_name(model._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(values)} "
            f"FROM generate_series(1, {rows}) n"
        )


@pytest.fixture
def filled() -> Iterator[None]:
    """Tables with enough rows that reading them whole is not the cheaper way."""
    with every_tenant():
        with connection.cursor() as cursor:
            cursor.execute(ENVELOPES, [BODY])
            cursor.execute(GAPS)
        insert_like(Conversation, TURNS, conversation_id="'conversation-' || n", owner="'owner-' || n")
        first = Conversation.objects.order_by("pk").values_list("pk", flat=True)[0]
        insert_like(
            Turn, TURNS, turn_id="'turn-' || n", conversation=f"{first} + n - 1", number="1",
            status="CASE WHEN n < 20 THEN 'running' WHEN n < 60 THEN 'accepted' ELSE 'completed' END",
            owner_channel="'channel-' || n % 10", kind="'regular'", lease_until="now() - n * interval '1 s'",
        )  # fmt: skip
        insert_like(
            Message, TURNS, conversation=f"{first} + n - 1", role="'user'", message_id="gen_random_uuid()",
            turn="(SELECT min(id) FROM comm_turn) + n - 1",
        )  # fmt: skip
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
        yield


@pytest.fixture
def browser(client: Client) -> Client:
    """Somebody who may see everything."""
    client.force_login(User.objects.create_superuser("auditor", password="pw"))
    return client


def scans_of(work: Callable[[], Any]) -> list[Scan]:
    """Return the queries of some work that read a large table whole.

    The first rows of a table in no order (a LIMIT right above it, and nothing filtered) are no such thing.
    """
    with CaptureQueriesContext(connection) as captured:
        work()
    asked = [found[0] for query in captured if (found := _QUESTION.search(query["sql"]))]
    assert asked, "it asks nothing"
    found = []
    with connection.cursor() as cursor:
        for sql in asked:
            cursor.execute("EXPLAIN (FORMAT JSON) " + sql.replace("%", "%%"), [])
            told = cursor.fetchone()[0]
            plan = (json.loads(told) if isinstance(told, str) else told)[0]["Plan"]
            found += [Scan(node["Relation Name"], sql) for node in _scans(plan, under="")]
    return found


def _scans(node: dict[str, Any], under: str) -> Iterator[dict[str, Any]]:
    if node.get("Relation Name") in LARGE and _reads_whole(node, under):
        yield node
    for child in node.get("Plans", []):
        yield from _scans(child, node["Node Type"])


def _reads_whole(node: dict[str, Any], under: str) -> bool:
    if node["Node Type"] == "Seq Scan":
        return under != "Limit" or "Filter" in node
    if node.get("Index Name") == "one_running_turn":
        # It holds the running turns alone.
        return False
    # An index that is walked from its end, with rows passed over on the way, may be walked to the other end.
    return node["Node Type"].startswith("Index") and "Index Cond" not in node and "Filter" in node


def page(browser: Client, address: str) -> Callable[[], None]:
    def open_it() -> None:
        assert browser.get(address).status_code == 200

    return open_it


def work_of(browser: Client) -> dict[str, Callable[[], Any]]:
    """What is asked of the large tables: name → the asking."""
    row = RecordedEnvelope.objects.filter(turn_id=TURN).order_by("pk").values_list("pk", flat=True)[0]
    chosen = {
        "all": "", "day": "?timestamp__year=2026&timestamp__month=2&timestamp__day=27", "type": "?type=type-3",
        "route": "?route=route-3", "user": f"?user={USER}", "tenant": "?tenant=tenant-20", "turn": f"?turn_id={TURN}",
        "conversation": f"?conversation_id={CONVERSATION}", "session": f"?session_of={row}", "page": "?p=20",
        "search turn": f"?q={TURN}", "search session": f"?q={SESSION}", "search conversation": f"?q={CONVERSATION}",
        "search user": f"?q={USER}", "search type": "?q=type-3", "search nothing": "?q=nothing",
        "type and day": "?type=type-3&timestamp__year=2026&timestamp__month=2&timestamp__day=27",
    }  # fmt: skip
    read = async_to_sync(RecordedArchive().read)
    after, upto = Position(EPOCH, 40), Position(EPOCH, 90)
    later = Position(EPOCH + 10**6, 0)
    selection = Selection(session_id=SESSION, first=Bound(10, EPOCH), last=Bound(20, EPOCH))
    return {
        **{f"list: {name}": page(browser, f"{LIST}{query}") for name, query in chosen.items()},
        "an envelope": page(browser, f"{LIST}{row}/change/"),
        "the timeline's page": page(browser, f"{LIST}turn/{TURN}/"),
        "the timeline": lambda: timeline_of(TURN),
        "gaps": page(browser, "/admin/recorder/recordedgap/"),
        "a session's gaps": page(browser, "/admin/recorder/recordedgap/?q=session-9"),
        "archive: an epoch": lambda: read(SESSION, after, upto, 100),
        "archive: to the next epoch": lambda: read(SESSION, after, later, 100),
        "archive: a turn's text": lambda: async_to_sync(RecordedArchive().fold_text)(SESSION, TURN, "answer"),
        "replay": lambda: list(selection.rows()),
        "replay of a conversation": lambda: list(Selection(conversation_id=CONVERSATION).rows()),
        "pruning": lambda: list(Pruning(row_time()).rows().order_by("pk").values_list("pk", flat=True)[:10]),
        "sweep: waiting turns": lambda: leases.waiting_turn_ids(100),
        "sweep: ended leases": lambda: leases.take_over_dead("me", sole_owner=False),
        "leases: renewed": lambda: leases.renew("channel-3", ["turn-3", "turn-13"]),
        "leases: held": lambda: leases.held("channel-3"),
        "leases: claimed": lambda: leases.claim("turn-30", "me", ""),
    }


def row_time() -> Any:
    return RecordedEnvelope.objects.order_by("timestamp").values_list("timestamp", flat=True)[50]


def test_every_question_is_answered_by_an_index(filled: None, browser: Client) -> None:
    found = {name: scans for name, work in work_of(browser).items() if (scans := scans_of(work))}
    assert found == {}, json.dumps({n: [x.sql for x in s] for n, s in found.items()}, indent=1)


NEEDED = {
    "recorded_by_turn": "the timeline",
    "recorded_by_conversation": "replay of a conversation",
    "recorded_by_tenant": "list: tenant",
    "recorded_by_type": "list: type",
    "recorded_by_user": "list: user",
    "recorded_by_route": "list: route",
    "recorded_once_per_position": "archive: an epoch",
    "turn_by_lease": "sweep: waiting turns",
}
"""Index → what cannot do without it."""


@contextmanager
def without(index: str) -> Iterator[None]:
    """Take an index away, and build it again."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_get_indexdef(%s::regclass), (SELECT pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE conindid = %s::regclass)",
            [index, index],
        )
        definition, constraint = cursor.fetchone()
        table = "recorder_recordedenvelope"
        cursor.execute(
            f"ALTER TABLE {table} DROP CONSTRAINT {index}" if constraint else f"DROP INDEX {index}"
        )
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            again = f"ALTER TABLE {table} ADD CONSTRAINT {index} {constraint}" if constraint else definition
            cursor.execute(again)


def test_without_its_index_a_question_reads_the_whole_table(filled: None, browser: Client) -> None:
    works = work_of(browser)
    read_whole = {}
    for index, name in NEEDED.items():
        with without(index):
            read_whole[index] = bool(scans_of(works[name]))
    assert read_whole == dict.fromkeys(NEEDED, True)
