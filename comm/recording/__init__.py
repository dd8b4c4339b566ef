"""Recording what a communicator says: selected events, kept within bounds, handed to a sink.

`recordable` is what a bundle calls, `scope` one recording as its owner holds it; `selectors` choose events, `rules` say
for whom they are kept, `store` keeps them, `items` is what is kept of one; `handover` and `sinks` hand them on.
"""

from .items import Item
from .recordable import Recordable
from .scope import RecordingScope
from .selectors import Filter, Selector
from .sinks import EventSink, SendResult

__all__ = ["EventSink", "Filter", "Item", "Recordable", "RecordingScope", "Selector", "SendResult"]
