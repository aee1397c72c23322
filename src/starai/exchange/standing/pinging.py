"""How far parties are from each other: round trips, measured over the wire itself.

A party says a number to all who answer pings (gateways and distributors) and takes the time until
it comes back from each: so it learns who there is and how far they are at once, whatever lies
between. Nodes tell in their beats what they measured; a gateway keeps it. It measures the wire
and both event loops; lateness only ever adds, so that shorter times count for more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio

from starai.core.concurrency import task_group
from starai.core.errors import MalformedFrame
from starai.exchange.member import Member
from starai.protocol.frames import decode, encode
from starai.protocol.identity import PartyId
from starai.protocol.ports import Delivery
from starai.protocol.presence import RTTS_MAX, Ping, RoundTrip
from starai.protocol.subjects import PINGS, ping, pong, pongs

#: How often a party pings; distances hardly change, and everybody answers everybody.
PING_INTERVAL_S: Final = 10.0
#: The first few come sooner: when a network starts, not everybody is there for the first.
FIRST_PINGS: Final = 3
FIRST_INTERVAL_S: Final = 2.0
#: An answer that takes longer says nothing any more.
PONG_WAIT_S: Final = 5.0
#: Who has not answered for this many pings is forgotten.
MISSED_MAX: Final = 3
#: Parties that are remembered, of which beats name the nearest: more answer in no sound network.
ANSWERERS_MAX: Final = 256
#: How much a time that is shorter, or longer, than what is known counts against it.
SHORTER_WEIGHT: Final = 0.7
LONGER_WEIGHT: Final = 0.2
#: Askers that are remembered as answered, and how soon one may ask again: a node that floods gets
#: one answer in a while.
ASKERS_MAX: Final = 16_384
ASK_AGAIN_S: Final = 1.0


class Pinger:
    """Measures how far the others are; run it with ``async with pinger.running()``."""

    def __init__(self, member: Member) -> None:
        """Ping as ``member``."""
        self._wire = member.wire
        self._me = member.identity.party
        self._clock = member.clock
        self._chance = member.randomness.fraction
        self._number = 0
        self._sent_s = 0.0
        self._rtts: dict[PartyId, tuple[float, int]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ping inside the context."""
        async with (
            self._wire.subscribe(pongs(self._me), self._on_pong),
            task_group() as group,
        ):
            group.start_soon(self._ping)
            yield
            group.cancel_scope.cancel()

    def rtt_ms(self, party: PartyId) -> float | None:
        """How far a party is, in milliseconds there and back; None: not known."""
        known = self._rtts.get(party)
        return known[0] if known else None

    def nearest(self) -> tuple[RoundTrip, ...]:
        """The nearest, nearest first: what a beat tells."""
        found = sorted((rtt_ms, party) for party, (rtt_ms, _) in self._rtts.items())
        return tuple(RoundTrip(party, rtt_ms) for rtt_ms, party in found[:RTTS_MAX])

    async def _ping(self) -> None:
        while True:
            self._number += 1
            self._sent_s = self._clock.monotonic_s()
            self._wire.publish_soon(ping(self._me), encode(Ping(self._number)))
            late = [p for p, (_, last) in self._rtts.items() if self._number - last > MISSED_MAX]
            for party in late:
                del self._rtts[party]
            # Not in step with all the others that began when the network did.
            pause_s = FIRST_INTERVAL_S if self._number < FIRST_PINGS else PING_INTERVAL_S
            await anyio.sleep(pause_s * (0.75 + 0.5 * self._chance()))

    def _on_pong(self, delivery: Delivery) -> None:
        now_s = self._clock.monotonic_s()
        try:
            number = decode(delivery.payload, Ping).number
        except MalformedFrame:
            return
        party = PartyId(delivery.subject.rpartition(".")[2])
        took_s = now_s - self._sent_s
        if number != self._number or took_s > PONG_WAIT_S:
            return
        known = self._rtts.get(party)
        if known is None:
            if len(self._rtts) < ANSWERERS_MAX:
                self._rtts[party] = (1000 * took_s, number)
        elif known[1] != number:  # who answers twice was heard once
            before_ms = known[0]
            weight = SHORTER_WEIGHT if 1000 * took_s < before_ms else LONGER_WEIGHT
            self._rtts[party] = (before_ms + weight * (1000 * took_s - before_ms), number)


@asynccontextmanager
async def answering_pings(member: Member) -> AsyncIterator[None]:
    """Answer everybody's pings inside the context, each party's about once a second at most."""
    wire, clock, me = member.wire, member.clock, member.identity.party
    answered: dict[str, float] = {}

    def on_ping(delivery: Delivery) -> None:
        asker, now_s = PartyId(delivery.subject.rpartition(".")[2]), clock.monotonic_s()
        if asker == me or now_s - answered.get(asker, float("-inf")) < ASK_AGAIN_S:
            return
        if len(answered) >= ASKERS_MAX:
            answered.clear()
        answered[asker] = now_s
        try:
            message = decode(delivery.payload, Ping)
        except MalformedFrame:
            return
        wire.publish_soon(pong(asker, me), encode(message))

    async with wire.subscribe(PINGS, on_ping):
        yield
