"""Distances as parties measure them: true, smoothed, bounded, nothing others can forge."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from starai.exchange.member import Member
from starai.exchange.standing.pinging import (
    ANSWERERS_MAX,
    ASK_AGAIN_S,
    FIRST_INTERVAL_S,
    FIRST_PINGS,
    LONGER_WEIGHT,
    MISSED_MAX,
    PING_INTERVAL_S,
    PONG_WAIT_S,
    Pinger,
    answering_pings,
)
from starai.protocol.frames import encode
from starai.protocol.identity import PartyId
from starai.protocol.ports import Delivery
from starai.protocol.presence import RTTS_MAX, Ping
from starai.protocol.subjects import Role, ping, pong, pongs
from starai.testing.parties import Parties
from starai.wire.memory import Faults, MemoryNetwork

pytestmark = pytest.mark.anyio

ROUND_S = 1.3 * PING_INTERVAL_S


@pytest.fixture
def anyio_backend(virtual_time: object) -> object:
    """All of this happens in virtual time."""
    return virtual_time


class Scene:
    """A node that pings, and two that answer."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.parties = Parties(network)
        self.node = self.parties.join(Role.NODE)
        self.gateway = self.parties.join(Role.GATEWAY)
        self.distributor = self.parties.join(Role.DISTRIBUTOR)
        self.pinger = Pinger(self.node)
        self.answerers = AsyncExitStack()

    def rtt_ms(self, member: Member) -> float | None:
        return self.pinger.rtt_ms(member.identity.party)


@asynccontextmanager
async def scene(latency_s: float = 0.02) -> AsyncIterator[Scene]:
    async with MemoryNetwork(faults=Faults(latency_s=latency_s)) as network:
        made = Scene(network)
        async with made.answerers:
            for member in (made.gateway, made.distributor):
                await made.answerers.enter_async_context(answering_pings(member))
            async with made.pinger.running():
                await anyio.sleep(1.3 * FIRST_PINGS * FIRST_INTERVAL_S)
                yield made


async def test_a_node_learns_who_there_is_and_how_far() -> None:
    """Gateways and distributors answer; both legs of the way count."""
    async with scene() as made:
        assert made.rtt_ms(made.gateway) == pytest.approx(40)
        assert made.rtt_ms(made.distributor) == pytest.approx(40)
        told = {trip.party: trip.rtt_ms for trip in made.pinger.nearest()}
        assert set(told) == {made.gateway.identity.party, made.distributor.identity.party}
        assert made.rtt_ms(made.node) is None


async def test_who_comes_a_moment_later_is_known_soon() -> None:
    """When a network starts, nobody waits ten seconds for the first distance."""
    async with MemoryNetwork(faults=Faults(latency_s=0.02)) as network:
        made = Scene(network)
        async with made.pinger.running():
            await anyio.sleep(1)
            async with answering_pings(made.gateway):
                await anyio.sleep(2 * FIRST_INTERVAL_S)
                assert made.rtt_ms(made.gateway) == pytest.approx(40)


async def test_a_longer_way_is_believed_slowly_a_shorter_one_soon() -> None:
    """One late answer is somebody's lateness; a faster one cannot be an accident."""
    async with scene() as made:
        made.network.faults = Faults(latency_s=0.05)
        await anyio.sleep(ROUND_S)
        slow = made.rtt_ms(made.gateway)
        assert slow == pytest.approx(40 + LONGER_WEIGHT * 60)
        made.network.faults = Faults(latency_s=0.01)
        await anyio.sleep(ROUND_S)
        assert made.rtt_ms(made.gateway) < 0.6 * slow


async def test_who_answers_no_more_is_forgotten() -> None:
    """After a few pings without an answer nobody claims to know the distance."""
    async with scene() as made:
        await made.answerers.aclose()
        await anyio.sleep(PING_INTERVAL_S)
        assert made.rtt_ms(made.gateway) is not None
        await anyio.sleep(ROUND_S * (MISSED_MAX + 1))
        assert made.rtt_ms(made.gateway) is None
        assert made.pinger.nearest() == ()


async def test_an_answer_that_comes_much_too_late_says_nothing() -> None:
    """What took longer than any way on earth is not a distance."""
    async with scene(latency_s=PONG_WAIT_S) as made:
        await anyio.sleep(PONG_WAIT_S * 2)
        assert made.pinger.nearest() == ()


async def test_rubbish_old_numbers_and_second_answers_change_nothing() -> None:
    """A distributor can say how far it is, once a ping, and nothing else."""
    async with scene() as made:
        me, node = made.distributor.identity.party, made.node.identity.party
        for payload in (b"rubbish", encode(Ping(0)), encode(Ping(99)), encode(Ping(3))):
            await made.distributor.wire.publish(pong(node, me), payload)
        await anyio.sleep(1)
        assert made.rtt_ms(made.distributor) == pytest.approx(40)


async def test_a_flood_of_pings_gets_an_answer_in_a_while() -> None:
    """A node that asks a hundred times a second is answered once a second."""
    async with scene() as made:
        flooder = made.parties.join(Role.NODE)
        party = flooder.identity.party
        heard: list[Delivery] = []
        async with flooder.wire.subscribe(pongs(party), heard.append):
            for number in range(300):
                flooder.wire.publish_soon(ping(party), encode(Ping(number)))
                await anyio.sleep(0.01)
            await anyio.sleep(1)
        assert len(heard) <= 2 * (3 / ASK_AGAIN_S + 1)


async def test_however_many_answer_a_beat_names_the_nearest_few() -> None:
    """The table of distances has an end, and so has what beats carry of it."""
    async with scene() as made:
        number = made.pinger._number
        for one in range(2 * ANSWERERS_MAX):
            subject = pong(made.node.identity.party, PartyId(f"U{one:055}"))
            made.pinger._on_pong(Delivery(subject, encode(Ping(number))))
        assert len(made.pinger._rtts) == ANSWERERS_MAX
        told = [trip.rtt_ms for trip in made.pinger.nearest()]
        assert len(told) == RTTS_MAX
        assert told == sorted(told)
