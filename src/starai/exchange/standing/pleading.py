"""How a node learns where it stands with the distributors, and asks for another chance.

A plea goes to all distributors at once, and each answers for itself: every one keeps a ladder of
its own. Who asks is known by the subject, which the wire lets nobody else speak on: a node hears of
itself only, the operator of all.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import anyio

from starai.core.errors import MalformedFrame
from starai.core.logging import event
from starai.exchange.base import short
from starai.exchange.member import Member
from starai.exchange.standing.guarding import Guard
from starai.exchange.standing.ladder import Ladder
from starai.protocol.frames import decode, encode
from starai.protocol.identity import PartyId, party_id
from starai.protocol.ports import Delivery
from starai.protocol.standing import STANDINGS_MAX, Plea, Standing, Standings
from starai.protocol.subjects import PLEAS, Role, plea, standing

_LOG = logging.getLogger(__name__)

#: Pleas of one asker: a person's, or a script's that looks every second.
PLEAS_BURST, PLEAS_PER_S = 20, 2.0
#: How long an asker collects answers: a round trip around the world, and a busy distributor.
LISTEN_S: Final = 1.0
#: Distributors whose answers are collected.
ANSWERS_MAX: Final = 64


class Hearing:
    """A distributor's end: answers pleas from its ladder."""

    def __init__(
        self, member: Member, ladder: Ladder, on_changed: Callable[[PartyId], None]
    ) -> None:
        """Answer as ``member``; ``on_changed`` hears whose standing a plea has changed."""
        self._member = member
        self._ladder = ladder
        self._on_changed = on_changed
        self._guard = Guard(PLEAS_PER_S, PLEAS_BURST)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hear pleas inside the context."""
        async with self._member.wire.subscribe(PLEAS, self._on_plea):
            yield

    def _on_plea(self, delivery: Delivery) -> None:
        role, asker = delivery.subject.split(".")[2:4]
        now_s = self._member.clock.monotonic_s()
        party = PartyId(asker)
        if self._guard.is_shut(party, now_s) or self._guard.spend(party, now_s):
            return
        try:
            said = decode(delivery.payload, Plea)
            about = party_id(said.node) if said.node else None
        except MalformedFrame:
            return
        is_operator = role == Role.OPERATOR.value
        answer = self._answer(said.what, about if is_operator else party, is_operator, now_s)
        self._member.wire.publish_soon(standing(party, self._member.identity.party), encode(answer))

    def _answer(
        self, what: str, about: PartyId | None, is_operator: bool, now_s: float
    ) -> Standings:
        said = ""
        if about is not None and (what == "appeal" or (what == "reset" and is_operator)):
            change = self._ladder.reset if what == "reset" else self._ladder.appeal
            said = change(about, now_s)
            event(_LOG, "plea", what=what, node=short(about), said=said)
            self._on_changed(about)
        elif what != "why":
            said = f"no distributor does {what!r} for you"
        found: list[Standing]
        if about is None:
            found = self._ladder.standings(now_s)
        else:
            found = [self._ladder.standing(about, now_s)]
        kept = tuple(found[:STANDINGS_MAX])
        return Standings(self._member.identity.party, said, kept, len(found) - len(kept))


async def plead(
    member: Member, role: Role, what: str, node: PartyId | None = None, listen_s: float = LISTEN_S
) -> list[Standings]:
    """Ask all distributors, as ``role``; what they say within ``listen_s`` seconds."""
    heard: dict[PartyId, Standings] = {}
    own = member.identity.party

    def hear(delivery: Delivery) -> None:
        try:
            answer = decode(delivery.payload, Standings)
        except MalformedFrame:
            return
        if delivery.subject == standing(own, answer.distributor) and len(heard) < ANSWERS_MAX:
            heard[answer.distributor] = answer

    async with member.wire.subscribe(standing(own, "*"), hear):
        await member.wire.publish(plea(role, own), encode(Plea(what, node or "")))
        await anyio.sleep(listen_s)
    return [heard[name] for name in sorted(heard)]
