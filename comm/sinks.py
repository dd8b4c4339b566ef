"""Who else sees a published envelope: sinks named in `COMM["SINKS"]`, started and closed with the process."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from django.utils.module_loading import import_string

from .conf import comm_settings
from .envelope import Envelope
from .history import Position

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Published:
    """What the channel layer took: the envelope, its encoded body, and where it went.

    `position` is None for project events, which are transient. `target_sid` is None for a broadcast.
    """

    envelope: Envelope
    body: bytes
    route: str
    position: Position | None
    session_id: str
    target_sid: str | None


class Sink:
    """Base class of a sink.

    `accept` is called on the event loop after a publish succeeded; positions, not calls, give the order. It
    must not wait. What a sink raises is logged and holds up nobody.
    """

    async def start(self) -> None:
        """Begin work; called once, on the process's event loop."""

    def accept(self, published: Published) -> None:
        """Take one published envelope without waiting."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Finish what was accepted, then stop."""


_active: list[Sink] = []


def active_sinks() -> Iterable[Sink]:
    """The sinks that are running in this process."""
    return tuple(_active)


def are_active() -> bool:
    """Whether any sink runs in this process: where none does, nothing has to be made for it."""
    return bool(_active)


async def start_sinks() -> None:
    """Start the sinks of `COMM["SINKS"]`; harmless when they run already."""
    if _active:
        return
    for path in comm_settings().SINKS:
        sink: Sink = import_string(path)()
        await sink.start()
        _active.append(sink)


async def aclose_sinks() -> None:
    """Flush and stop every running sink."""
    while _active:
        sink = _active.pop()
        try:
            await sink.aclose()
        except Exception:
            # The other sinks still have rows to write.
            logger.exception("Sink %s failed while closing", type(sink).__name__)


def offer(published: Published) -> None:
    """Show a published envelope to every running sink."""
    for sink in _active:
        try:
            sink.accept(published)
        except Exception:
            # A sink that fails must not stop the turn whose envelope it saw.
            logger.exception("Sink %s failed on %s", type(sink).__name__, published.envelope.type)
