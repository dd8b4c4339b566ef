"""The channel layers that the contract suites run over."""

from collections.abc import Awaitable, Callable

from relay.layers.base import HistoryChannelLayer
from relay.layers.memory import MemoryChannelLayer

LayerFactory = Callable[..., Awaitable[HistoryChannelLayer]]

BACKENDS: dict[str, Callable[..., HistoryChannelLayer]] = {"memory": MemoryChannelLayer}
