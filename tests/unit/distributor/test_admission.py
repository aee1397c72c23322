"""A distributor measures nodes itself: honest ones, boasters, liars and silent ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from starai.core.randomness import SeededRandomness
from starai.distributor.admission import AGAIN_S, IDLE_S, Admission
from starai.exchange.base import Settled
from starai.exchange.callee.serving import Refused, ServedTask, Serving
from starai.exchange.caller.offering import Offering
from starai.exchange.member import Member
from starai.exchange.routes.routing import Routing
from starai.exchange.standing.ladder import Fault
from starai.exchange.standing.presence import keep_beating
from starai.protocol import tokens
from starai.protocol.generation import Finish
from starai.protocol.identity import PartyId
from starai.protocol.presence import UNKNOWN_QUANTISATION, Beat, ServedModel
from starai.protocol.subjects import Role
from starai.protocol.tasks import RefusalCode
from starai.testing.parties import Parties
from starai.wire.memory import MemoryNetwork

pytestmark = pytest.mark.anyio

ROOT = b"m" * 32
Handler = Callable[[ServedTask], Awaitable[None]]


@pytest.fixture
def anyio_backend(virtual_time: object) -> object:
    """All of this happens in virtual time."""
    return virtual_time


def answering(
    prefill_tps: float = 512.0, decode_tps: float = 10.0, *, lies: bool = False
) -> Handler:
    """A model whose next token is a function of its prompt; who lies does not compute it."""

    async def answer(task: ServedTask) -> None:
        prompt = list(tokens.unpack(task.generation.prompt))
        chance = SeededRandomness(1 if lies else sum(n * t for n, t in enumerate(prompt, 1)))
        await anyio.sleep(len(prompt) / prefill_tps)
        for left in reversed(range(task.generation.max_tokens)):
            token = int(chance.fraction() * 1000)
            await task.send(tokens.pack([token]), None if left else Finish.LENGTH)
            await anyio.sleep(1 / decode_tps if left else 0)

    return answer


class Scene:
    """A distributor's eyes, and nodes that claim what they like."""

    def __init__(self, network: MemoryNetwork, group: anyio.abc.TaskGroup) -> None:
        self.parties = Parties(network)
        self.group = group
        self.settled: list[Settled] = []
        member = self.parties.join(Role.DISTRIBUTOR)
        self.offering = Offering(member)
        self.nodes = Routing(member, Role.NODE, self.offering.lose)
        self.admission = Admission(member, self.offering, self.nodes)
        self.asked: dict[PartyId, int] = {}
        self.running: dict[PartyId, int] = {}

    async def add(
        self, handler: Handler, *, claims: tuple[float, float], quantisation: str = ""
    ) -> Member:
        member = self.parties.join(Role.NODE)
        party = member.identity.party

        async def count(task: ServedTask) -> None:
            self.asked[party] = self.asked.get(party, 0) + 1
            await handler(task)

        def settle(settled: Settled) -> None:
            self.settled.append(settled)

        serving = Serving(member, Role.NODE, (Role.DISTRIBUTOR,), count, settle)
        await self.group.start(serving.run)
        model = ServedModel("m", ROOT, 4096, 4, *claims, quantisation)

        def beat(seq: int) -> Beat:
            told = (party, "node", 1, seq, 1, False, self.running.get(party, 0), 0, 0, 0)
            return Beat(*told, serving.prekey, (model,))

        self.group.start_soon(keep_beating, member.wire, Role.NODE, beat)
        return member

    def rates(self, member: Member) -> tuple[float, float]:
        """What matching reckons with."""
        pool = self.nodes.roster.pool(ROOT)
        assert pool is not None
        candidate = pool.get(member.identity.party)
        assert candidate is not None
        return candidate.prefill_tps, candidate.decode_tps

    def faults(self, member: Member) -> dict[str, int]:
        now_s = self.parties.clock.monotonic_s()
        standing = self.nodes.ladder.standing(member.identity.party, now_s)
        return {fault.fault: fault.times for fault in standing.faults}


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    async with MemoryNetwork() as network, anyio.create_task_group() as group:
        made = Scene(network, group)
        async with made.nodes.presence.watching(), made.offering.running():
            group.start_soon(made.admission.run)
            yield made
            group.cancel_scope.cancel()


async def test_an_honest_node_keeps_its_word() -> None:
    """What it claims is near what was seen, so its own figures stand."""
    async with scene() as made:
        node = await made.add(answering(512, 10), claims=(500.0, 11.0))
        await anyio.sleep(IDLE_S + 20)
        assert made.rates(node) == (500.0, 11.0)
        assert made.faults(node) == {}


async def test_a_boaster_is_corrected() -> None:
    """Ten times the speed is not believed: what the distributor saw counts."""
    async with scene() as made:
        node = await made.add(answering(512, 10), claims=(50_000.0, 1000.0))
        await anyio.sleep(2)
        assert made.rates(node)[1] == 1000.0
        await anyio.sleep(IDLE_S + 20)
        prefill_tps, decode_tps = made.rates(node)
        assert decode_tps == pytest.approx(10, rel=0.2)
        assert prefill_tps == pytest.approx(512, rel=0.2)


async def test_a_node_that_says_nothing_is_measured_too() -> None:
    """Matching need not guess for long."""
    async with scene() as made:
        node = await made.add(answering(256, 20), claims=(0.0, 0.0))
        await anyio.sleep(IDLE_S + 20)
        assert made.rates(node)[1] == pytest.approx(20, rel=0.2)


async def test_a_node_that_invents_tokens_is_found_by_the_majority() -> None:
    """Fast rubbish does not pay: two that compute outvote one that does not."""
    async with scene() as made:
        honest = [await made.add(answering(), claims=(512.0, 10.0)) for _ in range(2)]
        liar = await made.add(answering(lies=True, decode_tps=500), claims=(512.0, 500.0))
        await anyio.sleep(60)
        assert Fault.WRONG_ANSWER.value in made.faults(liar)
        assert not any(made.faults(node) for node in honest)
        now_s = made.parties.clock.monotonic_s()
        assert made.nodes.ladder.standing(liar.identity.party, now_s).rung == "quarantined"


@pytest.mark.parametrize("quantisation", ["int8", UNKNOWN_QUANTISATION])
async def test_only_like_is_compared_with_like(quantisation: str) -> None:
    """Weights that are kept otherwise give other tokens, and a foreign sampler any: no fault."""
    async with scene() as made:
        for _ in range(2):
            await made.add(answering(), claims=(512.0, 10.0))
        other = await made.add(
            answering(lies=True), claims=(512.0, 10.0), quantisation=quantisation
        )
        await anyio.sleep(60)
        assert made.asked[other.identity.party] == 2
        assert made.faults(other) == {}


async def test_nobody_pays_and_nothing_is_on_record() -> None:
    """The node hears that nothing was accepted, so neither side has anything to confirm."""
    async with scene() as made:
        node = await made.add(answering(), claims=(512.0, 10.0))
        await anyio.sleep(60)
        assert made.asked[node.identity.party] == 2
        assert made.settled == []


async def test_a_busy_node_is_left_alone() -> None:
    """Whoever works shows its speed by its work; it is asked when it is idle."""
    async with scene() as made:
        node = await made.add(answering(), claims=(512.0, 10.0))
        party = node.identity.party
        made.running[party] = 1
        await anyio.sleep(60)
        assert party not in made.asked
        made.running[party] = 0
        await anyio.sleep(IDLE_S + 10)
        assert made.asked[party] == 2


async def test_measured_again_after_a_while() -> None:
    """At a moment that the node cannot know, and not all the time."""
    async with scene() as made:
        node = await made.add(answering(), claims=(512.0, 10.0))
        await anyio.sleep(2 * AGAIN_S)
        assert 4 <= made.asked[node.identity.party] <= 10


async def test_a_node_that_refuses_is_asked_again_and_not_believed_more() -> None:
    """A refusal is no measurement, and no fault either."""

    async def refuse(_task: ServedTask) -> None:
        raise Refused(RefusalCode.BUSY)

    async with scene() as made:
        node = await made.add(refuse, claims=(512.0, 10.0))
        await anyio.sleep(100)
        assert made.asked[node.identity.party] >= 2
        assert made.rates(node) == (512.0, 10.0)
        assert made.faults(node) == {}


async def test_a_silent_node_does_not_stop_the_others() -> None:
    """One that accepts and says nothing is given up on."""

    async def sleep(_task: ServedTask) -> None:
        await anyio.sleep(1000)

    async with scene() as made:
        await made.add(sleep, claims=(512.0, 10.0))
        honest = await made.add(answering(512, 10), claims=(512.0, 100.0))
        await anyio.sleep(200)
        assert made.rates(honest)[1] == pytest.approx(10, rel=0.2)
