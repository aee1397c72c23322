"""Hundreds of answers through four nodes that die, hang, lie, drain and lose their line at random.

Real gateways' dispatch, real distributors, real exchanges, on the in-memory wire under virtual
time; only the engine is a function. Every answer is whole and byte for byte what an undisturbed
run gives, and the books of both sides agree.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

from starai.core.randomness import SeededRandomness
from starai.distributor.service import Distributor
from starai.exchange.base import Settled, task_record
from starai.exchange.callee.serving import ServedTask, Serving
from starai.exchange.mailboxes import Bell
from starai.exchange.member import Member
from starai.exchange.recording.confirming import Confirmer
from starai.exchange.standing.presence import Presence, keep_beating
from starai.gateway.dispatch import Dispatch
from starai.protocol import tokens
from starai.protocol.frames import encode
from starai.protocol.generation import Finish, Generation, Sampling
from starai.protocol.identity import raw_public
from starai.protocol.ports import Submission
from starai.protocol.presence import Beat, ServedModel
from starai.protocol.records import RECORD_BYTES, TaskRecord
from starai.protocol.registry import Side
from starai.protocol.subjects import Role, answer
from starai.protocol.tasks import Answer
from starai.testing.outboxes import MemoryOutbox
from starai.testing.parties import Parties
from starai.wire.memory import Faults, MemoryNetwork

pytestmark = pytest.mark.anyio

ROOT = b"m" * 32
NUM_NODES = 4
SLOTS = 24
LENGTH = 60
STEP_S = 0.04


@pytest.fixture
def anyio_backend(virtual_time: object) -> object:
    """All of this happens in virtual time."""
    return virtual_time


def token_at(sample_key: bytes, position: int) -> int:
    """What any engine draws there: a function of the key and the position, as a real sampler's."""
    digest = hashlib.sha256(sample_key + position.to_bytes(4, "little")).digest()
    return int.from_bytes(digest[:2], "little")


def undisturbed(sample_key: bytes) -> list[int]:
    return [token_at(sample_key, position) for position in range(LENGTH)]


@dataclass
class ChaosNode:
    """A node with everything of a real one but its engine, and switches for what goes wrong."""

    member: Member
    group: anyio.abc.TaskGroup
    boot: int = 0
    draining: bool = False
    stalled: bool = False
    lies: bool = False
    book: list[bytes] = field(default_factory=list)
    life: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    news: Bell = field(default_factory=Bell)

    async def live(self) -> None:
        """One life; a later one is another boot with fresh keys."""
        self.boot += 1
        self.draining = self.stalled = self.lies = False
        with anyio.CancelScope() as self.life:
            member = self.member
            serving = Serving(member, Role.NODE, (Role.DISTRIBUTOR,), self.answer, self.settle)
            distributors = Presence(
                member.wire, Role.DISTRIBUTOR, member.clock, on_gone=serving.abandon
            )
            async with distributors.watching(), anyio.create_task_group() as group:
                await group.start(serving.run)

                def beat(seq: int) -> Beat:
                    served = (ServedModel("m", ROOT, 4096, SLOTS, 1000.0, 1 / STEP_S),)
                    return Beat(
                        *(member.identity.party, "node", self.boot, seq, 1, self.draining),
                        *(serving.num_running, 0, 0, 0, serving.prekey, served),
                    )

                await keep_beating(member.wire, Role.NODE, beat, self.news)

    async def answer(self, task: ServedTask) -> None:
        key = task.generation.sampling.sample_key
        for position in range(tokens.count(task.generation.accepted), LENGTH):
            await anyio.sleep(STEP_S)
            while self.stalled:
                await anyio.sleep(STEP_S)
            if self.lies:
                self.lies = False
                await self.send_unsealed(task)
            finish = Finish.LENGTH if position == LENGTH - 1 else None
            await task.send(tokens.pack([token_at(key, position)]), finish)

    async def send_unsealed(self, task: ServedTask) -> None:
        """A well-formed chunk whose seal is made up: no accident."""
        header, seq = task.header, task._sealer.seq
        lie = Answer(header.task_id, header.attempt, seq, b"made up".ljust(60))
        await self.member.wire.publish(answer(header.callee, header.caller), encode(lie))

    def settle(self, settled: Settled) -> None:
        distributor = raw_public(settled.header.caller)
        record = task_record(settled, self.member.identity.raw, distributor)
        self.book.append(record.canonical())


class Chaos:
    """Two gateways, two distributors, four nodes."""

    def __init__(self, network: MemoryNetwork, group: anyio.abc.TaskGroup, seed: int) -> None:
        self.network, self.group = network, group
        self.chance = SeededRandomness(seed)
        self.parties = Parties(network, seed=seed)
        self.nodes = [ChaosNode(self.parties.join(Role.NODE), group) for _ in range(NUM_NODES)]
        self.outboxes: list[MemoryOutbox] = []
        self.distributors: list[anyio.CancelScope] = []
        self.dispatches: list[Dispatch] = []
        self.struck: list[str] = []
        #: How long each reader waited for each token, in seconds.
        self.waits_s: list[float] = []

    async def start_distributor(self) -> None:
        member, outbox, life = (
            self.parties.join(Role.DISTRIBUTOR),
            MemoryOutbox(),
            anyio.CancelScope(),
        )
        confirmer = Confirmer(
            *(member.wire, member.identity, outbox, "test", 2000, Side.DISTRIBUTOR),
            clock=member.clock,
        )

        async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            with life:
                await Distributor(member, confirmer).run(task_status=task_status)

        await self.group.start(run)
        self.outboxes.append(outbox)
        self.distributors.append(life)

    def pick(self) -> ChaosNode:
        return self.nodes[int(self.chance.fraction() * NUM_NODES)]

    async def strike(self) -> None:
        """One thing goes wrong, and is mended a moment later."""
        kinds = (
            *(self.kill, self.cut, self.stall, self.corrupt),
            *(self.lie, self.drain, self.lose_distributor),
        )
        kind = kinds[int(self.chance.fraction() * len(kinds))]
        self.struck.append(kind.__name__)
        await kind(self.pick())

    async def kill(self, node: ChaosNode) -> None:
        node.life.cancel()
        await anyio.sleep(0.5 + self.chance.fraction())
        self.group.start_soon(node.live)

    async def cut(self, node: ChaosNode) -> None:
        with self.network.outage(node.member.identity.party):
            await anyio.sleep(0.5 + 2 * self.chance.fraction())

    async def stall(self, node: ChaosNode) -> None:
        node.stalled = True
        await anyio.sleep(1 + 2 * self.chance.fraction())
        node.stalled = False

    async def drain(self, node: ChaosNode) -> None:
        node.draining = True
        node.news.ring()
        await anyio.sleep(1 + self.chance.fraction())
        node.draining = False

    async def corrupt(self, node: ChaosNode) -> None:
        """Rubbish, and a replayed chunk of a task that nobody knows, on the node's own subject."""
        party = node.member.identity.party
        wire = self.network.connect(party)
        for beat in [*self.dispatches[0]._routing.presence]:
            await wire.publish(answer(party, beat.party), self.chance.take(80))
            stale = Answer(self.chance.take(16), 0, 3, self.chance.take(60))
            await wire.publish(answer(party, beat.party), encode(stale))

    async def lie(self, node: ChaosNode) -> None:
        """At most two of these: the third by one node puts it out for a day, as it should."""
        node.lies = self.struck.count("lie") <= 2

    async def lose_distributor(self, node: ChaosNode) -> None:
        self.distributors.pop(0).cancel()
        await self.start_distributor()

    async def read(self, number: int) -> list[int]:
        sample_key = hashlib.sha256(b"%d" % number).digest()
        generation = Generation(
            tokens.pack(range(20)), LENGTH, Sampling(sample_key), stop_token_ids=(), salt=bytes(16)
        )
        deadline_ms = self.parties.clock.now_ms() + 120_000
        task_id = number.to_bytes(16, "big")
        submission = Submission(task_id, "m", ROOT, number % 5, deadline_ms, generation)
        ids: list[int] = []
        last_s = anyio.current_time()
        async with self.dispatches[number % len(self.dispatches)].submit(submission) as parts:
            async for part in parts:
                ids += tokens.unpack(part.ids)
                if part.ids:
                    self.waits_s.append(anyio.current_time() - last_s)
                    last_s += self.waits_s[-1]
        assert ids == undisturbed(sample_key), f"answer {number}"
        return ids

    async def run(self, num_streams: int, at_once: int) -> None:
        """So many answers, some at once, while something goes wrong about every second."""
        limiter = anyio.CapacityLimiter(at_once)
        done = 0

        async def one(number: int) -> None:
            nonlocal done
            async with limiter:
                await self.read(number)
            done += 1

        async def trouble() -> None:
            while True:
                await anyio.sleep(0.3 + self.chance.fraction())
                self.group.start_soon(self.strike)

        async with anyio.create_task_group() as reading, anyio.create_task_group() as troubling:
            troubling.start_soon(trouble)
            for number in range(num_streams):
                reading.start_soon(one, number)
            while done < num_streams:
                await anyio.sleep(0.1)
            troubling.cancel_scope.cancel()

    async def check_books(self, num_streams: int) -> None:
        """Node and distributor booked the same; each answer's accepted ranges add up to it."""
        await anyio.sleep(15)
        theirs = {record for node in self.nodes for record in node.book}
        mine: set[bytes] = set()
        for outbox in self.outboxes:
            pending = await outbox.pending("confirm.distributor", 100_000)
            mine |= {item[:RECORD_BYTES] for _, item in pending}  # a note for itself follows
        # A node that was killed, and a distributor that was, could not book what they had begun.
        both = mine & theirs
        assert len(both) > num_streams * 0.8
        assert {r.attempt for r in map(TaskRecord.parse, both)} > {0}
        keys = [(record.task_id, record.attempt) for record in map(TaskRecord.parse, mine)]
        assert len(keys) == len(set(keys)), "no attempt is booked twice"


@asynccontextmanager
async def chaos(seed: int, faults: Faults) -> AsyncIterator[Chaos]:
    async with (
        MemoryNetwork(SeededRandomness(seed), faults) as network,
        anyio.create_task_group() as group,
    ):
        made = Chaos(network, group, seed)
        for _ in range(2):
            await made.start_distributor()
        for node in made.nodes:
            group.start_soon(node.live)
        for _ in range(2):
            made.dispatches.append(Dispatch(made.parties.join(Role.GATEWAY)))
        async with made.dispatches[0].running(), made.dispatches[1].running():
            await anyio.sleep(2)
            yield made
            group.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(int(os.environ.get("STARAI_CHAOS_SEEDS", "1"))))
async def test_no_answer_is_lost_or_changed(seed: int) -> None:
    """Every answer is whole and unchanged, whatever happened meanwhile."""
    num_streams = 120
    async with chaos(seed, Faults(latency_s=0.005, jitter_s=0.01, duplication=0.02)) as made:
        await made.run(num_streams, at_once=24)
        assert len(set(made.struck)) >= 5
        await made.check_books(num_streams)


@pytest.mark.parametrize(("later_s", "longest_s"), [(0.6, 1.15), (0.89, 1.4)])
async def test_a_second_node_in_trouble_costs_no_second_wait(
    later_s: float, longest_s: float
) -> None:
    """One node dies, another hangs before that is noticed: nobody waits for both in turn.

    Whoever hung for a third of a second is not asked, and for one that just began to hang another
    is asked a little later.
    """
    async with chaos(1, Faults(latency_s=0.005)) as made, anyio.create_task_group() as reading:
        for number in range(16):
            reading.start_soon(made.read, number)
        await anyio.sleep(0.8)
        made.nodes[0].life.cancel()
        await anyio.sleep(later_s)
        made.nodes[1].stalled = True
    assert 0.9 < max(made.waits_s) < longest_s
