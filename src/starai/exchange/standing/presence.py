"""Who is there: the last beat of every party of a role, and when a party counts as gone.

A party is there while its beats come; a higher ``boot`` supersedes the party's old self. What
the beats mean for matching is not known here.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Final

import anyio
import msgspec

from starai.core.clock import Clock
from starai.core.concurrency import task_group
from starai.core.errors import MalformedFrame
from starai.core.limits import BEAT_INTERVAL_S, BEAT_LEASE_S
from starai.core.logging import event
from starai.exchange.base import short
from starai.exchange.mailboxes import Bell
from starai.exchange.standing.guarding import Guard
from starai.exchange.standing.ladder import Fault
from starai.protocol.frames import decode, encode
from starai.protocol.identity import PartyId
from starai.protocol.ports import Delivery, Wire
from starai.protocol.presence import Beat
from starai.protocol.subjects import Role, beat, beats

_LOG = logging.getLogger(__name__)

#: Parties of one role that are kept track of; a network of more needs regions.
PARTIES_MAX = 10_000
#: Beats of one party: two a second are expected, and minutes of them at once after a pause of ours.
BEATS_BURST, BEATS_PER_S = 400, 20.0
#: The least time between two beats, whatever the hurry: half of the pace that is still tolerated.
HURRY_S: Final = 0.1


class Sighting(msgspec.Struct):
    """A party's last beat and when it came, in monotonic seconds."""

    beat: Beat
    seen_s: float


class Presence:
    """The parties of one role that are there now."""

    def __init__(
        self,
        wire: Wire,
        role: Role,
        clock: Clock,
        on_gone: Callable[[PartyId], None] | None = None,
        on_beat: Callable[[Beat], None] | None = None,
        on_fault: Callable[[PartyId, Fault], None] | None = None,
    ) -> None:
        """Watch the beats of ``role``; ``on_gone`` is told once when a party falls silent.

        ``on_fault`` hears who beats in another's name, and who floods.
        """
        self._wire = wire
        self._role = role
        self._clock = clock
        self._on_gone = on_gone
        self._on_beat = on_beat
        self._on_fault = on_fault
        self._guard = Guard(BEATS_PER_S, BEATS_BURST)
        self._sightings: dict[PartyId, Sighting] = {}

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch inside the context."""
        async with (
            self._wire.subscribe(beats(self._role), self._on_delivery),
            task_group() as group,
        ):
            group.start_soon(self._sweep)
            yield
            group.cancel_scope.cancel()

    def __iter__(self) -> Iterator[Beat]:
        return iter([sighting.beat for sighting in self._sightings.values()])

    def __len__(self) -> int:
        return len(self._sightings)

    def get(self, party: PartyId) -> Beat | None:
        """A party's last beat, if it is there."""
        sighting = self._sightings.get(party)
        return sighting.beat if sighting else None

    def _on_delivery(self, delivery: Delivery) -> None:
        sender = PartyId(delivery.subject.rpartition(".")[2])
        now_s = self._clock.monotonic_s()
        if self._guard.shut and self._guard.is_shut(sender, now_s):
            return
        if self._guard.spend(sender, now_s):
            event(_LOG, "beats_flood", logging.WARNING, party=short(sender))
            self._blame(sender, Fault.FLOOD)
            return
        try:
            message = decode(delivery.payload, Beat)
        except MalformedFrame:
            return
        if message.party != sender or message.role != self._role.value:
            self._blame(sender, Fault.IMPERSONATION)
            return
        known = self._sightings.get(message.party)
        if known is not None and (message.boot, message.seq) <= (known.beat.boot, known.beat.seq):
            return
        if known is None and len(self._sightings) >= PARTIES_MAX:
            return
        if known is None:
            event(_LOG, "party_here", role=self._role.value, party=short(message.party))
        elif message.boot > known.beat.boot and self._on_gone is not None:
            self._on_gone(message.party)  # its old self is gone, with all it was doing
        self._sightings[message.party] = Sighting(message, self._clock.monotonic_s())
        if self._on_beat is not None:
            self._on_beat(message)

    def _blame(self, party: PartyId, fault: Fault) -> None:
        if self._on_fault is not None:
            self._on_fault(party, fault)

    async def _sweep(self) -> None:
        looked_s = self._clock.monotonic_s()
        while True:
            await anyio.sleep(BEAT_INTERVAL_S)
            now_s = self._clock.monotonic_s()
            self._drop_silent(now_s, overslept=now_s - looked_s > BEAT_LEASE_S)
            looked_s = now_s

    def _drop_silent(self, now_s: float, *, overslept: bool) -> None:
        if overslept or not self._wire.connected:
            # We heard nobody: we were stopped, or it is our own line. A fresh lease for everybody.
            for sighting in self._sightings.values():
                sighting.seen_s = now_s
            return
        gone = [p for p, s in self._sightings.items() if now_s - s.seen_s > BEAT_LEASE_S]
        for party in gone:
            del self._sightings[party]
            event(_LOG, "party_gone", role=self._role.value, party=short(party))
            if self._on_gone is not None:
                self._on_gone(party)


async def keep_beating(
    wire: Wire, role: Role, make: Callable[[int], Beat], hurry: Bell | None = None
) -> None:
    """Publish the beats that ``make`` builds from a rising number, until cancelled.

    When ``hurry`` rings, the next one does not wait for its time, but for `HURRY_S` at least:
    whoever has news all the time shall not count as flooding.
    """
    hurry = hurry or Bell()
    seq = 0
    while True:
        seq += 1
        message = make(seq)
        wire.publish_soon(beat(role, message.party), encode(message))
        with anyio.move_on_after(BEAT_INTERVAL_S):
            await anyio.sleep(HURRY_S)
            await hurry.wait()
