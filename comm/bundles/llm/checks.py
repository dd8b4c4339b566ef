"""System checks of the llm bundle: a wrong setting is told at start, not at the first message."""

from typing import Any
from urllib.parse import urlsplit

from django.core.checks import CheckMessage, Error, register
from django.core.exceptions import ImproperlyConfigured

from .conf import LlmSettings, llm_settings
from .tools import configured_tools

POSITIVE = ("TIMEOUT_SECONDS", "HISTORY_TOKENS", "TOOL_TIMEOUT_SECONDS", "SUGGESTIONS_TIMEOUT_SECONDS")
NOT_NEGATIVE = (
    "PRICE_INPUT_PER_MILLION", "PRICE_OUTPUT_PER_MILLION", "RETRIES", "ATTACHMENT_TOKENS", "TOOL_ROUNDS",
)  # fmt: skip


@register()
def check_llm_settings(**kwargs: Any) -> list[CheckMessage]:
    """LLM has only known keys, says where the server is and which model, and its tools import."""
    try:
        conf = llm_settings()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="llm.E001")]
    found = [*_address(conf), *_numbers(conf)]
    if conf.BASE_URL:
        try:
            configured_tools()
        except ImproperlyConfigured as error:
            found.append(Error(str(error), id="llm.E004"))
    return found


def _address(conf: LlmSettings) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    if bool(conf.BASE_URL) != bool(conf.MODEL):
        missing = "MODEL" if conf.BASE_URL else "BASE_URL"
        found.append(Error(f"LLM[{missing!r}] is missing: the llm bundle needs both", id="llm.E002"))
    try:
        parts = urlsplit(conf.BASE_URL)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        wrong = bool(conf.BASE_URL) and not right
    except ValueError:
        wrong = True
    if wrong:
        # Without the value: it may hold a password.
        text = "LLM['BASE_URL'] must be a URL such as http://127.0.0.1:11434/v1"
        found.append(Error(text, id="llm.E003"))
    if not conf.API_KEY.isascii() or any(map(str.isspace, conf.API_KEY)):
        found.append(Error("LLM['API_KEY'] has characters that no key has", id="llm.E006"))
    return found


def _numbers(conf: LlmSettings) -> list[CheckMessage]:
    wrong = [name for name in POSITIVE if not getattr(conf, name) > 0]
    wrong += [name for name in NOT_NEGATIVE if getattr(conf, name) < 0]
    return [
        Error(f"LLM[{name!r}] is {getattr(conf, name)!r}, which is too small", id="llm.E005")
        for name in wrong
    ]
