"""Memory for half of what runs, in virtual time: what giving way costs, by policy and tier (row h).

``python benchmarks/engine/giving_way.py`` needs no model and no torch: the engine's scheduler,
books and cost rule serve requests of the Azure trace, and a step takes what it took on two cores.
Always swapping is measured in two ways: carrying everything to the tier at once, and as the engine
does it, only what others take. Always recomputing, and the engine's choice by measured rates, find
again what nobody took. A dated file in benchmarks/results says what each costs. Two minutes of CPU
time; ``--quick`` shows in seconds that it runs. Data: ``STARAI_SHARED_DATA``, else ``shared/data``
beside the repository. What giving way does to a real model's time: `engine_memory.py`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from memory import KV_BYTES, RESULTS, azure, wrapped

from starai.engines.paging.cost import Action, Rates, choose
from starai.engines.paging.memory import Copy, PagedMemory
from starai.engines.paging.report import MemoryReport
from starai.engines.scheduling.scheduler import Budget, Job, Limits, Plan, Scheduler

#: A model of the Qwen3-0.6B shape in bfloat16, as measured on two cores: seconds a prompt token and
#: a squared one, seconds a step for its weights and a decoding sequence.
TOKEN_S, SQUARE_S, WEIGHTS_S, DECODE_S = 9.5e-4, 2.2e-7, 0.045, 0.004
#: Megabytes a second that a tier takes and gives.
SPEEDS = (8000, 1000, 300, 210, 150, 40)
#: Requests, tokens of one, how many are wanted at once, and how many times as long their answers
#: might have become where the engine is not told how long they will be.
REQUESTS, LEAST, MOST = 200, 200, 2048
AT_ONCE = 16
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
class Chooser:
    """Decides by measured rates, or always the same; learns from what it is told."""

    always: Action | None
    bytes_per_s: float
    rates: Rates = field(init=False)
    asked: int = 0

    def __post_init__(self) -> None:
        """Try the tier with eight blocks, as the engine does."""
        size = 8 * 16 * KV_BYTES
        unknown = Rates(0.0, 0.0, 500.0)
        self.rates = unknown.observe_write(size, size / self.bytes_per_s)
        self.rates = self.rates.observe_read(size, size / self.bytes_per_s)

    def choose(self, private_tokens: int, cached_tokens: int) -> Action:
        """See `Costs.choose`."""
        self.asked += 1
        return self.always or choose(
            private_tokens, cached_tokens, bytes_per_token=KV_BYTES, rates=self.rates
        )


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

    def run(self, jobs: Iterator[Job], at_once: int, chunk: int) -> None:
        """Serve all, so many at once."""
        scheduler = Scheduler(self.memory, Limits(at_once, at_once), self.chooser)
        known: dict[bytes, Job] = {}
        waiting = next(jobs, None)
        while waiting or known:
            while waiting and len(known) < at_once:
                known[waiting.key] = waiting
                scheduler.add(waiting)
                waiting = next(jobs, None)
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

    def _take_time(self, plan: Plan) -> None:
        rates, size = self.chooser.rates, self.memory.block_tokens * KV_BYTES
        for copies, observe in (
            (plan.swap_out, Rates.observe_write),
            (plan.swap_in, Rates.observe_read),
        ):
            if copies:
                taken = len(copies) * size / self.chooser.bytes_per_s
                rates = observe(rates, len(copies) * size, taken)
                self.now_s += taken
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


#: Name, the books, what is always done, and how far limits are above what comes.
Policy = tuple[str, type[PagedMemory], Action | None, int]
POLICIES: tuple[Policy, ...] = (
    ("swap at once", AtOnce, Action.SWAP, 1),
    ("swap what others take", PagedMemory, Action.SWAP, 1),
    ("recompute", PagedMemory, Action.RECOMPUTE, 1),
    ("measured", PagedMemory, None, 1),
    ("measured, not told lengths", PagedMemory, None, SLACK),
)


def one(
    requests: Sequence[tuple[int, int]], num_blocks: int, speed: int, policy: Policy
) -> tuple[float, int, MemoryReport]:
    """One tier, one policy: seconds, how often a sequence gave way, and what the books say."""
    _, books, always, slack = policy
    chooser = Chooser(always, speed * 1e6)
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
            decodes; a token's KV is {KV_BYTES:,} bytes, and nothing is carried while something is
            computed. The rule begins with a trial of the tier and learns. With memory for all it
            takes {roomy_s:.1f} s; below is what half the memory costs beyond that: fewer at a time,
            the same for all policies, and giving way. In the last row limits would allow {SLACK}
            times as long answers."""
        ),
        "| tier | policy | seconds more | gave way | blocks out | blocks in | tokens recomputed |",
        "|---|---|---|---|---|---|---|",
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
                f"{report.recomputed_tokens:,} |"
            )
        off = {name: more["measured"] - more[name] for name, *_ in POLICIES[:3]}
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
