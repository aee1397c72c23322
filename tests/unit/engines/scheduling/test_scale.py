"""Ten thousand sequences through a small memory, each answer compared with the one alone."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from typing import TYPE_CHECKING

from starai.core.randomness import SeededRandomness
from starai.engines.paging.cost import Action
from starai.engines.paging.memory import PagedMemory
from starai.engines.scheduling.scheduler import Budget, Job, Limits, Scheduler

if TYPE_CHECKING:
    from tests.unit.engines.scheduling.conftest import Simulation

NUM_JOBS = 10_000


class Chance:
    """Small whole numbers from seeded randomness."""

    def __init__(self, seed: int) -> None:
        self.fraction = SeededRandomness(seed).fraction

    def below(self, bound: int) -> int:
        return int(self.fraction() * bound)

    def ids(self, count: int) -> list[int]:
        return [self.below(40) for _ in range(count)]


def arriving(chance: Chance, number: int, now_s: float, systems: list[list[int]]) -> Job:
    """A chat-like request: often a known system prompt, seldom a deadline or a priority."""
    tenant = chance.below(5)
    start = systems[tenant] if chance.fraction() < 0.5 else []
    ids = start + chance.ids(1 + chance.below(12))
    urgent = chance.fraction()
    return Job(
        b"%d" % number,
        ids,
        len(ids) + 1 + chance.below(28),
        tenant=b"tenant %d" % tenant,
        salt=b"salt %d" % (tenant // 2),
        priority=1 if urgent < 0.1 else 0,
        deadline_s=now_s + 0.4 if urgent > 0.97 else math.inf,
        arrived_s=now_s,
    )


def test_ten_thousand_sequences_end_as_if_alone(simulate: type[Simulation]) -> None:
    """With preemption, hits, forks, cancels, deadlines and drafts each answer is its own."""
    chance = Chance(1)
    systems = [chance.ids(16 + 3 * tenant) for tenant in range(5)]
    memory = PagedMemory(250, block_tokens=2, tier_blocks=80)
    run = simulate(memory, Limits(max_running=48, max_waiting=400))
    run.slow = SeededRandomness(5)
    added = forked = cancelled = 0
    while added < NUM_JOBS or run.scheduler.has_work:
        while added < NUM_JOBS and run.scheduler.num_waiting < 60:
            run.add(arriving(chance, added, run.now_s, systems))
            added += 1
        run.step(prompt_tokens=96)
        run.now_s += 0.02
        if chance.fraction() < 0.3 and run.decoding:
            parent = run.jobs[sorted(run.decoding)[chance.below(len(run.decoding))]]
            ids = [*parent.ids[:-1], chance.below(40)]
            twin = Job(b"f%d" % forked, ids, parent.limit, parent.tenant, parent.salt)
            run.fork(parent.key, twin)
            forked += 1
        if chance.fraction() < 0.2 and run.jobs:
            run.remove(sorted(run.jobs)[chance.below(len(run.jobs))])
            cancelled += 1
        if chance.fraction() < 0.02:
            memory.check_integrity()
    run.check_answers()
    run.check_empty()
    actions = Counter(action for _, action in run.preempted)
    assert len(run.finished) + len(run.expired) + cancelled == NUM_JOBS + forked
    assert min(actions[Action.SWAP], actions[Action.RECOMPUTE]) > 50
    assert min(forked, cancelled, len(run.expired)) > 20
    assert memory.report().reuse > 0.2
    assert memory.report().head_tokens > 50


def test_planning_takes_no_time() -> None:
    """With 10,000 waiting and 256 running a plan costs about as much as with nobody waiting."""

    def plan_s(num_waiting: int) -> float:
        chance = Chance(2)
        memory = PagedMemory(40_000)
        scheduler = Scheduler(memory, Limits(max_running=256, max_waiting=10_000), Swapping())
        jobs: dict[bytes, Job] = {}
        for number in range(256 + num_waiting):
            tenant = b"%d" % chance.below(50)
            key, ids = b"%d" % number, chance.ids(40)
            jobs[key] = Job(key, ids, 400, tenant, priority=number % 3, arrived_s=number / 100)
            scheduler.add(jobs[key])
        seconds = []
        for number in range(120):
            begun_s = time.process_time()
            plan = scheduler.plan(100 + number / 50, Budget(1024))
            seconds.append(time.process_time() - begun_s)
            scheduler.done(plan)
            for work in plan.works:
                ids = jobs[work.key].ids
                if work.start + work.count == len(ids):
                    ids.append(1)
                    if num_waiting and len(ids) > 80:
                        scheduler.remove(work.key)
        assert scheduler.num_running == 256
        return statistics.median(seconds)

    with_many = plan_s(10_000)
    assert with_many < 0.01
    assert with_many < 4 * plan_s(0)


class Swapping:
    """Always swaps."""

    def choose(self, private_tokens: int, cached_tokens: int, others: int) -> Action:
        return Action.SWAP

    def head(self, lost_tokens: int, start: int, others: int) -> int:
        return 0
