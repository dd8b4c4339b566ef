"""What relay tells at start about its settings."""

import pytest
from django.core.checks import run_checks
from pytest_django.fixtures import Settings


def told(check_id: str) -> list[str]:
    return [message.msg for message in run_checks() if message.id == check_id]


def test_an_address_of_redis_that_cannot_be_read_is_told_without_its_password(settings: Settings) -> None:
    backend = "relay.layers.redis.RedisChannelLayer"
    settings.CHANNEL_LAYERS = {
        "default": {"BACKEND": backend, "CONFIG": {"url": "redis://:secret@host:port"}}
    }
    (sentence,) = told("relay.E008")
    assert "REDIS_URL" in sentence
    assert "secret" not in sentence


@pytest.mark.parametrize("url", ["redis://host:1/0", "rediss://host", "unix:///run/redis.sock"])
def test_a_good_address_is_no_error(settings: Settings, url: str) -> None:
    backend = "relay.layers.redis.RedisChannelLayer"
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": backend, "CONFIG": {"url": url}}}
    assert told("relay.E008") == []
