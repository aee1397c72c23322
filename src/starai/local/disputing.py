"""Asks the registry about records on which two sides do not agree, as operator or as a node."""

from __future__ import annotations

from typing import Any

from starai.local.asking import OPERATOR, ask_registry
from starai.local.home import Home
from starai.local.membership import membership


async def ask_disputes(home: Home, what: str, name: str | None, **arguments: object) -> Any:
    """The answer to query ``what``, asked as node ``name``; None: the operator or this device.

    Raises:
        ConfigurationRefused: that party is not of this home.
        Conflict, InvalidRequest, NotFound, PartyRefused: as the registry says.
        Unavailable, DeadlinePassed: the registry does not answer.
    """
    speaker = name or (OPERATOR if home.has_party(OPERATOR) else "node")
    async with membership(home, speaker) as member:
        return await ask_registry(member, what, **arguments)
