"""Tells idle nodes to serve what is wanted: the distributor's part of placement.

Of all distributors that are there, the one whose name sorts first acts, so that they never pull at
the same node. What is wanted, gateways tell by beats (models that nobody serves) and the own queue
(models with too few nodes). Which node should change is `starai.matching.placement`'s decision;
whether it does is the node's own.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio

from starai.core.concurrency import task_group
from starai.core.logging import event
from starai.exchange.base import short
from starai.exchange.member import Member
from starai.exchange.routes.routing import Routing
from starai.exchange.standing.presence import Presence
from starai.matching import Move, Placement, Server
from starai.protocol.frames import encode
from starai.protocol.identity import PartyId
from starai.protocol.presence import Control
from starai.protocol.subjects import Role, place

_LOG = logging.getLogger(__name__)

#: How often it is looked; placement itself waits for much longer.
LOOK_S: Final = 1.0


class Placing:
    """Looks now and then which node should serve another model."""

    def __init__(self, member: Member, nodes: Routing, gateways: Presence) -> None:
        """Look at ``nodes``, and at what ``gateways`` say is wanted."""
        self._member = member
        self._nodes = nodes
        self._gateways = gateways
        self._placement = Placement()
        self._others = Presence(member.wire, Role.DISTRIBUTOR, member.clock)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look inside the context."""
        async with self._others.watching(), task_group() as group:
            group.start_soon(self._run)
            yield
            group.cancel_scope.cancel()

    async def _run(self) -> None:
        while True:
            await anyio.sleep(LOOK_S)
            self._nodes.roster.num_peers = max(0, len(self._others) - 1)
            # All of them follow what is wanted, so that another one can take over at once.
            now_s = self._member.clock.monotonic_s()
            move = self._placement.decide(self._waiting(), self._servers(), now_s)
            if move is not None and self._leads:
                self._tell(move)

    @property
    def _leads(self) -> bool:
        me = self._member.identity.party
        return all(me <= beat.party for beat in self._others)

    def _waiting(self) -> Counter[str]:
        waiting: Counter[str] = Counter()
        for beat in self._gateways:
            for model in beat.models:
                waiting[model.name] += model.slots
        lines = self._nodes.waiting()
        if lines:
            for model in self._nodes.models():
                waiting[model.name] += lines.get(model.model_root, 0)
        return waiting

    def _servers(self) -> list[Server]:
        return [
            Server(
                party=beat.party,
                model=beat.models[0].name if beat.models else "",
                fits=beat.fits,
                running=beat.running,
            )
            for beat in self._nodes.presence
            # One that is not its owner's to give, or that loads already, is left alone.
            if beat.fits and beat.models and not beat.draining and not beat.paused
        ]

    def _tell(self, move: Move) -> None:
        subject = place(PartyId(move.party))
        self._member.wire.publish_soon(subject, encode(Control("load", move.model)))
        event(_LOG, "told_to_load", node=short(PartyId(move.party)), model=move.model)
