"""Distributors tell idle nodes what to serve: one of them, and only what is wanted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest

from starai.core.limits import BEAT_INTERVAL_S
from starai.distributor.placing import Placing
from starai.exchange.member import Member
from starai.exchange.routes.routing import Routing
from starai.exchange.routes.wanting import WANTED_FOR_S, WANTED_MAX, Wanted
from starai.exchange.standing.presence import Presence, keep_beating
from starai.matching.placement import WANTED_S
from starai.protocol.frames import decode
from starai.protocol.ports import Delivery
from starai.protocol.presence import Beat, Control, ServedModel
from starai.protocol.subjects import Role, place
from starai.sealing import PrekeyRing
from starai.testing.parties import Parties
from starai.wire.memory import MemoryNetwork

pytestmark = pytest.mark.anyio

OLD = ServedModel("old", b"o" * 32, 1000, 4)


@pytest.fixture
def anyio_backend(virtual_time: object) -> object:
    """All of this happens in virtual time."""
    return virtual_time


class Scene:
    """Two distributors that place, a gateway that may want something, and nodes."""

    def __init__(self, network: MemoryNetwork, tasks: anyio.abc.TaskGroup) -> None:
        self.parties = Parties(network)
        self.tasks = tasks
        self.gateway = self.parties.join(Role.GATEWAY)
        self.wanted = Wanted(self.gateway.clock)
        self.told: list[tuple[str, str]] = []
        self.distributors = [self.parties.join(Role.DISTRIBUTOR) for _ in range(2)]
        self.routings: list[Routing] = []

    async def start(self) -> None:
        def beat(seq: int) -> Beat:
            party = self.gateway.identity.party
            served = (*(party, "gateway", 1, seq, 1, False), 0, 0, 0, 0, None)
            return Beat(*served, self.wanted.models())

        self.tasks.start_soon(keep_beating, self.gateway.wire, Role.GATEWAY, beat)
        for member in self.distributors:
            self.tasks.start_soon(self.distribute, member)
        await anyio.sleep(1)

    async def distribute(self, member: Member) -> None:
        def beat(seq: int) -> Beat:
            return Beat(member.identity.party, "distributor", 1, seq, 1, False, 0, 0, 0, 0)

        routing = Routing(member, Role.NODE, lambda _party: None)
        self.routings.append(routing)
        gateways = Presence(member.wire, Role.GATEWAY, member.clock)
        async with (
            routing.presence.watching(),
            gateways.watching(),
            Placing(member, routing, gateways).running(),
        ):
            await keep_beating(member.wire, Role.DISTRIBUTOR, beat)

    async def add_node(self, fits: tuple[str, ...], **changes: object) -> Member:
        member = self.parties.join(Role.NODE)
        party = member.identity.party
        prekey = PrekeyRing(member.identity, member.clock, member.randomness).current()

        def beat(seq: int) -> Beat:
            served = (*(party, "node", 1, seq, 1, False), 0, 0, 0, 0, prekey, (OLD,))
            return msgspec.structs.replace(Beat(*served, fits=fits), **changes)

        def hear(delivery: Delivery) -> None:
            order = decode(delivery.payload, Control)
            assert order.order == "load"
            self.told.append((party, order.argument))

        async def run() -> None:
            async with member.wire.subscribe(place(party), hear):
                await keep_beating(member.wire, Role.NODE, beat)

        self.tasks.start_soon(run)
        await anyio.sleep(BEAT_INTERVAL_S)
        return member

    async def ask(self, seconds: float) -> None:
        """A client that comes back every second."""
        for _ in range(int(seconds)):
            self.wanted.missed("new", b"n" * 32)
            await anyio.sleep(1)


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    async with MemoryNetwork() as network, anyio.create_task_group() as tasks:
        made = Scene(network, tasks)
        await made.start()
        yield made
        tasks.cancel_scope.cancel()


async def test_an_idle_node_is_told_once_by_one_distributor() -> None:
    """What gateways ask for in vain is loaded by a node that can; the other node stays."""
    async with scene() as made:
        nodes = [await made.add_node(("new",)) for _ in range(2)]
        await made.add_node(("other",))
        await made.ask(WANTED_S + 10)
        first = min(node.identity.party for node in nodes)
        assert made.told == [(first, "new")]


async def test_a_node_that_its_owner_needs_or_that_works_is_left_alone() -> None:
    """Paused, draining and busy nodes are told nothing."""
    async with scene() as made:
        await made.add_node(("new",), paused="heat")
        await made.add_node(("new",), draining=True)
        await made.add_node(("new",), running=1)
        await made.ask(WANTED_S + 10)
        assert made.told == []


async def test_a_distributor_knows_how_many_others_there_are() -> None:
    """Each own task speaks for one of every other distributor's."""
    async with scene() as made:
        await anyio.sleep(3)
        assert [routing.roster.num_peers for routing in made.routings] == [1, 1]


async def test_what_was_wanted_is_soon_forgotten_and_never_much() -> None:
    """A gateway counts requests in vain for some seconds, of so many models and no more."""
    async with scene() as made:
        for number in range(2 * WANTED_MAX):
            made.wanted.missed(f"{number}", b"n" * 32)
            made.wanted.missed("0", b"n" * 32)
        models = made.wanted.models()
        assert len(models) == WANTED_MAX
        assert max(model.slots for model in models) == WANTED_MAX
        await anyio.sleep(WANTED_FOR_S + 1)
        assert made.wanted.models() == ()
