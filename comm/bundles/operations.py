"""Operations of bundles: what a page may ask of a bundle beside the chat, and what an operation sees of the request."""

import asyncio
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar, overload

from channels.db import aclose_old_connections, database_sync_to_async

from comm.communicator import ChatCommunicator
from comm.exceptions import CommError
from comm.tenants import tenant_scope
from comm.zones import user_zone

from .base import Bundle

logger = logging.getLogger(__name__)

Method = Literal["GET", "POST"]
F = TypeVar("F", bound=Callable[..., Any])

_MARK = "_backchannel_operation"


class OperationRefused(CommError):
    """An operation cannot be carried out as asked; the text reaches the caller, `status` is 400 to 499."""

    code = "operation_refused"

    def __init__(self, sentence: str, *, status: int = 400, code: str = "") -> None:
        super().__init__(sentence)
        self.status = status if 400 <= status < 500 else 400
        self.code = code or self.code


class OperationUnknown(CommError):
    """The bundle declares no such operation."""

    code = "operation_unknown"


class OperationFailed(CommError):
    """An operation raised; what, is in the log."""

    code = "operation_failed"


class OperationTimedOut(CommError):
    """An operation took too long and was cancelled."""

    code = "operation_timeout"


@dataclass(frozen=True, slots=True)
class OperationCall:
    """One request to an operation.

    `data` is the body's `data` object, or the query of a GET. `communicator` emits to the peer that the request
    named, else to the session; `broadcast=True` always to the session. `conversation_id` is the caller's own, or
    empty; there is no turn.
    """

    operation: str
    method: str
    data: dict[str, Any]
    bundle_id: str
    tenant: str
    project: str
    session_id: str
    user_id: str
    user_type: str
    username: str
    communicator: ChatCommunicator
    conversation_id: str = ""
    stream_id: str = ""
    timezone: str = ""
    utc_offset_min: int | None = None

    def now(self) -> datetime:
        """The present, in the user's time zone."""
        return datetime.now(user_zone(self.timezone, self.utc_offset_min))


@dataclass(frozen=True, slots=True)
class Operation:
    """A declared operation: its name, its methods, and who may call it (an empty tuple: everybody)."""

    name: str
    methods: tuple[Method, ...]
    user_types: tuple[str, ...]
    attribute: str
    summary: str

    async def run(self, bundle: Bundle, call: OperationCall, timeout_seconds: float) -> Any:
        """Carry it out for its tenant and return its result. A synchronous one runs in a thread, which no timeout ends.

        Errors: OperationRefused as raised, OperationTimedOut, OperationFailed for anything else.
        """
        with tenant_scope(call.tenant):
            return await self._run(bundle, call, timeout_seconds)

    async def _run(self, bundle: Bundle, call: OperationCall, timeout_seconds: float) -> Any:
        function = getattr(bundle, self.attribute)
        await aclose_old_connections()
        try:
            async with asyncio.timeout(timeout_seconds) as limit:
                if inspect.iscoroutinefunction(function):
                    return await function(call)
                return await database_sync_to_async(function, thread_sensitive=False)(call)
        except OperationRefused:
            raise
        except TimeoutError as error:
            if limit.expired():
                raise OperationTimedOut(f"the operation took over {timeout_seconds:g} seconds") from error
            raise self._failed(bundle) from error
        except Exception as error:
            # The top of the bundle's own code: its text may tell what no caller should read.
            raise self._failed(bundle) from error
        finally:
            await aclose_old_connections()

    def _failed(self, bundle: Bundle) -> OperationFailed:
        logger.exception("Operation %s of %s failed", self.name, type(bundle).__name__)
        return OperationFailed("the operation failed; the details are in the server's log")


@overload
def operation(function: F) -> F: ...
@overload
def operation(
    *, name: str = "", methods: Sequence[Method] = ..., user_types: Sequence[str] = ()
) -> Callable[[F], F]: ...
def operation(
    function: F | None = None,
    *,
    name: str = "",
    methods: Sequence[Method] = ("GET", "POST"),
    user_types: Sequence[str] = (),
) -> F | Callable[[F], F]:
    """Declare a method of a bundle, sync or async, as an operation: `async def top_rows(self, call): …`.

    It takes an OperationCall and returns what JSON can hold. `name` is its place in the URL (the method's name),
    `user_types` are those who may call it.
    """
    if isinstance(methods, str) or not set(methods) <= {"GET", "POST"} or not methods:
        raise ValueError(f"methods: {methods!r}; operations answer GET and POST")

    def mark(method: F) -> F:
        found = Operation(
            name=name or method.__name__,
            methods=tuple(methods),
            user_types=tuple(user_types),
            attribute=method.__name__,
            summary=(inspect.getdoc(method) or "").partition("\n")[0],
        )
        setattr(method, _MARK, found)
        return method

    return mark if function is None else mark(function)


def operations_of(bundle: Bundle) -> dict[str, Operation]:
    """Return the operations that a bundle declares, by their names."""
    found: dict[str, Operation] = {}
    for attribute, member in inspect.getmembers(type(bundle), callable):
        declared: Operation | None = getattr(member, _MARK, None)
        if declared is not None and declared.attribute == attribute:
            found[declared.name] = declared
    return found


def operation_of(bundle: Bundle, name: str) -> Operation:
    """Return a declared operation. Errors: OperationUnknown names those that there are."""
    declared = operations_of(bundle)
    if name not in declared:
        there_are = ", ".join(sorted(declared)) or "none"
        raise OperationUnknown(f"there is no operation {name!r:.60}; this bundle has {there_are}")
    return declared[name]
