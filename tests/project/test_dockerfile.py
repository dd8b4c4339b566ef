"""The Dockerfile and the Procfile: what they would run, run without Docker."""

import re
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from project.fleet import web_command
from tests.databases import new_sqlite
from tests.fleet import DRAINED
from tests.processes import ROOT, TestedProcess
from tests.project.packaging import PATH, Dockerfile, build_context, is_ignored, procfile, run
from tests.servers import free_port

pytestmark = pytest.mark.wire
PRODUCTION = {
    "SECRET_KEY": "a-key-of-fifty-characters-for-one-test-of-the-image-x",
    "ALLOWED_HOSTS": "chat.example.com",
}
KEPT_OUT = (".env", ".env.local", ".git/config", "var/x.sqlite3", "tests/servers.py", "x/__pycache__/y.pyc")
TAKEN = ("manage.py", "project/settings.py", "templates/x.html", "requirements.txt", "relay/static/x.js")


@pytest.fixture(scope="module")
def dockerfile() -> Dockerfile:
    return Dockerfile(ROOT / "Dockerfile")


def options(command: str) -> list[str]:
    """The arguments of a uvicorn command from the application on, without host and port."""
    rest = re.sub(r"\s+", " ", command.replace("\\\n", " ")).partition("project.asgi:application ")[2]
    return re.sub(r"--(host|port) \S+ ?", "", rest).split()


def test_the_image_runs_as_a_user_without_rights_and_hears_sigterm(dockerfile: Dockerfile) -> None:
    names = [name for name, _ in dockerfile.instructions]
    assert dockerfile.last("FROM") == "python:3.11-slim"
    assert dockerfile.last("USER") not in ("", "root", "0")
    assert names.index("USER") > max(place for place, name in enumerate(names) if name in ("RUN", "COPY"))
    assert dockerfile.last("STOPSIGNAL") == "SIGTERM"
    assert dockerfile.command[0] == "python"
    assert dockerfile.healthcheck[0] == "python"
    made = f"--home-dir /nonexistent --no-create-home {dockerfile.last('USER')}"
    assert f"useradd --system --uid 10001 {made}" in " ".join(dockerfile.all("RUN"))


def test_secrets_and_what_only_development_needs_stay_out_of_the_image() -> None:
    assert [name for name in KEPT_OUT if not is_ignored(name)] == []
    assert [name for name in TAKEN if is_ignored(name)] == []


def test_every_way_to_start_a_web_process_has_the_same_options(dockerfile: Dockerfile) -> None:
    make_run = (
        (ROOT / "Makefile")
        .read_text(encoding="utf-8")
        .partition("uvicorn project.asgi")[2]
        .partition("\n\n")[0]
    )
    expected = options(" ".join(web_command("127.0.0.1", 8000)))
    assert "--timeout-graceful-shutdown" in expected
    assert options("project.asgi" + make_run) == expected
    assert options(" ".join(dockerfile.command)) == expected
    assert options(procfile()["web"]) == expected


def test_the_image_serves_is_healthy_and_drains(dockerfile: Dockerfile, tmp_path: Path) -> None:
    app = build_context(tmp_path / "app")
    port = free_port()
    env = {
        **dockerfile.env,
        **PRODUCTION,
        "DATA_DIR": str(tmp_path / "data"),
        "DATABASE_URL": new_sqlite(tmp_path),
    }
    assert dockerfile.env["DATA_DIR"] == dockerfile.last("VOLUME") == "/data"
    assert dockerfile.env["DEBUG"] == "false"
    (collect,) = re.findall(r"python manage.py collectstatic[^&]*", " ".join(dockerfile.all("RUN")))
    done = run(collect.split(), cwd=app, env=env)
    assert done.returncode == 0, done.stderr

    def here(command: list[str]) -> list[str]:
        assert "8000" in command
        return [str(port) if argument == "8000" else argument for argument in command]

    server = TestedProcess(
        "the image's command", here(dockerfile.command), tmp_path / "log", env={"PATH": PATH, **env},
        ready="Uvicorn running", cwd=app,
    )  # fmt: skip
    server.start()
    try:
        healthy = run(here(dockerfile.healthcheck), cwd=app, env=env)
        assert healthy.returncode == 0, healthy.stderr + server.output()
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Host": "chat.example.com"}
        ) as client:
            assert client.get("/").status_code == 200
            assert client.get("/static/admin/css/base.css").status_code == 200
            assert client.get("/health", headers={"Host": "elsewhere.example"}).status_code == 400
        server.terminate()
        assert server.wait() in DRAINED
        assert "Drained" in server.output()
        assert "Traceback" not in server.output()
        assert run(here(dockerfile.healthcheck), cwd=app, env=env).returncode == 1
    finally:
        server.close()


def test_the_procfile_s_web_process_takes_its_port_and_hears_sigterm(tmp_path: Path) -> None:
    port = free_port()
    lines = procfile()
    assert set(lines) == {"release", "web", "worker", "recorder"}
    env = {"PATH": PATH, "DATA_DIR": str(tmp_path), "DATABASE_URL": new_sqlite(tmp_path), "PORT": str(port)}
    server = TestedProcess(
        "web", ["sh", "-c", lines["web"]], tmp_path / "log", env=env, ready="Uvicorn running"
    )
    server.start()
    try:
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
        server.process.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
        assert server.wait() in DRAINED
        assert "Drained" in server.output()
    finally:
        server.close()


@pytest.mark.parametrize("role", ["worker", "recorder"])
def test_the_procfile_names_commands_that_there_are(role: str) -> None:
    words = procfile()[role].split()
    assert words[:3] == ["exec", "python", "manage.py"]
    done = subprocess.run(
        [*words[1:], "--help"], cwd=ROOT, env={"PATH": PATH}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
