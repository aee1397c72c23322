"""Runs a small scenario through the real services, on the in-memory wire, under virtual time.

The gateway's dispatch, the distributor and the nodes are the services themselves, with seals,
credentials, beats, chunks and closes; what is modelled is the device alone, as
`starai.simulation.devices` models it. It takes a hundred times as long as the event-driven
simulation or longer, and shows whether that one tells the truth. Not bit for bit the same every
time: the event loop does not promise in which order it runs what is ready.
"""

from __future__ import annotations

import hashlib
from array import array
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Self

import anyio
import msgspec
import numpy as np
import trio.testing
from anyio.abc import TaskGroup

from starai.core.errors import ConfigurationRefused, StarAIError
from starai.core.limits import REQUEST_DEADLINE_S
from starai.core.randomness import SeededRandomness
from starai.distributor.service import Distributor
from starai.engines.base import EngineInfo, EngineSpec
from starai.exchange.callee.serving import Refused, ServedTask
from starai.exchange.member import Member
from starai.exchange.recording.confirming import Confirmer
from starai.gateway.dispatch import Dispatch
from starai.node.runner import Runner
from starai.node.service import Node
from starai.protocol import tokens
from starai.protocol.frames import encode
from starai.protocol.generation import Finish, Generation, Sampling
from starai.protocol.ports import Submission
from starai.protocol.presence import Control
from starai.protocol.records import RECORD_BYTES, TaskRecord
from starai.protocol.registry import Side
from starai.protocol.subjects import Role, control
from starai.protocol.tasks import RefusalCode
from starai.simulation.churning import HOUR_S, length_s
from starai.simulation.oracle import Oracle, Verdict
from starai.simulation.policies import ROOT
from starai.simulation.report import Times, times
from starai.simulation.scenario import Churn, Scenario
from starai.simulation.sources import Sources
from starai.simulation.world import LAST_MILE_S, MAX_TOKENS, Arrival, Device, World, make_world
from starai.testing.outboxes import MemoryOutbox
from starai.testing.parties import Parties
from starai.wire.memory import Faults, MemoryNetwork

#: More than this takes too long, and shows no more.
NODES_MAX = 64
#: A device sends what it wrote in this time in one part.
PART_S = 0.1
#: Until everybody has heard of everybody, and until all books are closed.
SETTLE_S = 15.0
#: Records of one outbox that are read; more than any run leaves.
RECORDS_MAX = 1_000_000


class RealOutcome(msgspec.Struct, frozen=True):
    """What the real services did; times in seconds. ``changed`` answers were not the right ones."""

    verdict: Verdict
    requests: int
    ttft_s: list[float]
    finish_s: list[float]
    attempts: int
    changed: int
    left: int


class RealReport(msgspec.Struct, frozen=True):
    """The numbers of `RealOutcome`."""

    verdict: Verdict
    requests: int
    attempts: int
    changed: int
    left: int
    ttft: Times
    finish: Times

    @classmethod
    def of(cls, one: RealOutcome) -> Self:
        """The numbers of a run."""
        counts = (one.verdict, one.requests, one.attempts, one.changed, one.left)
        return cls(*counts, times(one.ttft_s), times(one.finish_s))

    def rows(self) -> list[tuple[str, str]]:
        """The numbers as a person reads them."""
        verdict = self.verdict
        sound = "sound" if verdict.is_sound else "NOT SOUND: " + "; ".join(verdict.faults)
        return [
            ("requests", f"{self.requests:,}"),
            ("answered", f"{verdict.answered:,}, over {self.attempts:,} booked attempts"),
            ("refused", f"{verdict.refused:,}"),
            ("changed answers", f"{self.changed:,}"),
            ("books", f"{sound}; {verdict.lost} lost"),
            ("tokens paid", f"{verdict.tokens_paid:,}, {verdict.tokens_confirmed:,} confirmed"),
            ("first token", self.ttft.text()),
            ("last token", self.finish.text()),
            ("nodes that ended a session", f"{self.left:,}"),
        ]


class ModelledEngine(Runner):
    """A runner whose engine is a model of a device: what it computes is a function, its time is."""

    def __init__(self, device: Device, member: Member, lengths: dict[bytes, int]) -> None:
        """Be ``device``; ``lengths`` says how long the answer to each sample key is."""
        super().__init__(EngineSpec("mock", ""), member.clock)
        self._device = device
        self._lengths = lengths
        self._reads = anyio.Lock()
        self._num_running = self._num_writing = 0
        self.prefill.tps = device.prefill_tps * device.told
        self.decode.tps = device.decode_tps * device.told
        self._info = EngineInfo("m", ROOT, 65_536, device.context, device.slots)

    @property
    def info(self) -> EngineInfo:
        """What is served."""
        return self._info

    @property
    def num_running(self) -> int:
        """Tasks on the device."""
        return self._num_running

    @property
    def engine_pid(self) -> int:
        """There is no process; it always answers."""
        return 1

    async def probe(self) -> bool:
        """It is ready."""
        await anyio.lowlevel.checkpoint()
        return True

    async def answer(self, task: ServedTask) -> None:
        """Read, then write, in the device's time.

        Raises:
            Refused: all slots are taken.
        """
        if self._num_running >= self._device.slots:
            raise Refused(RefusalCode.BUSY)
        self._num_running += 1
        try:
            async with self._reads:
                accepted = tokens.count(task.generation.accepted)
                num_read = tokens.count(task.generation.prompt) + accepted
                await anyio.sleep(num_read / self._device.prefill_tps)
            await self._write(task, accepted)
        finally:
            self._num_running -= 1

    async def _write(self, task: ServedTask, position: int) -> None:
        key = task.generation.sampling.sample_key
        length, device = self._lengths[key], self._device
        self._num_writing += 1
        try:
            number = 1  # the first token comes with the prompt
            while not task.finished:
                ids = tokens.pack(token_at(key, at) for at in range(position, position + number))
                position += number
                await task.send(ids, Finish.STOP if position >= length else None)
                if not task.finished:
                    step_s = (1 + device.crowding * (self._num_writing - 1)) / device.decode_tps
                    number = min(max(1, int(PART_S / step_s)), length - position)
                    await anyio.sleep(number * step_s)
        finally:
            self._num_writing -= 1


def token_at(sample_key: bytes, position: int) -> int:
    """What is drawn there: a function of key and position, as a real sampler's."""
    digest = hashlib.blake2b(position.to_bytes(4, "little"), key=sample_key, digest_size=2)
    return int.from_bytes(digest.digest(), "little")


def run_services(scenario: Scenario, sources: Sources) -> RealOutcome:
    """Run a small scenario through the real services.

    Raises:
        ConfigurationRefused: it is too large, or data is absent.
    """
    if scenario.nodes > NODES_MAX:
        raise ConfigurationRefused(f"real services run for up to {NODES_MAX} nodes; use --nodes")
    if scenario.policy != "ours" or scenario.churn.kind == "spot" or scenario.cut.share:
        raise ConfigurationRefused("the real services know one policy, and sessions as churn")
    world = make_world(scenario, sources)
    clock = trio.testing.MockClock(autojump_threshold=0)
    return anyio.run(
        _Theatre(scenario, world).run, backend="trio", backend_options={"clock": clock}
    )


@dataclass
class _Theatre:
    """The services, and what they did."""

    scenario: Scenario
    world: World
    lengths: dict[bytes, int] = field(default_factory=dict)
    outboxes: dict[Side, list[MemoryOutbox]] = field(
        default_factory=lambda: {Side.DISTRIBUTOR: [], Side.NODE: []}
    )
    ttft_s: array[float] = field(default_factory=lambda: array("d"))
    finish_s: array[float] = field(default_factory=lambda: array("d"))
    answered: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    changed: int = 0
    left: int = 0

    async def run(self) -> RealOutcome:
        world, seed = self.world, self.scenario.seed
        centre = world.centres[0]
        miles_s = [world.rtt_s[centre][one.city] + one.last_mile_s for one in world.devices]
        mean_s = float(np.mean(miles_s)) / 2
        # One wire has one latency: the mean one, and as much jitter as nodes differ.
        faults = Faults(latency_s=mean_s / 2, jitter_s=mean_s)
        async with AsyncExitStack() as stack:
            chance = SeededRandomness(seed)
            network = await stack.enter_async_context(MemoryNetwork(chance, faults))
            parties = Parties(network, seed=seed)
            group = await stack.enter_async_context(anyio.create_task_group())
            dispatch = await self._start(group, stack, parties)
            await anyio.sleep(SETTLE_S)
            async with anyio.create_task_group() as asking:
                for number, arrival in enumerate(world.arrivals):
                    asking.start_soon(self._ask, dispatch, number, arrival, parties)
            await anyio.sleep(SETTLE_S)
            verdict, attempts = await self._audit()
            group.cancel_scope.cancel()
        return RealOutcome(
            *(verdict, len(world.arrivals), [*self.ttft_s], [*self.finish_s]),
            *(attempts, self.changed, self.left),
        )

    async def _start(self, group: TaskGroup, stack: AsyncExitStack, parties: Parties) -> Dispatch:
        for _ in self.world.centres:
            member = parties.join(Role.DISTRIBUTOR)
            await group.start(Distributor(member, self._confirmer(member, Side.DISTRIBUTOR)).run)
        operator = parties.join(Role.OPERATOR)
        for device in self.world.devices:
            group.start_soon(self._live, device, parties.join(Role.NODE), operator)
        dispatch = Dispatch(parties.join(Role.GATEWAY))
        await stack.enter_async_context(dispatch.running())
        return dispatch

    def _confirmer(self, member: Member, side: Side) -> Confirmer:
        outbox = MemoryOutbox(RECORDS_MAX)
        self.outboxes[side].append(outbox)
        return Confirmer(
            *(member.wire, member.identity, outbox, member.network, member.block_ms, side),
            clock=member.clock,
        )

    async def _live(self, device: Device, member: Member, operator: Member) -> None:
        """A node's sessions, one after the other."""
        confirmer = self._confirmer(member, Side.NODE)
        churn, chance = self.scenario.churn, member.randomness.fraction
        while True:
            runner = ModelledEngine(device, member, self.lengths)
            async with anyio.create_task_group() as life:
                life.start_soon(Node(member, runner, confirmer).run)
                if churn.kind == "none":
                    await anyio.sleep_forever()
                await anyio.sleep(SETTLE_S + self._session_s(churn, chance()))
                if chance() < churn.graceful:
                    order = encode(Control("leave"))
                    await operator.wire.publish(control(member.identity.party), order)
                    await anyio.sleep(2 * SETTLE_S)
                self.left += 1
                life.cancel_scope.cancel()
            await anyio.sleep(length_s(churn.absence_h * HOUR_S, churn.shape, chance()))

    def _session_s(self, churn: Churn, even: float) -> float:
        return length_s(churn.session_h * HOUR_S, churn.shape, even)

    async def _ask(
        self, dispatch: Dispatch, number: int, arrival: Arrival, parties: Parties
    ) -> None:
        """One request, from its user and back to him."""
        user_s = (self.world.rtt_s[arrival.city][self.world.centres[0]] + sum(LAST_MILE_S) / 2) / 2
        await anyio.sleep(arrival.at_s + user_s)
        key = hashlib.sha256(b"%d" % number).digest()
        self.lengths[key] = arrival.answer
        prompt = (np.arange(arrival.prompt, dtype="<u4") + 7919 * number) % 50_000
        generation = Generation(
            *(prompt.astype("<u4").tobytes(), max(MAX_TOKENS, arrival.answer), Sampling(key)),
            stop_token_ids=(),
            salt=bytes(16),
        )
        began_s = anyio.current_time() - user_s
        deadline_ms = parties.clock.now_ms() + int(1000 * REQUEST_DEADLINE_S)
        submission = Submission(
            *(number.to_bytes(16, "big"), "m", ROOT, arrival.tenant, deadline_ms, generation)
        )
        ids = bytearray()
        first_s = 0.0
        try:
            async with dispatch.submit(submission) as parts:
                async for part in parts:
                    ids += part.ids
                    if ids and not first_s:
                        first_s = anyio.current_time()
        except StarAIError:
            self.refused.append(number)
            return
        self.answered.append(number)
        self.ttft_s.append(first_s + user_s - began_s)
        self.finish_s.append(anyio.current_time() + user_s - began_s)
        expected = [token_at(key, position) for position in range(arrival.answer)]
        self.changed += tokens.unpack(bytes(ids)) != expected

    async def _audit(self) -> tuple[Verdict, int]:
        """Hand both sides' books to the auditor."""
        oracle = Oracle(len(self.world.arrivals))
        nodes: dict[bytes, int] = {}
        mine, theirs = await self._records(Side.DISTRIBUTOR), await self._records(Side.NODE)
        for number in range(len(self.world.arrivals)):
            oracle.came(number)
        paid: dict[int, int] = {}
        for record in sorted(mine, key=lambda one: (one.task_id, one.attempt)):
            task, node = (
                int.from_bytes(record.task_id, "big"),
                nodes.setdefault(record.node, len(nodes)),
            )
            first = paid.get(task, 0)
            last = paid[task] = first + record.answer_tokens
            oracle.offered(task, record.attempt, node)
            oracle.booked(task, record.attempt, node, first, last)
            oracle.ended(task, record.attempt)
            if record in theirs:
                oracle.confirmed(task, record.attempt, node, first, last)
            else:
                oracle.unconfirmed(task, record.attempt)
        for number in self.answered:
            oracle.answered(number, self.world.arrivals[number].answer)
        for number in self.refused:
            oracle.refused(number)
        return oracle.verdict(), len(mine)

    async def _records(self, side: Side) -> set[TaskRecord]:
        found = set()
        for outbox in self.outboxes[side]:
            for topic in ("confirm.distributor", "confirm.node"):
                items = await outbox.pending(topic, RECORDS_MAX)
                found |= {TaskRecord.parse(item[:RECORD_BYTES]) for _, item in items}
        return found
