"""The channel layer with history for many processes, on Redis or Valkey."""

from .base import HistoryChannelLayer


class RedisChannelLayer(HistoryChannelLayer):
    """Channels' specification and the history contract, across processes."""

    shared = True
