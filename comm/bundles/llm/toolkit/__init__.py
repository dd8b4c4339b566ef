"""The tools that ship: a calculator, the user's tables, the clock."""

from .calculator import calculate
from .clock import current_time
from .tables import query_table

__all__ = ["calculate", "current_time", "query_table"]
