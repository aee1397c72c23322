"""Memory for half of what runs, in virtual time: what giving way costs, by policy and tier (row h).

``python benchmarks/engine/giving_way.py`` needs no model and no torch: the engine's scheduler,
books and cost rule serve requests of the Azure trace, and a step takes what it took on two cores.
Always swapping is measured in three ways: steps wait while everything is carried to the tier at
once, or only what others take; or that is carried behind the steps, as the engine does it. Always
recomputing, and the engine's choice by measured rates, find again what nobody took. A dated file in
benchmarks/results says what each costs. Two minutes of CPU time; ``--quick`` shows in seconds that
it runs. Data: ``STARAI_SHARED_DATA``, else ``shared/data`` beside the repository. What giving way
does to a real model's time: `engine_memory.py`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from memory import KV_BYTES, RESULTS, azure, wrapped

from starai.engines.paging.cost import Action, Gap, Rates, choose
from starai.engines.paging.memory import Copy, PagedMemory
from starai.engines.paging.report import MemoryReport
from starai.engines.scheduling.scheduler import Budget, Job, Limits, Plan, Scheduler

#: A model of the Qwen3-0.6B shape in bfloat16, as measured on two cores: seconds a prompt token and
#: a squared one, seconds a step for its weights and a decoding sequence.
TOKEN_S, SQUARE_S, WEIGHTS_S, DECODE_S = 9.5e-4, 2.2e-7, 0.045, 0.004
#: Megabytes a second that a tier takes and gives.
SPEEDS = (8000, 1000, 300, 210, 150, 40, 10)
#: Requests, tokens of one, how many are wanted at once, and how many times as long their answers
#: might have become where the engine is not told how long they will be.
REQUESTS, LEAST, MOST = 200, 200, 2048
AT_ONCE = 16
#: Reads that take no longer are waited for, as the engine does.
SOON_S = 0.005
SLACK = 4


class AtOnce(PagedMemory):
    """Books that carry a swapped sequence's blocks to the tier at once, as vLLM did."""

    def swap_out(self, key: bytes) -> tuple[Copy, ...]:
        """See `PagedMemory.swap_out`."""
        copies = super().swap_out(key)
        for block in set(self._blocks.parking.parked.values()):
            self._blocks.parking.spill(block)
        return (*copies, *self.spills())


@dataclass
class Disk:
    """A tier that carries a block after the other, reads first, while time goes on elsewhere."""

    block_s: float
    most_writes: int
    now_s: float = 0.0
    writes: dict[int, None] = field(default_factory=dict)
    reads: list[tuple[bytes, Copy]] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)
    here: list[tuple[bytes, Copy, bool]] = field(default_factory=list)
    written: int = 0
    read: int = 0

    def put(self, slots: Sequence[int]) -> list[int]:
        """Slots to write; returns those for which there is no room to wait."""
        refused = []
        for slot in slots:
            self.writes.pop(slot, None)
            self.lost.discard(slot)
            if len(self.writes) < self.most_writes:
                self.writes[slot] = None
            else:
                self.lost.add(slot)
                refused.append(slot)
        return refused

    def ask(self, key: bytes, copies: Sequence[Copy]) -> None:
        """Slots to read."""
        for copy in copies:
            if copy.source in self.lost or copy.source in self.writes:
                self.here.append((key, copy, copy.source not in self.lost))
            else:
                self.reads.append((key, copy))

    def run(self, until_s: float) -> None:
        """Carry until then."""
        while (self.reads or self.writes) and self.now_s + self.block_s <= until_s:
            self.now_s += self.block_s
            if self.reads:
                self.here.append((*self.reads.pop(), True))
                self.read += 1
            else:
                del self.writes[next(iter(self.writes))]
                self.written += 1
        if not (self.reads or self.writes):
            self.now_s = max(self.now_s, until_s)

    def forget(self, key: bytes) -> None:
        """Nobody waits for these any more."""
        self.reads = [one for one in self.reads if one[0] != key]
        self.here = [one for one in self.here if one[0] != key]


@dataclass
class Chooser:
    """Decides by measured rates, or always the same; learns from what it is told."""

    always: Action | None
    bytes_per_s: float
    waits: bool = False
    rates: Rates = field(init=False)
    asked: int = 0
    queued: int = 0

    def __post_init__(self) -> None:
        """Try the tier with eight blocks, as the engine does."""
        size = 8 * 16 * KV_BYTES
        unknown = Rates(0.0, 0.0, 500.0)
        self.rates = unknown.observe_write(size, size / self.bytes_per_s)
        self.rates = self.rates.observe_read(size, size / self.bytes_per_s)

    def choose(self, private_tokens: int, cached_tokens: int, others: int) -> Action:
        """See `Costs.choose`."""
        self.asked += 1
        return self.always or choose(self._gap(private_tokens, cached_tokens, others), self.rates)

    def head(self, lost_tokens: int, start: int, others: int) -> int:
        """See `Costs.head`."""
        return 0 if self.always else self._gap(lost_tokens, start, others).head(self.rates)

    def _gap(self, tokens: int, start: int, others: int) -> Gap:
        return Gap(tokens, start, KV_BYTES, others, self.queued * 16 * KV_BYTES)


def prefill_s(start: int, count: int) -> float:
    """Virtual seconds to compute tokens from a position on."""
    return count * TOKEN_S + ((start + count) ** 2 - start**2) * SQUARE_S


@dataclass
class Virtual:
    """An engine that only takes time."""

    memory: PagedMemory
    chooser: Chooser
    ends: dict[bytes, int]
    now_s: float = 0.0
    disk: Disk = field(init=False)

    def run(self, jobs: Iterator[Job], at_once: int, chunk: int) -> None:
        """Serve all, so many at once."""
        scheduler = Scheduler(self.memory, Limits(at_once, at_once), self.chooser)
        size = self.memory.block_tokens * KV_BYTES
        waiting = self.memory.num_blocks // 8
        self.disk = Disk(
            size / self.chooser.bytes_per_s, 1 << 30 if self.chooser.waits else waiting
        )
        known: dict[bytes, Job] = {}
        waiting_job = next(jobs, None)
        while waiting_job or known:
            while waiting_job and len(known) < at_once:
                known[waiting_job.key] = waiting_job
                scheduler.add(waiting_job)
                waiting_job = next(jobs, None)
            self._collect()
            plan = scheduler.plan(self.now_s, Budget(chunk))
            while self._carry_out(plan):
                plan = scheduler.plan(self.now_s, Budget(chunk))
            self._take_time(plan)
            for work in plan.works:
                job = known[work.key]
                if work.start + work.count == len(job.ids):
                    job.ids.append(1)
            scheduler.done(plan)
            for work in plan.works:
                if len(known[work.key].ids) >= self.ends[work.key]:
                    scheduler.remove(work.key)
                    del known[work.key]
        self.memory.check_integrity()

    def _carry_out(self, plan: Plan) -> bool:
        """Write behind and begin to read, or wait for both; whether somebody is back already."""
        disk = self.disk
        for key, _ in plan.preempted:
            disk.forget(key)
        self.memory.void(disk.put([copy.target for copy in plan.swap_out]))
        if self.chooser.waits:
            self._until(lambda: not disk.writes)
        for back in plan.returns:
            disk.ask(back.key, back.reads)
        if not plan.returns:
            return False
        soon = len(disk.reads) * disk.block_s <= SOON_S
        if self.chooser.waits or soon:
            self._until(lambda: not disk.reads)
        return self._collect()

    def _until(self, done: Callable[[], bool]) -> None:
        """Let the disk carry on, a block at a time, while nothing else happens."""
        while not done():
            self.disk.run(self.disk.now_s + 1.001 * self.disk.block_s)
        self.now_s = max(self.now_s, self.disk.now_s)

    def _collect(self) -> bool:
        disk, rates, size = self.disk, self.chooser.rates, self.memory.block_tokens * KV_BYTES
        disk.run(self.now_s)
        rates = rates.observe_write(disk.written * size, disk.written * disk.block_s)
        self.chooser.rates = rates.observe_read(disk.read * size, disk.read * disk.block_s)
        disk.written = disk.read = 0
        here, disk.here = disk.here, []
        for key, copy, found in here:
            (self.memory.arrived if found else self.memory.astray)(key, [copy])
        self.chooser.queued = len(disk.reads)
        return bool(here)

    def _take_time(self, plan: Plan) -> None:
        rates = self.chooser.rates
        if not plan.works:
            before = len(self.disk.here)
            self._until(lambda: len(self.disk.here) > before)
            return
        self.now_s += WEIGHTS_S
        for work in plan.works:
            if work.count == 1:
                self.now_s += DECODE_S
            else:
                taken = prefill_s(work.start, work.count)
                rates = rates.observe_prefill(work.count, taken, work.start)
                self.now_s += taken
        self.chooser.rates = rates


def served(
    requests: Sequence[tuple[int, int]], memory: PagedMemory, chooser: Chooser, slack: int = 1
) -> float:
    """Virtual seconds to serve all requests, ``AT_ONCE`` at a time.

    They share nothing, and might have answered ``slack`` times as long as they do.
    """
    jobs, ends = [], {}
    for number, (prompt, answer) in enumerate(requests):
        key = number.to_bytes(4, "big")
        jobs.append(Job(key, [number] * prompt, prompt + slack * answer, salt=key))
        ends[key] = prompt + answer
    virtual = Virtual(memory, chooser, ends)
    virtual.run(iter(jobs), AT_ONCE, 512)
    return virtual.now_s


#: Name, the books, what is always done, whether steps wait for the tier, and how far limits are
#: above what comes.
Policy = tuple[str, type[PagedMemory], Action | None, bool, int]
POLICIES: tuple[Policy, ...] = (
    ("swap at once, waiting", AtOnce, Action.SWAP, True, 1),
    ("swap what others take, waiting", PagedMemory, Action.SWAP, True, 1),
    ("swap behind the steps", PagedMemory, Action.SWAP, False, 1),
    ("recompute", PagedMemory, Action.RECOMPUTE, False, 1),
    ("measured", PagedMemory, None, False, 1),
    ("measured, not told lengths", PagedMemory, None, False, SLACK),
)


def one(
    requests: Sequence[tuple[int, int]], num_blocks: int, speed: int, policy: Policy
) -> tuple[float, int, MemoryReport]:
    """One tier, one policy: seconds, how often a sequence gave way, and what the books say."""
    _, books, always, waits, slack = policy
    chooser = Chooser(always, speed * 1e6, waits)
    memory = books(num_blocks, tier_blocks=num_blocks)
    seconds = served(requests, memory, chooser, slack)
    return seconds, chooser.asked, memory.report()


def pressure(quick: bool) -> list[str]:
    """Row h."""
    grows = [(p, a) for p, a in azure() if p <= 2 * a and LEAST <= p + a <= MOST]
    requests = grows[: 40 if quick else REQUESTS]
    mean = sum(p + a for p, a in requests) / len(requests)
    num_blocks = max(int(AT_ONCE * mean / 16 / 2), MOST // 16)
    roomy_s = served(requests, PagedMemory(AT_ONCE * MOST // 16), Chooser(None, 1e9))
    lines = [
        *wrapped(
            f"""{len(requests)} requests of the Azure trace ({LEAST} to {MOST:,} tokens, answers at
            least half as long as prompts, because only what grows must be preempted; mean
            {mean:.0f}), {AT_ONCE} wanted at once, {num_blocks} blocks of 16 tokens:
            {AT_ONCE * mean / 16 / num_blocks:.1f} times as much is wanted. Virtual time: a prompt
            token takes {1e3 * TOKEN_S:.2f} ms and {1e3 * SQUARE_S:.5f} ms for each squared
            position, a step {1e3 * WEIGHTS_S:.0f} ms and {1e3 * DECODE_S:.0f} ms for each that
            decodes; a token's KV is {KV_BYTES:,} bytes. Where the policy is not *waiting*, blocks
            are carried while something is computed, and an eighth of the memory again may wait on
            its way to the tier. *Heads* are tokens computed while the rest of a sequence is read.
            The rule begins with a trial of the tier and learns. With memory for all it
            takes {roomy_s:.1f} s; below is what half the memory costs beyond that: fewer at a time,
            the same for all policies, and giving way. In the last row limits would allow {SLACK}
            times as long answers."""
        ),
        "| tier | policy | seconds more | gave way | blocks out | in | heads | recomputed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    speeds = SPEEDS[::4] if quick else SPEEDS
    cases = [(speed, policy) for speed in speeds for policy in POLICIES]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(partial(one, requests, num_blocks), *zip(*cases, strict=True))
        found = {
            (speed, policy[0]): took for (speed, policy), took in zip(cases, done, strict=True)
        }
    verdicts = []
    for speed in speeds:
        more = {}
        for name, *_ in POLICIES:
            seconds, asked, report = found[speed, name]
            more[name] = seconds - roomy_s
            lines.append(
                f"| {speed} MB/s | {name} | {more[name]:.1f} | {asked} | "
                f"{report.swapped_out_blocks:,} | {report.swapped_in_blocks:,} | "
                f"{report.head_tokens:,} | {report.recomputed_tokens:,} |"
            )
        off = {name: more["measured"] - more[name] for name, *_ in POLICIES[:4]}
        shown = ", ".join(f"{seconds:+.1f} s against {name}" for name, seconds in off.items())
        verdicts.append(f"- {speed} MB/s: measured takes {shown}.")
    return [*lines, "", *verdicts, ""]


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few requests, no file")
    quick = parser.parse_args().quick
    began, load = time.perf_counter(), os.getloadavg()[0]
    lines = pressure(quick)
    hardware = f"{os.cpu_count()} cores {platform.machine()}"
    today = dt.datetime.now(dt.UTC).date().isoformat()
    head = [
        f"# Memory for half of what runs, in virtual time (row h), {hardware}, {today}",
        "",
        *wrapped(
            f"""`python benchmarks/engine/giving_way.py` · Python {platform.python_version()} · load
            average {load:.2f} at the start · took {time.perf_counter() - began:.0f} s; no figure
            depends on the machine's speed."""
        ),
    ]
    text = "\n".join([*head, *lines])
    print(text)
    if not quick:
        (RESULTS / f"giving-way_{hardware.replace(' ', '-')}_{today}.md").write_text(text)


if __name__ == "__main__":
    main()
