"""The operator's eyes and hands: everybody's beats, the registry's answers, orders to nodes.

API keys and join tokens are made here: the registry is told a key's hash, a token's public key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec

from starai.core.errors import DeadlinePassed, InvalidRequest, MalformedFrame, NotFound
from starai.core.limits import BEAT_INTERVAL_S
from starai.exchange.member import Member
from starai.exchange.standing.presence import PARTIES_MAX, Sighting
from starai.local.home import Home
from starai.local.membership import membership
from starai.protocol.api_keys import hash_api_key, new_api_key
from starai.protocol.frames import decode, encode
from starai.protocol.identity import Identity, PartyId, party_id
from starai.protocol.ports import Delivery
from starai.protocol.presence import Beat, Control
from starai.protocol.registry import Query, Report
from starai.protocol.subjects import Role, control, registry
from starai.protocol.tickets import JoinTicket, TokenGrant

#: Long enough to hear every party once, even when a beat comes late.
LISTEN_S = 2.5 * BEAT_INTERVAL_S
ANSWER_S = 5.0
OPERATOR = "operator"


class Operator:
    """A connected operator."""

    def __init__(self, member: Member) -> None:
        """Made by `operator`."""
        self._member = member
        self._beats: dict[PartyId, Sighting] = {}

    def beats(self, role: Role | None = None) -> list[Beat]:
        """The last beat of everybody heard so far, by role and name."""
        found = [seen.beat for seen in self._beats.values()]
        found = [one for one in found if role is None or one.role == role.value]
        return sorted(found, key=lambda one: (one.role, one.label, one.party))

    def forget_silent(self, after_s: float) -> None:
        """Forget those that have not been heard for ``after_s`` seconds."""
        oldest_s = self._member.clock.monotonic_s() - after_s
        self._beats = {who: seen for who, seen in self._beats.items() if seen.seen_s >= oldest_s}

    async def listen(self, seconds: float = LISTEN_S) -> list[Beat]:
        """Everybody who beats within ``seconds``."""
        await anyio.sleep(seconds)
        return self.beats()

    async def ask(self, what: str, **arguments: object) -> Any:
        """The registry's answer to a question.

        Raises:
            NotFound, InvalidRequest: as the registry says.
            Unavailable, DeadlinePassed: the registry does not answer.
        """
        return await ask_registry(self._member, what, **arguments)

    async def create_key(
        self,
        name: str,
        requests_per_minute: int = 0,
        tokens_per_minute: int = 0,
        *,
        customer: str | None = None,
        budget_nano_usd: int | None = None,
    ) -> str:
        """A new API key's text, which is known here only."""
        text = new_api_key(self._member.randomness)
        await self.ask(
            "create_key",
            name=name,
            key_hash=hash_api_key(text).hex(),
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            customer=customer,
            budget_nano_usd=budget_nano_usd,
        )
        return text

    async def deposit(self, customer: str, amount_nano_usd: int, note: str) -> Any:
        """Pay in for a customer, once, also if an answer is lost; its balance then."""
        event_id = self._member.randomness.take(16).hex()
        paid = {"customer": customer, "amount_nano_usd": amount_nano_usd, "note": note}
        try:
            return await self.ask("deposit", **paid, event_id=event_id)
        except DeadlinePassed:
            return await self.ask("deposit", **paid, event_id=event_id)

    async def create_token(self, role: Role, uses: int, lifetime_ms: int, label: str) -> str:
        """A new join ticket's text, which is known here only."""
        joiner = Identity.create(self._member.randomness)
        answer = await self.ask(
            "create_token",
            joiner=joiner.party,
            role=role.value,
            uses=uses,
            lifetime_ms=lifetime_ms,
            label=label,
        )
        return JoinTicket.of(msgspec.convert(answer, TokenGrant), joiner).text()

    async def order(self, node: PartyId, order: str) -> None:
        """Order a node to ``drain``, ``resume`` or ``leave``, and see that it took notice.

        Raises:
            NotFound: no such node beats, or it does not follow.
        """
        wanted = order != "resume"
        with anyio.move_on_after(2 * LISTEN_S):
            while True:
                await self._member.wire.publish(control(node), encode(Control(order)))
                await anyio.sleep(BEAT_INTERVAL_S)
                seen = self._beats.get(node)
                if seen is not None and seen.beat.draining is wanted:
                    return
        raise NotFound(f"no node {node} answers; `starai nodes` lists those that do")

    def hear(self, delivery: Delivery) -> None:
        """Take a beat in, if it is its sender's own."""
        try:
            heard = decode(delivery.payload, Beat)
        except MalformedFrame:
            return
        if delivery.subject != f"starai.beat.{heard.role}.{heard.party}":
            return
        if heard.party in self._beats or len(self._beats) < PARTIES_MAX:
            self._beats[heard.party] = Sighting(heard, self._member.clock.monotonic_s())


async def ask_registry(member: Member, what: str, **arguments: object) -> Any:
    """The registry's answer to a party's question.

    Raises:
        NotFound, InvalidRequest: as the registry says.
        Unavailable, DeadlinePassed: the registry does not answer.
    """
    query = Query(what, msgspec.json.encode(arguments))
    frame = await member.wire.request(
        registry("query", member.identity.party), encode(query), timeout_s=ANSWER_S
    )
    report = decode(frame, Report)
    if report.code:
        kind = NotFound if report.code == NotFound.code else InvalidRequest
        raise kind(report.message)
    return msgspec.json.decode(report.body)


@asynccontextmanager
async def operator(home: Home) -> AsyncIterator[Operator]:
    """Be the operator of this home's network inside the context."""
    async with membership(home, OPERATOR) as member:
        made = Operator(member)
        async with member.wire.subscribe("starai.beat.>", made.hear):
            yield made


def find_node(home: Home, name: str) -> PartyId:
    """The node called ``name`` in this home, or the node whose public key ``name`` is.

    Raises:
        NotFound: neither.
    """
    if home.has_party(name):
        return Identity.from_seed(home.party(name).seed).party
    try:
        return party_id(name)
    except MalformedFrame as error:
        raise NotFound(f"no node {name!r} here, and it is no node's key either") from error


async def give_order(home: Home, name: str, order: str) -> None:
    """Order a node as its operator, or, where there is none, as the node's own owner."""
    node = find_node(home, name)
    if home.has_party(OPERATOR):
        async with operator(home) as made:
            await made.order(node, order)
        return
    async with membership(home, name) as member:
        await member.wire.publish(control(node), encode(Control(order)))


async def revoke_party(home: Home, name: str) -> None:
    """Put a node out of the network for good, as its operator.

    Raises:
        NotFound: there is no such node.
        InvalidRequest: it is the registry or the operator.
        ConfigurationRefused: this is not the operator's home.
    """
    node = find_node(home, name)
    async with operator(home) as made:
        await made.ask("revoke_party", party=node)
