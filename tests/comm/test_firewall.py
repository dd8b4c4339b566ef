"""The firewall: which events of a tenant reach its clients."""

from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from comm import ChatCommunicator
from comm.checks import check_comm_settings
from comm.firewall import TenantFirewall
from tests.comm.listening import Listener

Maker = Callable[..., ChatCommunicator]


def tenant(name: str, user_type: str = "registered") -> dict[str, str]:
    return {"tenant": name, "project": "p", "user": "u", "user_type": user_type}


async def test_each_tenant_has_its_own_rules_and_the_others_share_the_default(
    make_comm: Maker, settings: Any
) -> None:
    settings.COMM = {"FIREWALL": {"acme": {"deny": ["accounting.*"]}, "*": {"deny": ["chat.step"]}}}
    acme, other = make_comm(service=tenant("acme")), make_comm(service=tenant("other"))
    assert await acme.event(type="accounting.usage") is None
    assert await acme.step("Working") is not None
    assert await other.event(type="accounting.usage") is not None
    assert await other.step("Working") is None


async def test_without_rules_everything_passes(make_comm: Maker, settings: Any) -> None:
    settings.COMM = {"FIREWALL": {"acme": {"deny": ["*"]}}}
    assert await make_comm(service=tenant("other")).step("Working") is not None


async def test_all_fields_of_a_rule_must_match(make_comm: Maker, settings: Any) -> None:
    rule = {"marker": "thinking", "user_type": ["anonymous", "registered"]}
    settings.COMM = {"FIREWALL": {"*": {"deny": [rule]}}}
    registered, paid = make_comm(service=tenant("acme")), make_comm(service=tenant("acme", "paid"))
    assert await registered.delta("thinking", "Hm") is None
    assert await registered.delta("answer", "Yes") is not None
    assert await registered.step("Working") is not None
    assert await paid.delta("thinking", "Hm") is not None


async def test_an_allow_list_lets_only_what_it_names_through_and_the_frame_of_the_turn(
    make_comm: Maker, settings: Any, listener: Listener
) -> None:
    settings.COMM = {"FIREWALL": {"acme": {"allow": [{"type": "chat.delta", "marker": "answer"}]}}}
    comm = make_comm()
    await comm.start()
    await comm.step("Working")
    await comm.delta("thinking", "Hm")
    await comm.delta("answer", "Yes")
    await comm.complete()
    await comm.event(type="conv.status")
    heard = await listener.until("conv.status")
    assert [item.envelope["type"] for item in heard] == [
        "chat.start",
        "chat.delta",
        "chat.complete",
        "conv.status",
    ]


async def test_deny_wins_over_allow(make_comm: Maker, settings: Any) -> None:
    settings.COMM = {"FIREWALL": {"*": {"allow": ["chat.*"], "deny": [{"agent": "internal.*"}]}}}
    comm = make_comm()
    assert await comm.step("Working", agent="internal.gate") is None
    assert await comm.step("Working", agent="solver") is not None
    assert await comm.event(type="my.card") is None


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        (["chat.step"], "must be a dictionary"),
        ({"dney": []}, "no key dney"),
        ({"deny": "chat.step"}, "must be a list"),
        ({"deny": [{"typ": "x"}]}, "no field typ"),
        ({"deny": [{}]}, "a rule is"),
        ({"deny": [7]}, "a rule is"),
        ({"allow": [{"type": [1]}]}, "must be a pattern"),
        ({"allow": [{"type": []}]}, "must be a pattern"),
    ],
)
def test_a_wrong_rule_is_told_and_not_passed_over(
    rules: dict[str, Any], complaint: str, settings: Any
) -> None:
    with pytest.raises(ImproperlyConfigured, match=complaint):
        TenantFirewall(rules)
    settings.COMM = {"FIREWALL": {"acme": rules}}
    assert "comm.E005" in [error.id for error in check_comm_settings()]
