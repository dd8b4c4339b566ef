"""The firewall: per-tenant rules on which events reach clients, from `COMM["FIREWALL"]`.

    FIREWALL = {
        "acme": {"deny": ["accounting.*", {"type": "chat.step", "user_type": ["anonymous", "registered"]}]},
        "*": {"deny": [{"marker": "thinking", "user_type": "anonymous"}]},
    }

A rule is a type or a dictionary of fields, each with a pattern or a list of them (`*` and `?` as in file
names); all its fields must match. `deny` blocks what any of its rules matches. With `allow`, only what
one of its rules matches passes; the envelopes that begin and end a turn always do, since a client waits
for them. "*" is for tenants without rules of their own.
"""

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.dispatch import receiver

from .conf import comm_settings
from .filters import EventFilterInput, IEventFilter

EVERYONE = "*"
ALWAYS_ALLOWED = frozenset({"chat.start", "chat.complete", "chat.error", "conv.status"})
FIELDS = ("type", "route", "socket_event", "agent", "step", "status", "marker", "user_type")

Rule = Callable[[Mapping[str, str]], bool]


class TenantFirewall(IEventFilter):
    """The rules of one tenant as a filter."""

    def __init__(self, rules: Mapping[str, Any], where: str = "FIREWALL") -> None:
        if not isinstance(rules, Mapping):
            raise ImproperlyConfigured(f"{where} must be a dictionary with allow and deny, not {rules!r}")
        unknown = sorted(set(rules) - {"allow", "deny"})
        if unknown:
            raise ImproperlyConfigured(f"{where} has no key {', '.join(unknown)}; it has allow and deny")
        self._deny = _compile(rules.get("deny", ()), f"{where}['deny']")
        self._allow = _compile(rules["allow"], f"{where}['allow']") if "allow" in rules else None

    def allow_event(self, user_type: str, user_id: str, event: EventFilterInput) -> bool:
        """Let through what no deny rule matches and, where there is an allow list, it names."""
        facts = {name: str(event.get(name, "")) for name in FIELDS if name != "user_type"}
        facts["user_type"] = user_type
        if any(rule(facts) for rule in self._deny):
            return False
        if self._allow is None or event.type in ALWAYS_ALLOWED:
            return True
        return any(rule(facts) for rule in self._allow)


def _compile(rules: Any, where: str) -> list[Rule]:
    if isinstance(rules, str) or not isinstance(rules, Sequence):
        raise ImproperlyConfigured(f"{where} must be a list of rules")
    return [_rule({"type": rule} if isinstance(rule, str) else rule, where) for rule in rules]


def _rule(fields: Any, where: str) -> Rule:
    if not isinstance(fields, Mapping) or not fields:
        raise ImproperlyConfigured(f"{where}: a rule is a type or a dictionary of fields, not {fields!r}")
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise ImproperlyConfigured(f"{where}: no field {', '.join(unknown)}; there are {', '.join(FIELDS)}")
    patterns = {name: _pattern(given, f"{where}: {name}") for name, given in fields.items()}

    def matches(facts: Mapping[str, str]) -> bool:
        return all(pattern.fullmatch(facts[name]) for name, pattern in patterns.items())

    return matches


def _pattern(given: Any, where: str) -> re.Pattern[str]:
    globs = [given] if isinstance(given, str) else given
    if not isinstance(globs, Sequence) or not globs or not all(isinstance(glob, str) for glob in globs):
        raise ImproperlyConfigured(f"{where} must be a pattern or a list of patterns, not {given!r}")
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs))


@cache
def tenant_firewall(tenant: str) -> TenantFirewall | None:
    """Return the firewall of a tenant; None where no rule applies to it."""
    rules = comm_settings().FIREWALL
    name = tenant if tenant in rules else EVERYONE
    return TenantFirewall(rules[name], f"COMM['FIREWALL'][{name!r}]") if name in rules else None


@receiver(setting_changed)
def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "COMM":
        tenant_firewall.cache_clear()
