"""Who counts as there: leases, restarts, an own line that is down, and beats that lie."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from starai.core.limits import BEAT_INTERVAL_S, BEAT_LEASE_S
from starai.exchange.mailboxes import Bell
from starai.exchange.member import Member
from starai.exchange.standing import presence as module
from starai.exchange.standing.guarding import SHUT_S
from starai.exchange.standing.ladder import Fault
from starai.exchange.standing.presence import HURRY_S, Presence, keep_beating
from starai.protocol.frames import encode
from starai.protocol.identity import PartyId
from starai.protocol.ports import Delivery
from starai.protocol.presence import Beat
from starai.protocol.subjects import Role, beat
from starai.testing.parties import Parties
from starai.wire.memory import MemoryNetwork

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual_time: object) -> object:
    """All of this happens in virtual time."""
    return virtual_time


def make_beat(member: Member, seq: int = 1, boot: int = 1, role: str = "node") -> Beat:
    return Beat(member.identity.party, role, boot, seq, 1, False, 0, 0, 0, 0)


class Watch:
    """A presence of nodes, one node, and who was told gone."""

    def __init__(self, network: MemoryNetwork) -> None:
        parties = Parties(network)
        self.network = network
        self.watcher = parties.join(Role.DISTRIBUTOR)
        self.node = parties.join(Role.NODE)
        self.other = parties.join(Role.NODE)
        self.gone: list[PartyId] = []
        self.faults: list[tuple[PartyId, Fault]] = []
        self.presence = Presence(
            self.watcher.wire,
            Role.NODE,
            self.watcher.clock,
            on_gone=self.gone.append,
            on_fault=lambda party, fault: self.faults.append((party, fault)),
        )

    async def say(self, message: Beat, sender: Member | None = None) -> None:
        sender = sender or self.node
        await sender.wire.publish(beat(Role.NODE, sender.identity.party), encode(message))
        await anyio.sleep(0.01)

    @property
    def here(self) -> set[PartyId]:
        return {one.party for one in self.presence}


@asynccontextmanager
async def watch() -> AsyncIterator[Watch]:
    async with MemoryNetwork() as network:
        made = Watch(network)
        async with made.presence.watching():
            yield made


async def test_a_party_is_there_while_it_beats_and_gone_a_lease_later() -> None:
    """One beat is a lease; when it has run out the party is told gone, once."""
    async with watch() as made:
        await made.say(make_beat(made.node))
        party = made.node.identity.party
        await anyio.sleep(BEAT_LEASE_S - 0.1)
        assert made.here == {party}
        await anyio.sleep(2 * BEAT_INTERVAL_S)
        assert (made.here, made.gone) == (set(), [party])
        assert made.presence.get(party) is None
        await anyio.sleep(10)
        assert made.gone == [party]


async def test_kept_beating_it_stays_for_an_hour() -> None:
    """`keep_beating` renews the lease in time, with rising numbers."""
    async with watch() as made, anyio.create_task_group() as tasks:
        tasks.start_soon(
            keep_beating, made.node.wire, Role.NODE, lambda seq: make_beat(made.node, seq)
        )
        await anyio.sleep(3600)
        seen = made.presence.get(made.node.identity.party)
        assert seen is not None
        assert seen.seq == pytest.approx(3600 / BEAT_INTERVAL_S, abs=2)
        assert made.gone == []
        tasks.cancel_scope.cancel()


async def test_whoever_has_news_beats_at_once_but_never_floods() -> None:
    """A first ring is heard within `HURRY_S`; a bell that never stops makes ten beats a second."""
    async with watch() as made, anyio.create_task_group() as tasks:
        bell, party = Bell(), made.node.identity.party

        def make(seq: int) -> Beat:
            return make_beat(made.node, seq)

        tasks.start_soon(keep_beating, made.node.wire, Role.NODE, make, bell)
        await anyio.sleep(0.01)
        bell.ring()
        await anyio.sleep(HURRY_S)
        assert made.presence.get(party).seq == 2
        for _ in range(1000):
            bell.ring()
            await anyio.sleep(0.01)
        assert made.presence.get(party).seq == pytest.approx(2 + 10 / HURRY_S, abs=2)
        assert made.faults == []
        tasks.cancel_scope.cancel()


async def test_a_restarted_party_supersedes_its_old_self() -> None:
    """A higher boot ends what the old self was doing, and the party is there at once."""
    async with watch() as made:
        party = made.node.identity.party
        await made.say(make_beat(made.node, seq=900, boot=1))
        await made.say(make_beat(made.node, seq=1, boot=2))
        assert (made.gone, made.here) == ([party], {party})


async def test_an_old_beat_changes_nothing() -> None:
    """A repeated beat, or one of the self before, is not news."""
    async with watch() as made:
        await made.say(make_beat(made.node, seq=5, boot=2))
        for seq, boot in ((5, 2), (4, 2), (99, 1)):
            await made.say(make_beat(made.node, seq=seq, boot=boot))
        seen = made.presence.get(made.node.identity.party)
        assert seen is not None
        assert (seen.boot, seen.seq) == (2, 5)
        assert made.gone == []


async def test_when_our_own_line_is_down_nobody_is_gone() -> None:
    """Cut off ourselves, we hear nobody: everybody has a fresh lease when the line is back."""
    async with watch() as made:
        await made.say(make_beat(made.node))
        with made.network.outage(made.watcher.identity.party):
            await anyio.sleep(60)
            assert made.gone == []
        await anyio.sleep(BEAT_LEASE_S - 2 * BEAT_INTERVAL_S)
        assert made.gone == []
        await anyio.sleep(4 * BEAT_INTERVAL_S)
        assert made.gone == [made.node.identity.party]


async def test_when_we_were_stopped_nobody_is_gone() -> None:
    """After our own long stop (a suspended laptop) the others get their time to beat."""
    async with watch() as made:
        await made.say(make_beat(made.node))
        made.presence._drop_silent(made.watcher.clock.monotonic_s() + 100, overslept=True)
        assert made.here == {made.node.identity.party}


async def test_nobody_beats_for_another() -> None:
    """A beat counts only on its sender's own subject and in its sender's own role."""
    async with watch() as made:
        await made.say(make_beat(made.node), sender=made.other)
        await made.say(make_beat(made.node, role="gateway"))
        subject = beat(Role.NODE, made.node.identity.party)
        made.presence._on_delivery(Delivery(subject, b"rubbish"))
        assert made.here == set()


async def test_a_beat_in_anothers_name_is_held_against_its_sender() -> None:
    """The wire says who sent it; whom it names is not there because of it."""
    async with watch() as made:
        await made.say(make_beat(made.other), sender=made.node)
        assert made.faults == [(made.node.identity.party, Fault.IMPERSONATION)]
        assert made.here == set()


async def test_a_flood_of_beats_is_not_even_read_and_others_are_heard() -> None:
    """Its sender is shut out for a while, and counts as gone; later it is heard again."""
    async with watch() as made:
        subject = beat(Role.NODE, made.node.identity.party)
        for seq in range(2 * module.BEATS_BURST):
            await made.node.wire.publish(subject, encode(make_beat(made.node, seq + 1)))
        await anyio.sleep(0.1)
        assert made.faults == [(made.node.identity.party, Fault.FLOOD)]
        seen = made.presence.get(made.node.identity.party)
        assert seen is not None
        assert seen.seq <= module.BEATS_BURST
        await made.say(make_beat(made.other), sender=made.other)
        assert made.other.identity.party in made.here
        await anyio.sleep(SHUT_S)
        await made.say(make_beat(made.node, 10_000))
        assert made.here == {made.node.identity.party}
