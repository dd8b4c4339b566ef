"""The plain recipe on Channels' own in-memory layer, with a producer inside."""

from benchmarks.emitting import Control

from . import recipe

recipe.configure({"BACKEND": "channels.layers.InMemoryChannelLayer"})
application = Control(recipe.application, recipe.publish)
