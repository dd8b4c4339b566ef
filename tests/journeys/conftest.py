"""Servers and clients for whole journeys."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.servers import SERVERS, ServerProcess

PATIENT = {"DRAIN_GRACE_SECONDS": "60"}
"""A turn that may finish while its server drains does so on a slow machine, too."""


class StartServer(Protocol):
    """Starts a server; keyword arguments as for ServerProcess."""

    def __call__(self, **kwargs: Any) -> ServerProcess: ...


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Start servers that are stopped when the test ends."""
    started: list[ServerProcess] = []

    def start(**kwargs: Any) -> ServerProcess:
        folder = tmp_path / f"server{len(started)}"
        folder.mkdir()
        server = ServerProcess(folder, **kwargs)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.stop()


@pytest.fixture(params=SERVERS)
def any_own_server(request: pytest.FixtureRequest, start_server: StartServer) -> ServerProcess:
    """A server of each kind, for one test."""
    return start_server(server=request.param, env=PATIENT)


@pytest.fixture
def own_server(start_server: StartServer) -> ServerProcess:
    """A server as `make run` starts it, for one test, which may stop or kill it."""
    return start_server(env=PATIENT)


@pytest.fixture(scope="module", params=SERVERS)
def any_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server of each kind, for all tests of a module: they leave it as it was."""
    server = ServerProcess(tmp_path_factory.mktemp("shared"), server=request.param).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server as `make run` starts it, for all tests of a module: they leave it as it was."""
    server = ServerProcess(tmp_path_factory.mktemp("shared")).start()
    yield server
    server.stop()
