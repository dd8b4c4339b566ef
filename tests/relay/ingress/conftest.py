"""A home loop for what the endpoints emit, and visitors who use them."""

from collections.abc import Callable, Iterator

import pytest
from pytest_django.fixtures import Settings

from tests.relay.ingress.visitors import Home, Visitor


@pytest.fixture
def home() -> Iterator[Home]:
    """The loop that publishes."""
    with Home().open() as home:
        yield home


@pytest.fixture
def make_visitor(home: Home, transactional_db: None, settings: Settings) -> Iterator[Callable[..., Visitor]]:
    """Make visitors; their streams are closed after the test, and their files are kept nowhere."""
    storage = {"BACKEND": "django.core.files.storage.InMemoryStorage"}
    settings.STORAGES = {**settings.STORAGES, "attachments": storage}
    made: list[Visitor] = []

    def make(username: str = "", **scope: str) -> Visitor:
        made.append(Visitor(home, username, **scope))
        return made[-1]

    yield make
    for visitor in made:
        visitor.close_stream()


@pytest.fixture
def visitor(make_visitor: Callable[..., Visitor]) -> Visitor:
    """An anonymous visitor with an open stream of acme/web."""
    return make_visitor()
