"""Matching on real traces: ours beside random, round robin and least outstanding, at 1,000 nodes.

A discrete simulation in virtual time, with the real kernel (`starai.matching`): arrivals and
lengths from the Azure 2023 and Mooncake traces, speeds from 52 measured devices, distances from the
222-city ping table, several distributors that hear of each other's tasks by beats only. What is
assumed and not measured is written into the result. Then: microseconds a decision.

Run it with ``python benchmarks/matching/matching.py``; ``--quick`` takes one seed and a part of the
traces.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import heapq
import json
import os
import random
import statistics
import struct
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from starai.matching import Candidate, Demand, FairQueue, Pool, PrefixIndex, block_hashes
from starai.matching.finish_time import reading_s
from starai.matching.queueing import cost
from starai.node.runner import SLOTS_A_WAITER

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("STARAI_SHARED_DATA", ROOT.parent / "shared" / "data"))
RESULT = ROOT / "benchmarks/results/matching_2-cores-x86_64_2026-11-21.md"

NODES = 1000
DISTRIBUTORS = 8
BEAT_S = 0.5
LOADS = (0.5, 0.8)
SEEDS = (1, 2, 3)
#: Share of the requests at the beginning that are not counted: the network is empty then.
WARM_UP = 0.2
TRACE_BLOCK = 512
#: Tokens of prompts that a node's memory holds for reuse, per slot.
KEPT_TOKENS_A_SLOT = 16_384


# ---------------------------------------------------------------- the world


@dataclass(frozen=True)
class Request:
    at_s: float
    prompt: int
    answer: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Device:
    """A node as it is. ``crowding``: how much each further sequence lengthens a decode step."""

    name: str
    prefill_tps: float
    decode_tps: float
    slots: int
    context: int
    crowding: float
    city: int
    last_mile_ms: float


Row = tuple[float, int, int, tuple[int, ...]]


def azure() -> list[Row]:
    """When, tokens of the prompt, of the answer, blocks: the Azure 2023 conversations."""
    path = SHARED / "traces/azure2023/AzureLLMInferenceTrace_conv.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    times = [dt.datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
    return [
        (at_s - times[0], int(row["ContextTokens"]), int(row["GeneratedTokens"]), ())
        for at_s, row in zip(times, rows, strict=True)
    ]


def mooncake() -> list[Row]:
    """The Mooncake conversations, with the hashes of their blocks of 512 tokens."""
    path = SHARED / "traces/mooncake/conversation_trace.jsonl"
    rows = [json.loads(line) for line in path.open()]
    return [
        (
            row["timestamp"] / 1000,
            row["input_length"],
            row["output_length"],
            tuple(row["hash_ids"]),
        )
        for row in rows
    ]


def together(rows: list[Row], rate: float, span_s: float, source: random.Random) -> list[Request]:
    """As many such services at once as make ``rate`` requests a second, for ``span_s`` seconds.

    Each begins at a moment of its own and has prompts of its own, so that the pauses within
    conversations are as they were.
    """
    whole_s = rows[-1][0] + rows[-1][0] / len(rows)
    copies = max(1, round(rate * whole_s / len(rows)))
    made = []
    for copy in range(copies):
        offset_s = source.uniform(0, whole_s)
        for at_s, prompt, answer, blocks in rows:
            arrives_s = (at_s - offset_s) % whole_s
            if arrives_s < span_s:
                own = tuple(block * copies + copy for block in blocks)
                made.append(Request(arrives_s, max(1, prompt), max(1, answer), own))
    return sorted(made, key=lambda one: one.at_s)


def devices(source: random.Random, number: int) -> list[Device]:
    with (SHARED / "devices/llm_speed_geerling.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == "Llama 3.2:3b"]
    made = []
    for _ in range(number):
        row = source.choice(rows)
        decode = float(row["tokens_per_s"]) * source.lognormvariate(0, 0.1)
        gpu = row["processor"] == "GPU"
        made.append(
            Device(
                name=f"{len(made):04}",
                prefill_tps=decode * source.uniform(*((15, 30) if gpu else (4, 8))),
                decode_tps=decode,
                slots=8 if decode > 40 else 4 if decode > 10 else 2,
                context=131_072 if decode > 60 else 32_768 if decode > 15 else 8192,
                crowding=source.uniform(0.05, 0.25),
                city=source.randrange(222),
                last_mile_ms=source.uniform(4, 25),
            )
        )
    return made


class Distances:
    def __init__(self) -> None:
        data = (SHARED / "geo/wondernetwork_222x222/ping.bin").read_bytes()
        self.table = struct.unpack(f"<{222 * 222 * 4}I", data)

    def rtt_s(self, one: int, other: int) -> float:
        average = self.table[(one * 222 + other) * 4 + 1]
        return (average or 300_000) / 1e6


class Node:
    """Reads prompts one after the other, writes answers together; a longer batch steps slower."""

    def __init__(self, world: World, device: Device) -> None:
        self.world = world
        self.device = device
        self.reading: deque[Job] = deque()
        self.busy_reading = False
        self.writing: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.at_s = 0.0
        self.version = 0
        self.kept: OrderedDict[int, None] = OrderedDict()
        self.running = 0
        self.run_tokens = 0

    @property
    def outstanding(self) -> int:
        return self.running + len(self.waiting)

    def take(self, job: Job, *, queues: bool) -> bool:
        """Begin a job, or let it wait; False: refused because all slots are taken."""
        if self.running >= self.device.slots:
            # Ours lets as few wait on a node as `starai.node.runner` does; the others all.
            if queues or len(self.waiting) < self.device.slots // SLOTS_A_WAITER:
                self.waiting.append(job)
                return True
            return False
        self.running += 1
        self.reading.append(job)
        if not self.busy_reading:
            self._read()
        return True

    def _read(self) -> None:
        self.busy_reading = True
        job = self.reading[0]
        hit = 0
        for block in job.request.blocks:
            if block not in self.kept:
                break
            hit += TRACE_BLOCK
        tokens = max(1, job.request.prompt - hit)
        self.run_tokens += hit
        seconds = tokens / self.device.prefill_tps * self.world.noise()
        self.world.at(self.world.now_s + seconds, self._has_read)

    def _has_read(self) -> None:
        job = self.reading.popleft()
        for block in reversed(job.request.blocks):
            self.kept[block] = None
            self.kept.move_to_end(block)
        most = KEPT_TOKENS_A_SLOT * self.device.slots // TRACE_BLOCK
        while len(self.kept) > most:
            self.kept.popitem(last=False)
        self._advance()
        job.left = job.request.answer * self.world.noise()
        job.read_s = self.world.now_s
        self.writing.append(job)
        self._plan()
        self.busy_reading = False
        if self.reading:
            self._read()

    def _step_s(self) -> float:
        batch = len(self.writing)
        return (1 + self.device.crowding * (batch - 1)) / self.device.decode_tps

    def _advance(self) -> None:
        now_s = self.world.now_s
        if self.writing:
            tokens = (now_s - self.at_s) / self._step_s()
            for job in self.writing:
                job.left -= tokens
        self.at_s = now_s

    def _plan(self) -> None:
        self.version += 1
        if self.writing:
            least = max(0.0, min(job.left for job in self.writing))
            version = self.version
            self.world.at(self.world.now_s + least * self._step_s(), lambda: self._done(version))

    def _done(self, version: int) -> None:
        if version != self.version:
            return
        self._advance()
        ready = [job for job in self.writing if job.left < 1e-6]
        self.writing = [job for job in self.writing if job.left >= 1e-6]
        self._plan()
        for job in ready:
            self.running -= 1
            way_s = job.rtt_s / 2
            self.world.finished(job, self.world.now_s + way_s)
            job.distributor.ended(self, job)
        while self.waiting and self.running < self.device.slots:
            self.take(self.waiting.popleft(), queues=True)


@dataclass
class Job:
    request: Request
    distributor: Distributor
    left: float = 0.0
    rtt_s: float = 0.0
    read_s: float = 0.0
    offers: int = 0


class World:
    def __init__(self, seed: int, requests: list[Request], policy: str) -> None:
        self.now_s = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.number = 0
        source = random.Random(seed)
        self.chance = random.Random(seed + 1000)
        self.distances = Distances()
        self.nodes = [Node(self, one) for one in devices(source, NODES)]
        cities = [source.randrange(222) for _ in range(DISTRIBUTORS)]
        self.distributors = [POLICIES[policy](self, city) for city in cities]
        self.ttft: list[float] = []
        self.finish: list[float] = []
        self.refusals = 0
        first = int(len(requests) * WARM_UP)
        self.counted_from_s = requests[first].at_s if requests else 0.0
        self.arrivals = iter(requests)
        self.open = len(requests)
        self._next_arrival()
        for one in self.distributors:
            self.at(source.uniform(0, BEAT_S), one.beats)

    def noise(self) -> float:
        return self.chance.lognormvariate(0, 0.05)

    def at(self, at_s: float, do: Callable[[], None]) -> None:
        self.number += 1
        heapq.heappush(self.events, (at_s, self.number, do))

    def _next_arrival(self) -> None:
        request = next(self.arrivals, None)
        self.arriving = request is not None
        if request is not None:
            self.at(request.at_s, lambda: self._arrive(request))

    def _arrive(self, request: Request) -> None:
        self.chance.choice(self.distributors).submit(request)
        self._next_arrival()

    def finished(self, job: Job, at_s: float) -> None:
        self.open -= 1
        if job.request.at_s >= self.counted_from_s:
            first = job.read_s + job.rtt_s / 2 + 1 / 50
            self.ttft.append(first - job.request.at_s)
            self.finish.append(at_s - job.request.at_s)

    def run(self) -> None:
        events = self.events
        while self.open and events:
            self.now_s, _, do = heapq.heappop(events)
            do()


# ---------------------------------------------------------------- the distributors


class Distributor:
    """What all policies share: the way to the nodes, and beats that come late."""

    queues_on_nodes = True

    def __init__(self, world: World, city: int) -> None:
        self.world = world
        self.rtt_s = [
            world.distances.rtt_s(city, node.device.city) + node.device.last_mile_ms / 1000
            for node in world.nodes
        ]

    def send(self, job: Job, number: int) -> None:
        job.offers += 1
        job.rtt_s = self.rtt_s[number]
        node = self.world.nodes[number]

        def arrives() -> None:
            if not node.take(job, queues=self.queues_on_nodes):
                self.world.refusals += 1
                self.world.at(self.world.now_s + job.rtt_s / 2, lambda: self.refused(node, job))

        self.world.at(self.world.now_s + job.rtt_s / 2, arrives)

    def able(self, job: Job) -> list[int]:
        nodes = self.world.nodes
        return [n for n, one in enumerate(nodes) if job.request.prompt < one.device.context]

    def submit(self, request: Request) -> None:
        raise NotImplementedError

    def ended(self, node: Node, job: Job) -> None:
        pass

    def refused(self, node: Node, job: Job) -> None:
        raise NotImplementedError

    def beats(self) -> None:
        # When all requests have been placed, beats change nothing any more.
        if self.world.arriving or self.waits:
            self.world.at(self.world.now_s + BEAT_S, self.beats)

    @property
    def waits(self) -> bool:
        """Whether a job waits for a place."""
        return False


class RandomChoice(Distributor):
    def submit(self, request: Request) -> None:
        job = Job(request, self)
        while True:
            number = self.world.chance.randrange(NODES)
            if request.prompt < self.world.nodes[number].device.context:
                return self.send(job, number)


class RoundRobin(Distributor):
    turn = -1

    def submit(self, request: Request) -> None:
        job = Job(request, self)
        if self.turn < 0:
            self.turn = self.world.chance.randrange(NODES)
        while True:
            self.turn = (self.turn + 1) % NODES
            if request.prompt < self.world.nodes[self.turn].device.context:
                return self.send(job, self.turn)


class LeastOutstanding(Distributor):
    """Own tasks to the moment, the others' by beats; ties by chance."""

    per_slot = False

    def __init__(self, world: World, city: int) -> None:
        super().__init__(world, city)
        self.own = np.zeros(NODES, np.int64)
        self.others = np.zeros(NODES, np.int64)
        self.context = np.array([node.device.context for node in world.nodes])
        self.slots = np.array([node.device.slots for node in world.nodes])

    def submit(self, request: Request) -> None:
        job = Job(request, self)
        load = (self.own + self.others).astype(np.float64)
        if self.per_slot:
            load /= self.slots
        load[self.context <= request.prompt] = np.inf
        number = int(self.world.chance.choice(np.flatnonzero(load == load.min())))
        self.own[number] += 1
        self.send(job, number)

    def ended(self, node: Node, job: Job) -> None:
        self.own[int(node.device.name)] -= 1

    def beats(self) -> None:
        outstanding = np.array([node.outstanding for node in self.world.nodes])
        self.others = np.maximum(0, outstanding - self.own)
        super().beats()


class LeastPerSlot(LeastOutstanding):
    """Least outstanding for each slot: it knows how many tasks a node runs at once."""

    per_slot = True


class Ours(Distributor):
    """The kernel as `starai.exchange.routes.roster` and `routing` use it."""

    queues_on_nodes = False
    uses_prefixes = True
    spreads = True
    echoes = True

    def __init__(self, world: World, city: int) -> None:
        super().__init__(world, city)
        self.pool = Pool()
        self.prefixes = PrefixIndex()
        self.queue: FairQueue[Job] = FairQueue(1 << 30)
        self.own = [0] * NODES
        self.others = [0] * NODES
        self.free_at_s = [0.0] * NODES
        #: Own tasks since a node's last beat.
        self.unheard = [0] * NODES
        # What a node tells of its speed is an average of what it measured: near, not exact.
        self.told = [world.chance.lognormvariate(0, 0.1) for _ in range(NODES)]
        for number in range(NODES):
            self.put(number)

    def put(self, number: int) -> None:
        device, now_s = self.world.nodes[number].device, self.world.now_s
        told, free_at_s = self.told[number], self.free_at_s[number]
        candidate = Candidate(
            party=device.name,
            slots=device.slots,
            running=self.own[number] + self.others[number],
            unseen=self.unheard[number] * (DISTRIBUTORS - 1) if self.echoes else 0,
            context_length=device.context,
            prefill_tps=device.prefill_tps * told,
            decode_tps=device.decode_tps * told,
            rtt_ms=1000 * self.rtt_s[number],
            free_at_s=free_at_s if free_at_s > now_s else 0.0,
        )
        if self.pool.get(device.name) != candidate:
            self.pool.put(candidate, now_s)

    def submit(self, request: Request) -> None:
        job = Job(request, self)
        if not self.queue.waiting("") and self.place(job):
            return
        self.queue.join(job, "", 1, cost(request.prompt, 256), self.world.now_s)

    def place(self, job: Job, excluded: Sequence[str] = ()) -> bool:
        request, now_s = job.request, self.world.now_s
        # The trace does not say max_tokens; nobody knows the answer's length beforehand.
        demand = Demand(request.prompt, 1024)
        cached: dict[str, float] = {}
        if self.uses_prefixes and request.blocks:
            found = self.prefixes.find(request.blocks)
            cached = {one: hit * TRACE_BLOCK / 128 for one, hit in found.items()}
        chance = self.world.chance.random if self.spreads else (lambda: 0.0)
        chosen = self.pool.choose(demand, now_s, chance, cached, excluded)
        if chosen is None:
            return False
        number = int(chosen.party)
        if self.uses_prefixes and request.blocks:
            self.prefixes.add(request.blocks, chosen.party)
        self.own[number] += 1
        self.unheard[number] += 1
        hit = cached.get(chosen.party, 0.0)
        heard = DISTRIBUTORS if self.echoes else 1
        reading = heard * reading_s(demand, chosen, hit)
        self.free_at_s[number] = max(now_s, self.free_at_s[number]) + reading
        self.put(number)
        self.send(job, number)
        return True

    def give_back(self, number: int) -> None:
        self.own[number] -= 1
        self.put(number)

    def ended(self, node: Node, job: Job) -> None:
        number = int(node.device.name)
        self.world.at(self.world.now_s + job.rtt_s / 2, lambda: self.freed(number))

    def freed(self, number: int) -> None:
        self.give_back(number)
        self.grant()

    def refused(self, node: Node, job: Job) -> None:
        number = int(node.device.name)
        self.others[number] = max(self.others[number], node.device.slots)
        self.give_back(number)
        if not self.place(job, [node.device.name]):
            self.queue.join(job, "", 1, 0, self.world.now_s, urgent=True)

    @property
    def waits(self) -> bool:
        return len(self.queue) > 0

    def grant(self) -> None:
        while len(self.queue):
            for tried, ticket in enumerate(self.queue.order("", self.world.now_s)):
                if self.place(ticket.item):
                    self.queue.leave(ticket)
                    break
                if tried >= 8:
                    return
            else:
                return

    def beats(self) -> None:
        for number, node in enumerate(self.world.nodes):
            self.others[number] = max(0, node.outstanding - self.own[number])
            self.unheard[number] = 0
            unread = sum(job.request.prompt for job in node.reading)
            told_tps = node.device.prefill_tps * self.told[number]
            self.free_at_s[number] = self.world.now_s + unread / told_tps
            self.put(number)
        self.grant()
        super().beats()


class OursWithoutPrefixes(Ours):
    uses_prefixes = False


class OursWithoutEcho(Ours):
    """As if no other distributor did what this one does."""

    echoes = False


class OursWithoutChance(Ours):
    """Always the best as it looks from here."""

    spreads = False


POLICIES: dict[str, type[Distributor]] = {
    "random": RandomChoice,
    "round robin": RoundRobin,
    "least outstanding": LeastOutstanding,
    "least outstanding per slot": LeastPerSlot,
    "ours": Ours,
    "ours, no prefixes": OursWithoutPrefixes,
    "ours, no echo": OursWithoutEcho,
    "ours, no chance": OursWithoutChance,
}


# ---------------------------------------------------------------- what is shown


@dataclass
class Outcome:
    ttft: list[float] = field(default_factory=list)
    finish: list[float] = field(default_factory=list)
    refused: float = 0.0
    hit_share: float = 0.0
    requests: int = 0
    cpu_s: float = 0.0


def percentile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


def capacity_rps(nodes: list[Node], rows: list[Row]) -> float:
    """Requests a second that the nodes serve when all are full, for this mix of lengths."""
    prompt = statistics.fmean(row[1] for row in rows)
    answer = statistics.fmean(row[2] for row in rows)
    total = 0.0
    for node in nodes:
        one = node.device
        if prompt >= one.context:
            continue
        batch_s = (1 + one.crowding * (one.slots - 1)) / one.decode_tps * answer / one.slots
        total += 1 / max(prompt / one.prefill_tps, batch_s)
    return total


def simulate(policy: str, seed: int, rows: list[Row], load: float, span_s: float) -> Outcome:
    began = time.process_time()
    probe = World(seed, [], "random")
    rate = load * capacity_rps(probe.nodes, rows)
    requests = together(rows, rate, span_s, random.Random(seed))
    world = World(seed, requests, policy)
    world.run()
    return Outcome(
        sorted(world.ttft),
        sorted(world.finish),
        world.refusals / len(requests),
        sum(node.run_tokens for node in world.nodes) / sum(one.prompt for one in requests),
        len(requests),
        time.process_time() - began,
    )


def measure(
    name: str, rows: list[Row], loads: Sequence[float], seeds: Sequence[int], span_s: float
) -> list[str]:
    """One trace's table: the mean over the seeds of each percentile."""
    lines = [
        "",
        f"## {name}, {span_s:.0f} s",
        "",
        "| load | policy | TTFT p50 / p95 / p99 s | finish p50 / p95 / p99 s | refused | hit | n |",
        "|---|---|---|---|---|---|---|",
    ]
    ratios = []
    for load in loads:
        p95s: dict[str, list[tuple[float, float]]] = {}
        for policy in POLICIES:
            outcomes = [simulate(policy, seed, rows, load, span_s) for seed in seeds]
            both = []
            for values in ([one.ttft for one in outcomes], [one.finish for one in outcomes]):
                means = [
                    statistics.fmean(percentile(one, share) for one in values)
                    for share in (0.5, 0.95, 0.99)
                ]
                both.append(" / ".join(f"{mean:.2f}" for mean in means))
            p95s[policy] = [
                (percentile(one.ttft, 0.95), percentile(one.finish, 0.95)) for one in outcomes
            ]
            refused = statistics.fmean(one.refused for one in outcomes)
            hit = statistics.fmean(one.hit_share for one in outcomes)
            row = f"| {load} | {policy} | {both[0]} | {both[1]} | {refused:.1%} | {hit:.1%} "
            lines.append(f"{row}| {sum(one.requests for one in outcomes):,} |")
            print(lines[-1], flush=True)
        for place, what in enumerate(("TTFT", "finish")):
            pairs = zip(p95s["ours"], p95s["least outstanding"], strict=True)
            told = ", ".join(f"{ours[place] / other[place]:.3f}" for ours, other in pairs)
            ratios.append(f"- load {load}: p95 {what}, ours / least outstanding, by seed: {told}")
            print(ratios[-1], flush=True)
    return [*lines, "", *ratios]


def decision_us(number: int, repeats: int = 3000) -> list[float]:
    """CPU-microseconds of put, choose, and choose with a region rule: medians of five rounds."""
    source = random.Random(5)
    pool, now_s = Pool(), 0.0
    made = []
    for one in devices(source, number):
        made.append(
            Candidate(
                party=f"U{one.name:>055}",
                slots=one.slots,
                running=source.randrange(one.slots + 1),
                context_length=one.context,
                prefill_tps=one.prefill_tps,
                decode_tps=one.decode_tps,
                rtt_ms=source.uniform(1, 300),
                region=source.choice(["eu-west", "eu-east", "us", "jp", "br"]),
            )
        )
        pool.put(made[-1], now_s)
    demands = [Demand(source.randint(1, 8000), source.randint(1, 800)) for _ in range(repeats)]
    ruled = [Demand(one.prompt_tokens, one.max_tokens, regions=("jp",)) for one in demands]
    cached = {made[n].party: 512.0 for n in range(3)}
    rounds: list[list[float]] = []
    for _ in range(5):
        began = time.process_time()
        for n in range(repeats):
            pool.put(made[n * 37 % number], now_s)
        taken = [time.process_time() - began]
        for wanted in (demands, ruled):
            began = time.process_time()
            for demand in wanted:
                pool.choose(demand, now_s, source.random, cached)
            taken.append(time.process_time() - began)
        rounds.append([1e6 * one / repeats for one in taken])
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def decisions() -> list[str]:
    lines = [
        "",
        "## One decision",
        "",
        "| candidates | one is moved, CPU-us | a choice | a choice where one in five may |",
        "|---|---|---|---|",
    ]
    for number in (100, 1000, 10_000, 100_000):
        put, choose, ruled = decision_us(number)
        lines.append(f"| {number:,} | {put:.1f} | {choose:.1f} | {ruled:.1f} |")
        print(lines[-1], flush=True)
    key, prompt = bytes(32), bytes(4 * 1155)
    began = time.process_time()
    for _ in range(2000):
        block_hashes(key, b"scope", prompt)
    hashing = 1e6 * (time.process_time() - began) / 2000
    lines += ["", f"Hashing the blocks of a prompt of 1,155 tokens besides: {hashing:.1f} CPU-us."]
    return lines


def head(seeds: Sequence[int]) -> str:
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    told = ", ".join(map(str, seeds))
    return f"""# Matching: who gets a task, on real traces

`{" ".join(["python", *sys.argv])}` on 2 shared x86-64 cores, Python {sys.version.split()[0]}; load
average at the end {load}. All but the CPU times is virtual time and does not depend on the machine.

{NODES:,} nodes, {DISTRIBUTORS} distributors, beats every {BEAT_S} s, seeds {told}; the first
{WARM_UP:.0%} of requests are not counted. Load 0.8 means arrivals at 0.8 of what all nodes serve
when full, with this mix of lengths. A trace has a few requests a second: as many copies of it as
the load needs run at once, each from a moment of its own and with prompts of its own.

**Measured elsewhere:** arrivals and lengths (Azure LLM inference trace 2023; Mooncake conversations
with hashes of their blocks), tokens a second of 52 devices with Llama 3.2 3B, round trips between
222 cities. **Assumed:** prompts are read 15-30 (GPU) or 4-8 (CPU) times as fast as tokens are
written; 8, 4 or 2 slots and 128k, 32k or 8k of context for fast, middling and slow devices; each
further sequence lengthens a step by 5-25 %; tasks vary by 5 %, and a node tells its own speed with
an error of 10 %; the last mile takes 4-25 ms; a node keeps {KEPT_TOKENS_A_SLOT:,} tokens a slot.

**Unequal:** random, round robin and least outstanding send at once and let tasks wait on nodes
without end; all know which contexts are long enough. Ours sends where a slot seems free, lets the
rest wait at the distributor, and uses speeds and distances that nodes measure and tell; that is the
point of it. *Least outstanding per slot* shows what knowing the slots alone is worth. The run is
shorter than what the slowest devices need for one task, so that means would say nothing; read the
percentiles. *No echo* expects nothing of other distributors between beats, *no chance* always takes
the best as it looks from one distributor. *Refused*: offers that a full node sent back, for each
request; they are made again. *Hit*: prompt tokens that a node had in memory. *n*: requests."""


def head_of_part(seeds: Sequence[int]) -> list[str]:
    """What stands above a part that was run by itself."""
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    told = ", ".join(map(str, seeds))
    command = " ".join(["python", *sys.argv])
    return ["", f"`{command}`, seeds {told}; load average at the end {load}:"]


def main() -> None:
    traces = {"azure": ("Azure 2023", azure, 30.0), "mooncake": ("Mooncake", mooncake, 240.0)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, one load, a tenth as long")
    parser.add_argument("--trace", choices=tuple(traces), help="only this, added to the result")
    parser.add_argument("--load", type=float, choices=LOADS, help="with --trace: only this load")
    options = parser.parse_args()
    seeds, loads = (SEEDS[:1], LOADS[:1]) if options.quick else (SEEDS, LOADS)
    if options.load:
        loads = (options.load,)
    lines = [] if options.trace else decisions()
    for key, (name, rows, span_s) in traces.items():
        if options.trace in (None, key):
            lines += measure(name, rows(), loads, seeds, span_s / 10 if options.quick else span_s)
    if options.quick:
        return
    before = RESULT.read_text("utf-8").rstrip("\n") if options.trace else head(seeds)
    part = head_of_part(seeds) if options.trace else []
    RESULT.write_text("\n".join([before, *lines[:2], *part, *lines[2:]]) + "\n", "utf-8")
    print(f"written to {RESULT.name}")


if __name__ == "__main__":
    main()
