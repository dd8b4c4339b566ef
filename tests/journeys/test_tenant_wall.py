"""Whole turns through a server behind the tenants' wall: it connects as a role that owns nothing."""

import asyncio
import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients import ChatClient, text_of
from tests.servers import ADMIN, ServerProcess
from tests.waiting import aeventually
from tests.walled import WalledDatabase, walled_database

pytestmark = [pytest.mark.server, pytest.mark.wire]
ENV = {
    "TENANT_WALL": "true",
    "DEFAULT_BUNDLE": "looking",
    "BUNDLES": "looking=tests.journeys.bundles.Looking,stepping=tests.journeys.bundles.Stepping",
    "MESSAGE_RATE": "",
    "SINKS": "recorder.sink.RecorderSink",
}
RECORDED = "SELECT DISTINCT conversation_id FROM recorder_recordedenvelope WHERE turn_id <> ''"


@pytest.fixture(scope="module")
def database() -> WalledDatabase:
    return walled_database(__name__)


@pytest.fixture(scope="module")
def server(database: WalledDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("walled")
    server = ServerProcess(folder, database_url=database.url, env=ENV).start()
    yield server
    server.stop()
    assert "Traceback" not in server.output(), server.output()


@pytest.fixture
def tenants() -> list[str]:
    return [f"{name}-{uuid.uuid4().hex}" for name in ("acme", "zenith")]


async def turn_in(
    client: ChatClient, tenant: str, text: str = "hello", **message: Any
) -> tuple[dict[str, Any], Any]:
    """Take a whole turn in a tenant; return the acknowledgement and what the bundle saw."""
    async with client.stream(stream_id=str(uuid.uuid4()), tenant=tenant) as stream:
        ack = await client.send(text, tenant=tenant, **message)
        answer = text_of(await stream.until_idle(), turn_id=ack["turn_id"])
    return ack, json.loads(answer) if message.get("bundle_id") != "stepping" else answer


def headers(client: ChatClient) -> dict[str, str]:
    return {"User-Session-ID": client.session_id or ""}


async def listed(client: ChatClient, tenant: str) -> set[str]:
    response = await client.http.get(
        f"{client.url}/api/cb/conversations/{tenant}/default", headers=headers(client)
    )
    return {item["conversation_id"] for item in response.json()["items"]}


# --- turns and requests -------------------------------------------------------------------------------------


async def test_a_whole_turn_works_for_its_tenant_alone(
    server: ServerProcess, database: WalledDatabase, tenants: list[str]
) -> None:
    async with ChatClient(server.url) as client:
        acks = {}
        for tenant in tenants:
            acks[tenant], seen = await turn_in(client, tenant, f"hello {tenant}")
            # Whatever the bundle asks for, in whichever thread, it is shown its own tenant's.
            assert seen["async"] == seen["raw"] == seen["thread"] == [tenant]
            assert seen["texts"] == [f"hello {tenant}"]
        for tenant in tenants:
            conversation_id = acks[tenant]["conversation_id"]
            assert await listed(client, tenant) == {conversation_id}
            fetch = f"{server.url}/api/cb/conversations/{{}}/default/{conversation_id}/fetch"
            found = await client.http.post(fetch.format(tenant), headers=headers(client))
            assert [message["role"] for message in found.json()["messages"]] == ["user", "assistant"]
            other = next(each for each in tenants if each != tenant)
            missed = await client.http.post(fetch.format(other), headers=headers(client))
            assert missed.status_code == 404
            state = {"conversation_id": conversation_id, "tenant": tenant}
            told = await client.http.post(
                f"{server.url}/sse/conv_status.get", json=state, headers=headers(client)
            )
            assert told.json()["state"] == "idle"
    conversations = [acks[tenant]["conversation_id"] for tenant in tenants]
    for tenant, conversation_id in zip(tenants, conversations, strict=True):
        assert database.seen("SELECT conversation_id FROM comm_conversation", tenant) == [(conversation_id,)]
        # The recorder writes for all tenants, on one connection, some time after the fact.
        await aeventually(lambda t=tenant, c=conversation_id: database.seen(RECORDED, t) == [(c,)])
    for table in ("comm_conversation", "comm_message", "comm_turn", "recorder_recordedenvelope"):
        assert database.seen(f"SELECT count(*) FROM {table}") == [(0,)]
        assert database.seen(f"SELECT count(*) FROM {table}", "") == [(0,)]
        assert database.all(f"SELECT count(*) > 0 FROM {table}") == [(True,)]


async def test_turns_of_many_tenants_at_once_stay_apart(server: ServerProcess) -> None:
    names = [f"many-{uuid.uuid4().hex}" for _ in range(8)]

    async def visit(tenant: str) -> None:
        async with ChatClient(server.url) as client:
            for _ in range(3):
                _, seen = await turn_in(client, tenant)
                assert seen["async"] == seen["raw"] == seen["thread"] == [tenant]
            assert len(await listed(client, tenant)) == 3

    await asyncio.gather(*map(visit, names))


async def test_files_workflows_and_operations_work_within_their_tenant(
    server: ServerProcess, tenants: list[str]
) -> None:
    acme, zenith = tenants
    async with ChatClient(server.url) as client:
        async with client.stream(tenant=acme) as stream:
            form = {"message": (None, json.dumps({"message": {"text": "read", "bundle_id": "stepping"}}))}
            sent = await client.http.post(
                f"{server.url}/sse/chat", params={"stream_id": client.stream_id}, headers=headers(client),
                files=[*form.items(), ("files", ("notes.txt", b"some words"))],
            )  # fmt: skip
            assert sent.status_code == 200, sent.text
            assert "notes.txt" in text_of(await stream.until_idle())
        conversation_id = sent.json()["conversation_id"]
        place = f"{server.url}/api/cb/conversations/{{}}/default/{conversation_id}"
        fetched = await client.http.post(f"{place.format(acme)}/fetch", headers=headers(client))
        (file,) = fetched.json()["messages"][0]["attachments"]
        content = await client.http.get(server.url + file["url"], headers=headers(client))
        assert content.content == b"some words"
        elsewhere = file["url"].replace(acme, zenith)
        assert (await client.http.get(server.url + elsewhere, headers=headers(client))).status_code == 404

        start = f"{server.url}/api/chatbot/start/stream"
        body = {"prompt": "go", "tenant": acme, "listFileId": [file["id"]]}
        ran = await client.http.post(start, json=body, headers=headers(client))
        assert "event: complete" in ran.text, ran.text
        assert "notes.txt" in ran.text
        taken = await client.http.post(start, json={**body, "tenant": zenith}, headers=headers(client))
        assert (taken.status_code, "no file of yours" in taken.text) == (400, True)
        joined = {"tenant": acme, "workflowId": ran.headers["X-Workflow-ID"]}
        again = await client.http.post(start, json=joined, headers=headers(client))
        assert "event: complete" in again.text
        assert (
            await client.http.post(start, json={**joined, "tenant": zenith}, headers=headers(client))
        ).status_code == 404

        for name in ("look", "look_in_thread"):
            called = f"{server.url}/api/integrations/bundles/{acme}/default/looking/operations/{name}"
            own = {"data": {}, "conversation_id": conversation_id}
            answer = await client.http.post(called, json=own, headers=headers(client))
            assert answer.json().get("result") == [acme], answer.text
            other = await client.http.post(called.replace(acme, zenith), json=own, headers=headers(client))
            assert other.status_code == 404


async def test_a_path_that_names_no_possible_tenant_is_answered_as_ever(server: ServerProcess) -> None:
    async with ChatClient(server.url) as client, client.stream():
        for tenant in ("%00", "x" * 101, "%1b", "*", "'%20OR%20true"):
            answer = await client.http.get(
                f"{server.url}/api/cb/conversations/{tenant}/default", headers=headers(client)
            )
            assert answer.status_code in (200, 404)
            assert not answer.json().get("items")


# --- those who work for all tenants -------------------------------------------------------------------------


@pytest.fixture
async def auditor(server: ServerProcess) -> Any:
    async with httpx.AsyncClient(base_url=server.url, timeout=30, follow_redirects=True) as http:
        await log_in(http, ADMIN["ADMIN_USERNAME"], ADMIN["ADMIN_PASSWORD"])
        yield http


async def log_in(http: httpx.AsyncClient, username: str, password: str) -> None:
    await http.get("/admin/login/")
    form = {"username": username, "password": password, "csrfmiddlewaretoken": http.cookies["csrftoken"]}
    answer = await http.post("/admin/login/", data={**form, "next": "/admin/"})
    assert "Log out" in answer.text


async def export(http: httpx.AsyncClient, turn_id: str, database: WalledDatabase) -> list[str]:
    """Export a turn's recordings from the admin, as JSONL."""
    rows = database.all(f"SELECT id FROM recorder_recordedenvelope WHERE turn_id = '{turn_id}'")
    form = {
        "action": "export_jsonl", "csrfmiddlewaretoken": http.cookies["csrftoken"],
        "_selected_action": [str(row[0]) for row in rows],
    }  # fmt: skip
    answer = await http.post("/admin/recorder/recordedenvelope/", data=form)
    return answer.text.splitlines() if answer.headers["content-type"] == "application/x-ndjson" else []


async def test_an_auditor_sees_every_tenant_in_the_admin(
    server: ServerProcess, database: WalledDatabase, auditor: httpx.AsyncClient, tenants: list[str]
) -> None:
    async with ChatClient(server.url) as client:
        turns = [(await turn_in(client, tenant, f"audit {tenant}"))[0]["turn_id"] for tenant in tenants]
    page = (await auditor.get("/admin/comm/conversation/")).text
    messages = (await auditor.get("/admin/comm/message/")).text
    for tenant, turn_id in zip(tenants, turns, strict=True):
        assert tenant in page
        assert f"audit {tenant}" in messages
        timeline = f"/admin/recorder/recordedenvelope/turn/{turn_id}/"

        async def shown(path: str = timeline) -> bool:
            return (await auditor.get(path)).status_code == 200

        await aeventually(shown)
        lines = await export(auditor, turn_id, database)
        assert lines
        assert {json.loads(line)["data"]["conversation"]["turn_id"] for line in lines} == {turn_id}


async def test_staff_sees_other_tenants_with_the_permission_only(
    server: ServerProcess, database: WalledDatabase, tenants: list[str]
) -> None:
    async with ChatClient(server.url) as client:
        await turn_in(client, tenants[0])
    name = f"staff-{uuid.uuid4().hex}"
    made = database.manage(
        "shell", "-v", "0", "-c",
        "from django.contrib.auth.models import User, Permission as P;"
        f"u = User.objects.create_user('{name}', password='pw', is_staff=True);"
        "u.user_permissions.set(P.objects.filter(codename__startswith='view_'))",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    async with httpx.AsyncClient(base_url=server.url, timeout=30, follow_redirects=True) as http:
        await log_in(http, name, "pw")
        assert tenants[0] not in (await http.get("/admin/comm/conversation/")).text
        database.manage(
            "shell", "-v", "0", "-c",
            "from django.contrib.auth.models import User, Permission as P;"
            f"User.objects.get(username='{name}').user_permissions.add(P.objects.get(codename='audit_every_tenant'))",
        )  # fmt: skip
        assert tenants[0] in (await http.get("/admin/comm/conversation/")).text


async def test_recordings_are_replayed_and_pruned_by_the_commands(
    server: ServerProcess, database: WalledDatabase, tenants: list[str]
) -> None:
    async with ChatClient(server.url) as client, ChatClient(server.url) as watcher:
        ack, _ = await turn_in(client, tenants[0], "again", bundle_id="stepping")
        turn_id = ack["turn_id"]
        complete = (
            f"SELECT 1 FROM recorder_recordedenvelope WHERE turn_id = '{turn_id}' AND type = 'chat.complete'"
        )
        await aeventually(lambda: database.all(complete))
        printed = await asyncio.to_thread(
            database.manage, "replay", "--turn", turn_id, "--speed", "0", "--to", "jsonl"
        )
        assert printed.returncode == 0, printed.stderr
        assert len(printed.stdout.splitlines()) > 3
        async with watcher.stream() as watching:
            target = f"stream:{watcher.stream_id}"
            shown = await asyncio.to_thread(
                database.manage, "replay", "--turn", turn_id, "--speed", "0", "--to", target
            )
            assert "Shown:" in shown.stderr, shown.stderr
            event = await watching.next()
            assert event.data["conversation"]["turn_id"] == turn_id
    pruned = await asyncio.to_thread(
        database.manage, "prune_recordings", "--older-than", "0s", "--tenant", tenants[0]
    )
    assert int(pruned.stdout.split()[0]) > 3, pruned.stderr
    assert database.all(complete) == []


async def test_only_files_without_a_message_are_pruned(
    server: ServerProcess, database: WalledDatabase, tenants: list[str]
) -> None:
    async with ChatClient(server.url) as client, client.stream(tenant=tenants[0]) as stream:
        form = {"message": (None, json.dumps({"message": {"text": "keep", "bundle_id": "stepping"}}))}
        await client.http.post(
            f"{server.url}/sse/chat", params={"stream_id": client.stream_id}, headers=headers(client),
            files=[*form.items(), ("files", ("kept.txt", b"kept"))],
        )  # fmt: skip
        await stream.until_idle()
    folder = Path(server.env["DATA_DIR"]) / "attachments"
    (folder / "orphan").write_bytes(b"x")
    kept = [path for path in folder.rglob("*") if path.is_file() and path.name != "orphan"]
    for path in (folder / "orphan", *kept):
        os.utime(path, (time.time() - 86_400,) * 2)
    done = await asyncio.to_thread(database.manage, "prune_attachments", DATA_DIR=server.env["DATA_DIR"])
    assert done.stdout.startswith("1 files removed"), done.stdout + done.stderr
    assert all(path.exists() for path in kept)


# --- starting -----------------------------------------------------------------------------------------------


async def test_a_dead_servers_turns_are_declared_and_waiting_ones_run_whatever_their_tenant(
    database: WalledDatabase, tmp_path: Path, tenants: list[str], server: ServerProcess
) -> None:
    await asyncio.to_thread(server.stop)
    try:
        mortal = ServerProcess(tmp_path, database_url=database.url, env=ENV).start()
        async with ChatClient(mortal.url) as client:
            acks = {}
            for tenant in tenants:
                async with client.stream(tenant=tenant) as stream:
                    acks[tenant] = await client.send("wait", tenant=tenant)
                    await stream.until(lambda event: event.event == "chat_start")
            mortal.kill()
            mortal.start()
            client.url = mortal.url
            for tenant, ack in acks.items():
                query = f"SELECT status FROM comm_turn WHERE turn_id = '{ack['turn_id']}'"
                await aeventually(lambda q=query: database.all(q) == [("interrupted",)], timeout=60)
                _, seen = await turn_in(client, tenant, conversation_id=ack["conversation_id"])
                assert seen["raw"] == [tenant]
        mortal.stop()
    finally:
        await asyncio.to_thread(server.start)


def test_a_server_whose_role_passes_by_the_wall_does_not_start(
    database: WalledDatabase, tmp_path: Path
) -> None:
    server = ServerProcess(tmp_path, database_url=database.owner_url, env=ENV)
    with pytest.raises(AssertionError, match=r"TENANT_WALL is on, but the role owner_.* owns comm_"):
        server.start()
