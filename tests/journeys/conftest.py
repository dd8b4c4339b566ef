"""Servers and clients for whole journeys."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.servers import ServerProcess


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


@pytest.fixture(params=["uvicorn", "daphne"])
def any_server(request: pytest.FixtureRequest, start_server: StartServer) -> ServerProcess:
    """A server of each kind."""
    return start_server(server=request.param)


@pytest.fixture
def server(start_server: StartServer) -> ServerProcess:
    """A server as `make run` starts it."""
    return start_server()
