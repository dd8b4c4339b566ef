"""For whom this code works: the tenant whose rows it may see and write. The wall in the database goes by it.

With `TENANT_WALL` on, PostgreSQL itself shows a statement the rows of one tenant and no others, whatever the
statement asks for. Which one is said here, and carried from tasks to their tasks and threads as every context
variable is:

    with tenant_scope("acme"):
        Conversation.objects.count()      # acme's
    with every_tenant():
        Conversation.objects.count()      # everybody's: for audit, sweeps and recorders, and said out loud
    Conversation.objects.count()          # nobody's: 0, and nothing can be written

A turn and an operation of a bundle run within their tenant, and so does a request whose path or message names
one. A thread that was started without a context (`executor.submit`) works for nobody until it says for whom.
Without the wall all of this changes nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from contextlib import _GeneratorContextManager

    SightScope = _GeneratorContextManager[None]

T = TypeVar("T")


class Sight(NamedTuple):
    """What a statement may see: one tenant's rows, every tenant's, or nobody's."""

    tenant: str = ""
    every: bool = False


NOBODY = Sight()
EVERYBODY = Sight(every=True)

TENANT_VARIABLE = "backchannel.tenant"
EVERY_VARIABLE = "backchannel.every_tenant"
"""What PostgreSQL knows of it. Two, since a client may name its tenant by any word that could mean "all"."""

_sight: ContextVar[Sight] = ContextVar("sight", default=NOBODY)


def current_sight() -> Sight:
    """Return what statements of this context may see."""
    return _sight.get()


def tenant_scope(tenant: str) -> "SightScope":
    """Work for one tenant within a `with` block, or within a synchronous function that this decorates."""
    return sight_scope(Sight(tenant))


def every_tenant() -> "SightScope":
    """Work for all tenants: for audit, sweeps and recorders, where no tenant's request is being answered."""
    return sight_scope(EVERYBODY)


def nobody() -> "SightScope":
    """Work for no tenant, whatever the context outside says."""
    return sight_scope(NOBODY)


@contextmanager
def sight_scope(sight: Sight) -> Iterator[None]:
    """See this within a block, and what was seen before after it."""
    before = _sight.get()
    _sight.set(sight)
    try:
        yield
    finally:
        # Not by token: a generator's block may end in another context than the one it began in.
        _sight.set(before)


def see(sight: Sight) -> None:
    """See this from here on; for a middleware's hooks, which are no block."""
    _sight.set(sight)


def each_within(sight: Sight, items: Iterator[T]) -> Iterator[T]:
    """Yield items that are made one by one, each under this sight; who consumes them keeps its own."""
    done = object()
    while True:
        with sight_scope(sight):
            item = next(items, done)
        if item is done:
            return
        yield item  # type: ignore[misc]
