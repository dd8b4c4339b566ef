"""Bundles: the base class, the registry, and what a turn shows them."""

from comm.turns.context import HistoryMessage, TurnAttachment, TurnContext, TurnMessage

from .base import Bundle
from .operations import OperationCall, OperationRefused, operation
from .registry import bundle_ids, get_bundle

__all__ = [
    "Bundle",
    "HistoryMessage",
    "OperationCall",
    "OperationRefused",
    "TurnAttachment",
    "TurnContext",
    "TurnMessage",
    "bundle_ids",
    "get_bundle",
    "operation",
]
