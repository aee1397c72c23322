"""Asks the registry what nodes earned, as their owner or as the operator, and binds addresses."""

from __future__ import annotations

from typing import Any

from starai.core.clock import SystemClock
from starai.core.errors import ConfigurationRefused
from starai.local.asking import OPERATOR, ask_registry, find_node
from starai.local.home import Home
from starai.local.membership import membership
from starai.protocol.payouts import sign_payout


async def ask_earnings(home: Home, name: str | None, task_id: str | None) -> Any:
    """What node ``name`` earned (None: all nodes, or this device's), or where a task's money is.

    Raises:
        NotFound: there is no such node here, or no such task.
        ConfigurationRefused: neither the node nor the operator is of this home.
        Unavailable, DeadlinePassed: the registry does not answer.
    """
    is_operator = home.has_party(OPERATOR)
    speaker = OPERATOR if is_operator else name or "node"
    arguments: dict[str, object] = {}
    if name is not None:
        arguments["node"] = find_node(home, name)
    async with membership(home, speaker) as member:
        if task_id is not None:
            return await ask_registry(member, "why", task_id=task_id, **arguments)
        return await ask_registry(member, "earnings", **arguments)


async def bind_payout(home: Home, name: str, address: bytes) -> Any:
    """Have the node ``name`` paid to ``address``: signed here, by its own key.

    Raises:
        ConfigurationRefused: the node's key is not in this home.
        Unavailable, DeadlinePassed: the registry does not answer.
    """
    if not home.has_party(name):
        raise ConfigurationRefused(
            f"no node {name!r} in {home.path}: an address is bound where the node's key is"
        )
    bound_ms = SystemClock().now_ms()
    async with membership(home, name) as member:
        signature = sign_payout(member.network, member.identity, address, bound_ms)
        return await ask_registry(
            member,
            "payout",
            address=f"0x{address.hex()}",
            bound_ms=bound_ms,
            signature=signature.hex(),
        )
