"""The demo bundle: reads what it is sent and computes its answer from it, without a model or a network."""

from .bundle import DemoBundle

__all__ = ["DemoBundle"]
