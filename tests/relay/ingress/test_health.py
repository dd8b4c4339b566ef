"""What /health says of the recording, in a process of a fleet."""

import asyncio
import secrets
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from channels.layers import channel_layers
from django.test import Client

from comm import publisher
from comm.groups import session_group
from comm.publisher import MESSAGE_TYPE
from relay.layers.redis import RedisChannelLayer
from tests.contract.backends import redis_url


class Home:
    """A loop on a thread that owns a Redis layer, as that of a serving process does."""

    def __init__(self, url: str) -> None:
        self.layer = RedisChannelLayer(url=url, prefix=f"test-{secrets.token_hex(6)}", timeout=1)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="home")
        self._thread.start()

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def close(self) -> None:
        self.run(self.layer.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(60)
        self.loop.close()


@pytest.fixture
def at_home(request: pytest.FixtureRequest) -> Iterator[Home]:
    """The process's layer is on Redis; the parameter is its address, if it is another one."""
    home = Home(getattr(request, "param", None) or redis_url())
    present = channel_layers["default"]
    channel_layers.set("default", home.layer)
    publisher.set_home_loop(home.loop)
    try:
        yield home
    finally:
        publisher.set_home_loop(None)
        channel_layers.set("default", present)
        home.close()


def test_health_says_how_far_the_recorder_is_behind(client: Client, at_home: Home) -> None:
    assert client.get("/health").json()["recorder"] == {"waiting": 0, "seconds": 0.0}
    message = {"type": MESSAGE_TYPE, "group": "", "route": "r", "target_sid": None, "body": b"{}"}
    at_home.run(at_home.layer.group_send(session_group("s"), message))
    health = client.get("/health").json()
    assert health["recorder"]["waiting"] == 1
    assert 0 <= health["recorder"]["seconds"] < 60
    at_home.run(at_home.layer.flush())


@pytest.mark.parametrize("at_home", ["redis://127.0.0.1:1/0"], indirect=True)
def test_health_is_that_of_this_process_while_redis_is_away(client: Client, at_home: Home) -> None:
    response = client.get("/health")
    assert response.status_code == 200
    assert response.json()["status"] == "healthy"
    assert response.json()["recorder"] is None


def test_a_process_that_records_for_itself_says_nothing_of_a_recorder(client: Client) -> None:
    assert "recorder" not in client.get("/health").json()
