"""Asks the network how a node stands, as its owner or as the operator, and for another chance."""

from __future__ import annotations

from starai.core.errors import Unavailable
from starai.exchange.standing.pleading import plead
from starai.local.asking import OPERATOR, find_node
from starai.local.home import Home
from starai.local.membership import membership
from starai.protocol.standing import Standings
from starai.protocol.subjects import Role


async def ask_standing(home: Home, name: str | None, what: str = "why") -> list[Standings]:
    """What each distributor says of the node ``name`` (None: of all; the operator only).

    Raises:
        NotFound: there is no such node here.
        Unavailable: no distributor answers.
        ConfigurationRefused: neither the node nor the operator is of this home.
    """
    node = find_node(home, name) if name is not None else None
    is_operator = home.has_party(OPERATOR)
    role = Role.OPERATOR if is_operator else Role.NODE
    async with membership(home, OPERATOR if is_operator else name or "node") as member:
        answers = await plead(member, role, what, node)
    if not answers:
        raise Unavailable("no distributor answers; is one up? `starai status` lists who beats")
    return answers
