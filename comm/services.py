"""What else runs with a process: services named in `COMM["SERVICES"]`, for a worker in `COMM["WORKER_SERVICES"]`."""

import logging
from collections.abc import Sequence

from django.utils.module_loading import import_string

logger = logging.getLogger(__name__)


class Service:
    """Base class of a service: it works from `start` to `aclose`, on the process's event loop."""

    async def start(self) -> None:
        """Begin work; called once."""

    async def aclose(self) -> None:
        """Stop, and wait until nothing of it runs any more."""


_active: list[Service] = []


async def start_services(paths: Sequence[str]) -> None:
    """Start the services of these dotted paths; harmless when some run already."""
    if _active:
        return
    for path in paths:
        service: Service = import_string(path)()
        await service.start()
        _active.append(service)


async def aclose_services() -> None:
    """Stop every running service."""
    while _active:
        service = _active.pop()
        try:
            await service.aclose()
        except Exception:
            # The process stops: the others have something to finish too.
            logger.exception("Service %s failed while closing", type(service).__name__)
