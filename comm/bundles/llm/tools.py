"""Tools: Python functions that a model may call, made with a decorator and named in `LLM["TOOLS"]`."""

import importlib
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, overload

import msgspec
from channels.db import database_sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.dispatch import receiver
from django.utils.module_loading import import_string

from comm.turns.context import TurnContext

from .conf import llm_settings

Function = Callable[..., Any]


class ToolError(Exception):
    """A tool cannot do what it was asked for; the text is for the model, which may try again."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call: its name, its description and the JSON schema of its arguments.

    Calling it calls the function.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    function: Function
    arguments: type[msgspec.Struct]
    turn_parameter: str = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    @property
    def definition(self) -> dict[str, Any]:
        """The tool as the protocol describes it to the model."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}

    async def run(self, turn: TurnContext, arguments: str) -> str:
        """Call the function with the JSON that the model wrote; return its result as text.

        A synchronous function runs in a thread, with database connections of its own. Errors: ToolError for
        arguments that do not fit, and whatever the function raises.
        """
        try:
            given = msgspec.json.decode(arguments.strip() or "{}", type=self.arguments, strict=False)
        except msgspec.DecodeError as error:
            raise ToolError(f"the arguments do not fit: {error}") from error
        keywords = {name: getattr(given, name) for name in self.arguments.__struct_fields__}
        if self.turn_parameter:
            keywords[self.turn_parameter] = turn
        if inspect.iscoroutinefunction(self.function):
            result = await self.function(**keywords)
        else:
            # Not on the turn's own thread: one that hangs there would hold up the end of the turn.
            result = await database_sync_to_async(self.function, thread_sensitive=False)(**keywords)
        return result if isinstance(result, str) else msgspec.json.encode(result, enc_hook=str).decode()


@overload
def tool(function: Function) -> Tool: ...
@overload
def tool(*, name: str = ...) -> Callable[[Function], Tool]: ...
def tool(function: Function | None = None, *, name: str = "") -> Tool | Callable[[Function], Tool]:
    """Make a tool of a function, sync or async.

    Its docstring is the description, its annotations are the schema (whatever msgspec reads); say what a
    parameter means with `Annotated[str, "…"]`. A parameter annotated `TurnContext` is handed the turn and
    hidden from the model. Raise ToolError to tell the model what was wrong. Results are strings, or go as
    JSON.
    """
    if function is None:
        return lambda given: _make(given, name)
    return _make(function, name)


@cache
def configured_tools() -> dict[str, Tool]:
    """Return the tools of `LLM["TOOLS"]` by name. Errors: ImproperlyConfigured."""
    found: dict[str, Tool] = {}
    for path in llm_settings().TOOLS:
        for item in _tools_at(path):
            if found.setdefault(item.name, item) is not item:
                raise ImproperlyConfigured(f"LLM['TOOLS'] has two tools named {item.name!r}")
    return found


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "LLM":
        configured_tools.cache_clear()


def _tools_at(path: str) -> list[Tool]:
    """Import a tool, or the tools of a module."""
    try:
        place: Any = importlib.import_module(path)
    except ModuleNotFoundError:
        try:
            place = import_string(path)
        except ImportError as error:
            raise ImproperlyConfigured(f"LLM['TOOLS'] names {path!r}: {error}") from error
    within = [place] if isinstance(place, Tool) else vars(place).values()
    tools = [item for item in within if isinstance(item, Tool)]
    if not tools:
        raise ImproperlyConfigured(f"LLM['TOOLS'] names {path!r}, where there is no tool")
    return tools


def _make(function: Function, name: str) -> Tool:
    hints = typing.get_type_hints(function, include_extras=True)
    turn_parameter = ""
    fields: list[Any] = []
    for parameter in inspect.signature(function).parameters.values():
        hint = hints.get(parameter.name, str)
        if hint is TurnContext:
            turn_parameter = parameter.name
        elif parameter.default is inspect.Parameter.empty:
            fields.append((parameter.name, _described(hint)))
        else:
            fields.append((parameter.name, _described(hint), _default(parameter.default)))
    name = name or function.__name__
    arguments = msgspec.defstruct(name, fields, kw_only=True)
    (schema,), components = msgspec.json.schema_components((arguments,), ref_template="#/$defs/{name}")
    parameters = dict(components.pop(schema["$ref"].rpartition("/")[2]))
    parameters.pop("title", None)
    if components:
        parameters["$defs"] = components
    return Tool(name, inspect.getdoc(function) or "", parameters, function, arguments, turn_parameter)


def _described(hint: Any) -> Any:
    """Turn `Annotated[str, "what it means"]` into what msgspec reads."""
    if typing.get_origin(hint) is not Annotated:
        return hint
    kind, *notes = typing.get_args(hint)
    for note in notes:
        kind = Annotated[kind, msgspec.Meta(description=note) if isinstance(note, str) else note]
    return kind


def _default(value: Any) -> Any:
    return msgspec.field(default_factory=value.copy) if isinstance(value, (list, dict, set)) else value
