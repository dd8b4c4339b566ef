"""Backchannel as it is served, with a producer inside."""

from benchmarks.backchannel import publish
from benchmarks.emitting import Control
from project.asgi import application as backchannel

application = Control(backchannel, publish)
