"""Settings of the llm bundle: `LLM` in the Django settings, over the defaults below."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.dispatch import receiver

DEFAULT_PROMPT = (
    "You are a helpful assistant in a chat. Answer in the language of the user, in Markdown, and no longer "
    "than the question asks for. Use the tools where they know better than you do: to compute, to read the "
    "user's tables, to tell the time. Say so when you don't know something."
)


class LlmSettings(NamedTuple):
    """Every setting of the bundle with its default."""

    BASE_URL: str = ""
    """Where `/chat/completions` begins: `http://127.0.0.1:11434/v1`."""
    API_KEY: str = ""
    """Sent as a bearer token; without one no such header is sent."""
    MODEL: str = ""
    SYSTEM_PROMPT: str = ""
    """Empty: DEFAULT_PROMPT."""

    PRICE_INPUT_PER_MILLION: float = 0.0
    """US dollars for a million tokens; a model on one's own machine costs none."""
    PRICE_OUTPUT_PER_MILLION: float = 0.0

    TIMEOUT_SECONDS: float = 120.0
    """The longest silence of the server: a model that reads a long prompt on a CPU is silent for a minute."""
    RETRIES: int = 2
    """Tries after a failed one that may pass, as long as nothing was received."""

    HISTORY_TOKENS: int = 6000
    """What is sent of the conversation so far, estimated; with files and answer it fits 16,384."""
    ATTACHMENT_TOKENS: int = 6000
    """What is sent of the text of files, estimated."""
    IMAGES: bool = True
    """Whether the model sees images; without, their user is told."""

    TOOLS: Sequence[str] = ("comm.bundles.llm.toolkit",)
    """Dotted paths of tools, or of modules that hold some."""
    TOOL_ROUNDS: int = 8
    """How often in one turn the model may ask for tools before it must answer."""
    TOOL_TIMEOUT_SECONDS: float = 30.0

    SUGGESTIONS: bool = True
    """Whether a second, small request asks for what the user might ask next."""
    SUGGESTIONS_TIMEOUT_SECONDS: float = 8.0
    """The turn waits for them; no suggestion is worth more."""


@cache
def llm_settings() -> LlmSettings:
    """Return LLM over its defaults; an unknown key is an ImproperlyConfigured error."""
    given: Mapping[str, Any] = getattr(settings, "LLM", {})
    unknown = sorted(set(given) - set(LlmSettings._fields))
    if unknown:
        raise ImproperlyConfigured(f"LLM has no setting {', '.join(unknown)}")
    return LlmSettings(**given)


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "LLM":
        llm_settings.cache_clear()
