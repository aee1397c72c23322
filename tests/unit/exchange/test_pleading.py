"""Who may ask how a node stands, who may forgive, and what an asker is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from starai.core.errors import PartyRefused
from starai.exchange.member import Member
from starai.exchange.standing import pleading
from starai.exchange.standing.ladder import Fault, Ladder
from starai.exchange.standing.pleading import Hearing, plead
from starai.protocol.frames import encode
from starai.protocol.identity import PartyId
from starai.protocol.standing import STANDINGS_MAX, Plea, Standings
from starai.protocol.subjects import Role, plea, standing
from starai.testing.parties import Parties
from starai.wire.memory import MemoryNetwork

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual_time: object) -> object:
    """All of this happens in virtual time."""
    return virtual_time


class Scene:
    """One distributor that hears pleas, two nodes, one operator; node ``bad`` is blacklisted."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.parties = Parties(network)
        self.distributor = self.parties.join(Role.DISTRIBUTOR)
        self.operator = self.parties.join(Role.OPERATOR)
        self.bad, self.good = self.parties.join(Role.NODE), self.parties.join(Role.NODE)
        self.ladder = Ladder()
        self.changed: list[PartyId] = []
        self.hearing = Hearing(self.distributor, self.ladder, self.changed.append)
        for second in (0, 5, 10):
            self.ladder.blame(self.bad.identity.party, Fault.WRONG_SEAL, second)

    def rung(self, member: Member) -> str:
        return self.ladder.standing(member.identity.party, anyio.current_time()).rung


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    async with MemoryNetwork() as network:
        made = Scene(network)
        async with made.hearing.running():
            await anyio.sleep(20)
            yield made


async def test_a_node_is_told_its_own_standing_with_every_step() -> None:
    """The supplier sees what is held against him, since when, and for how long."""
    async with scene() as made:
        (answer,) = await plead(made.bad, Role.NODE, "why")
        (entry,) = answer.entries
        assert answer.distributor == made.distributor.identity.party
        assert (entry.node, entry.rung) == (made.bad.identity.party, "blacklisted")
        assert [(one.fault, one.times) for one in entry.faults] == [("wrong seal", 3)]
        assert [note.rung for note in entry.notes] == ["quarantined", "quarantined", "blacklisted"]
        assert entry.notes[0].ago_s == pytest.approx(20)
        assert entry.rests_s > 80_000


async def test_a_node_hears_nothing_of_others() -> None:
    """Whatever it asks for, it is told of itself."""
    async with scene() as made:
        (answer,) = await plead(made.good, Role.NODE, "why", made.bad.identity.party)
        assert [(one.node, one.rung) for one in answer.entries] == [
            (made.good.identity.party, "good")
        ]


async def test_a_node_cannot_ask_as_another_or_as_the_operator() -> None:
    """The wire lets it speak on its own subject only, and hear its own answers only."""
    async with scene() as made:
        wire = made.good.wire
        for subject in (
            plea(Role.NODE, made.bad.identity.party),
            plea(Role.OPERATOR, made.good.identity.party),
        ):
            await wire.publish(subject, encode(Plea("reset", made.bad.identity.party)))
        await anyio.sleep(1)
        assert made.rung(made.bad) == "blacklisted"
        assert wire.num_forbidden == 2  # type: ignore[attr-defined]
        with pytest.raises(PartyRefused):
            async with wire.subscribe(standing(made.bad.identity.party, "*"), lambda _: None):
                pass


async def test_an_appeal_opens_the_way_back() -> None:
    """One probe, and the route hears that something has changed."""
    async with scene() as made:
        (answer,) = await plead(made.bad, Role.NODE, "appeal")
        assert "granted" in answer.said
        assert made.rung(made.bad) == "quarantined"
        assert made.changed == [made.bad.identity.party]


async def test_only_the_operator_forgives() -> None:
    """A node's own reset is refused in words; the operator's is done."""
    async with scene() as made:
        (answer,) = await plead(made.bad, Role.NODE, "reset")
        assert "reset" in answer.said
        assert made.rung(made.bad) == "blacklisted"
        (answer,) = await plead(made.operator, Role.OPERATOR, "reset", made.bad.identity.party)
        assert made.rung(made.bad) == "good"


async def test_the_operator_sees_all_up_to_a_limit() -> None:
    """The lowest come first, and what is left off is counted."""
    async with scene() as made:
        for _ in range(STANDINGS_MAX + 5):
            other = made.parties.join(Role.NODE).identity.party
            made.ladder.blame(other, Fault.SILENT, anyio.current_time())
        (answer,) = await plead(made.operator, Role.OPERATOR, "why")
        assert (len(answer.entries), answer.left_off) == (STANDINGS_MAX, 6)
        assert answer.entries[0].node == made.bad.identity.party


async def test_pleas_without_end_are_not_answered_without_end() -> None:
    """Asking is cheap; answering is bounded."""
    async with scene() as made:
        heard: list[Standings] = []
        party = made.good.identity.party
        async with made.good.wire.subscribe(standing(party, "*"), heard.append):  # type: ignore[arg-type]
            for _ in range(500):
                await made.good.wire.publish(plea(Role.NODE, party), encode(Plea("why")))
            await anyio.sleep(1)
        assert len(heard) == pleading.PLEAS_BURST
