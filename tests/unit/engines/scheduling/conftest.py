"""A fake model on simulated KV memory, run by the scheduler's plans.

The KV entry of a position is a hash of the one before it (read through the block table, wherever
the plan's copies have brought it) and of its token; the next token is a hash of the last entry and
of one earlier entry. What is read from the tier may come late or never, and what is carried there
may be refused. So an answer equals the one computed alone only if every block that is read
has the right content.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from starai.core.randomness import SeededRandomness
from starai.engines.paging.cost import Action
from starai.engines.paging.memory import Copy, PagedMemory
from starai.engines.scheduling.scheduler import Budget, Job, Limits, Plan, Scheduler, Work

MASK = (1 << 61) - 1
VOCABULARY = 40


def mixed(a: int, b: int, c: int = 0) -> int:
    """A cheap hash of three numbers."""
    value = (a * 0x9E3779B97F4A7C15 + b * 0xC2B2AE3D27D4EB4F + c * 0x165667B19E3779F9 + 1) & MASK
    return value ^ (value >> 29)


def seed_of(salt: bytes) -> int:
    """The entry before position 0."""
    return int.from_bytes(salt, "big") + 1


def token_after(entry: int, entry_at: Callable[[int], int], position: int) -> int:
    """The token that follows ``position``."""
    return mixed(entry, entry_at(entry % (position + 1)), 7) % VOCABULARY


def alone(prompt: list[int], count: int, salt: bytes) -> list[int]:
    """``prompt`` and the ``count`` tokens that follow it, computed without any scheduler."""
    ids, entries, entry = prompt.copy(), [], seed_of(salt)
    while True:
        for token in ids[len(entries) :]:
            entry = mixed(entry, token)
            entries.append(entry)
        if len(ids) == len(prompt) + count:
            return ids
        ids.append(token_after(entry, entries.__getitem__, len(ids) - 1))


class Alternating:
    """Swaps every other victim, or does always the same."""

    def __init__(self) -> None:
        self.asked = 0
        self.always: Action | None = None
        self.block_tokens = 1

    def choose(self, private_tokens: int, cached_tokens: int, others: int) -> Action:
        """See `Costs.choose`."""
        assert private_tokens >= 0
        assert min(cached_tokens, others) >= 0
        self.asked += 1
        if self.always is not None:
            return self.always
        return Action.SWAP if self.asked % 2 else Action.RECOMPUTE

    def head(self, lost_tokens: int, start: int, others: int) -> int:
        """See `Costs.head`."""
        assert lost_tokens > 0
        assert min(start, others) >= 0
        blocks = -(-lost_tokens // self.block_tokens)
        return min(self.asked % (blocks + 1) * self.block_tokens, lost_tokens)


@dataclass
class Simulation:
    """An engine with a fake model; `step` checks what every plan must hold."""

    memory: PagedMemory
    limits: Limits
    costs: Alternating = field(default_factory=Alternating)
    #: For a job, drafts behind its ids: its own continuation where the fraction is high.
    drafts: SeededRandomness | None = None
    #: Of a tier that takes its time: each read comes in each step by this chance, or is given up.
    slow: SeededRandomness | None = None
    now_s: float = 0.0
    finished: dict[bytes, list[int]] = field(default_factory=dict)
    expired: list[bytes] = field(default_factory=list)
    preempted: list[tuple[bytes, Action]] = field(default_factory=list)
    granted: int = 0
    accepted: int = 0

    def __post_init__(self) -> None:
        """Make empty pools."""
        size = self.memory.block_tokens
        self.scheduler = Scheduler(self.memory, self.limits, self.costs)
        self.pool = [[0] * size for _ in range(self.memory.num_blocks)]
        self.tier = [[0] * size for _ in range(self.memory.tier_blocks)]
        self.jobs: dict[bytes, Job] = {}
        self.prompts: dict[bytes, list[int]] = {}
        self.salts: dict[bytes, bytes] = {}
        self.decoding: set[bytes] = set()
        self.reads: list[tuple[bytes, Copy]] = []
        self.waited = 0
        self.costs.block_tokens = size

    def add(self, job: Job) -> None:
        """Hand a job over; it is run until it is as long as its limit."""
        self.scheduler.add(job)
        self._know(job)

    def fork(self, key: bytes, job: Job) -> None:
        """Hand over a job that goes on from another one."""
        self.scheduler.fork(key, job)
        self._know(job)

    def remove(self, key: bytes) -> None:
        """Cancel or end a job."""
        self.scheduler.remove(key)
        self.jobs.pop(key, None)
        self.decoding.discard(key)

    def step(self, prompt_tokens: int = 64) -> Plan:
        """Plan, run, draw, and end what is complete."""
        busy = self.scheduler.has_work
        self._arrive()
        draft = self._propose()
        budget = Budget(prompt_tokens, {key: len(ids) for key, ids in draft.items()})
        plan = self.scheduler.plan(self.now_s, budget)
        for key in plan.expired:
            assert self.jobs.pop(key).deadline_s <= self.now_s
            self.decoding.discard(key)
        self.expired += plan.expired
        self.preempted += plan.preempted
        self._check(plan, prompt_tokens, draft)
        waits = any(self.memory.returning(key) for key in self.jobs if key in self.memory._held)
        assert bool(plan.works or plan.expired or waits) == busy
        self.waited += not plan.works
        self._execute(plan)
        ended = [work.key for work in plan.works if self._run(work, draft.get(work.key, ()))]
        self.scheduler.done(plan)
        for key in ended:
            self.finished[key] = self.jobs[key].ids
            self.remove(key)
        return plan

    def run(self, prompt_tokens: int = 64, step_s: float = 0.01) -> int:
        """Step until nothing is left.

        Returns:
            The number of steps.
        """
        steps = 0
        while self.scheduler.has_work:
            self.step(prompt_tokens)
            self.now_s += step_s
            steps += 1
        return steps

    def check_answers(self) -> None:
        """Every finished answer is the one computed alone."""
        for key, ids in self.finished.items():
            prompt = self.prompts[key]
            assert ids == alone(prompt, len(ids) - len(prompt), self.salts[key]), key

    def check_empty(self) -> None:
        """Nothing is left behind."""
        assert not self.scheduler.has_work
        assert self.scheduler.num_running == self.scheduler.num_waiting == 0
        assert self.memory.free_blocks == self.memory.num_blocks
        self.memory.check_integrity()

    def _know(self, job: Job) -> None:
        self.jobs[job.key] = job
        self.prompts[job.key] = job.ids.copy()
        self.salts[job.key] = job.salt

    def _propose(self) -> dict[bytes, list[int]]:
        if self.drafts is None:
            return {}
        proposed = {}
        for key in sorted(self.decoding):
            job = self.jobs[key]
            right = alone(job.ids, 5, job.salt)[len(job.ids) :]
            cut = int(self.drafts.fraction() * 6)
            proposed[key] = right[:cut] + [t ^ 1 for t in right[cut:]]
        return proposed

    def _check(self, plan: Plan, prompt_tokens: int, draft: dict[bytes, list[int]]) -> None:
        keys = [work.key for work in plan.works]
        gave_way = {key for key, _ in plan.preempted}
        assert len(set(keys)) == len(keys)
        assert len(keys) <= self.scheduler.num_running <= self.limits.max_running
        assert not gave_way & set(keys)
        assert not (gave_way and plan.returns and len(keys) > 1), "moves may overwrite each other"
        self.decoding -= gave_way
        assert self.decoding <= set(keys), "a decode was starved"
        for work in plan.works:
            job = self.jobs[work.key]
            end = work.start + work.count
            assert work.count > 0
            assert work.start == self.memory.computed(work.key)
            assert end <= job.limit
            assert end <= len(self.memory.table(work.key)) * self.memory.block_tokens
            drafts = max(0, end - len(job.ids))
            assert drafts <= len(draft.get(work.key, ()))
            self.granted += drafts
        is_chunk = [self._is_chunk(work) for work in plan.works]
        assert is_chunk == sorted(is_chunk), "decodes come first"
        chunks = [work.count for work in plan.works if self._is_chunk(work)]
        assert sum(chunks) <= max(prompt_tokens, 1)

    def _is_chunk(self, work: Work) -> bool:
        """Whether the work is part of a prompt, not a decode nor a prompt's last token."""
        if work.key in self.decoding:
            return False
        return work.count > 1 or work.start + 1 < len(self.jobs[work.key].ids)

    def _execute(self, plan: Plan) -> None:
        written: set[int] = set()
        for copy in plan.copies:
            assert copy.source not in written, "copies cannot be made at once"
            written.add(copy.target)
        for copy in plan.swap_out:
            if self.slow and self.slow.fraction() < 0.1:
                self.tier[copy.target] = []
                self.memory.void([copy.target])
            else:
                self.tier[copy.target] = self.pool[copy.source].copy()
        for copy in plan.copies:
            self.pool[copy.target] = self.pool[copy.source].copy()
        self.reads += [(back.key, copy) for back in plan.returns for copy in back.reads]
        if self.slow is None:
            self._arrive()

    def _arrive(self) -> None:
        """Some of what is being read comes, in any order; some of it never does."""
        left = []
        for key, copy in self.reads:
            chance = self.slow.fraction() if self.slow else 1.0
            if chance < 0.6:
                left.append((key, copy))
                continue
            for one in self.memory.expected(key, [copy]):
                if chance < 0.62 or not self.tier[one.source]:
                    self.memory.astray(key, [one])
                else:
                    self.pool[one.target] = self.tier[one.source].copy()
                    self.memory.arrived(key, [one])
        self.reads = left

    def _run(self, work: Work, drafts: list[int] | tuple[()]) -> bool:
        """Run a work and draw, unless no answer is wanted; whether the job is complete."""
        job, size = self.jobs[work.key], self.memory.block_tokens
        table = self.memory.table(work.key)

        def entry_at(position: int) -> int:
            return self.pool[table[position // size]][position % size]

        known = len(job.ids)
        tokens = [*job.ids[work.start :], *drafts][: work.count]
        entry = entry_at(work.start - 1) if work.start else seed_of(job.salt)
        for position, token in enumerate(tokens, work.start):
            entry = mixed(entry, token)
            self.pool[table[position // size]][position % size] = entry
        end = work.start + work.count
        if end < known:
            return False
        for position in range(known - 1, end if known < job.limit else 0):
            token = token_after(entry_at(position), entry_at, position)
            job.ids.append(token)
            if len(job.ids) == job.limit or position + 1 == end:
                break
            if token != tokens[position + 1 - work.start]:
                break
            self.accepted += 1
        self.decoding.add(work.key)
        return len(job.ids) == job.limit


@pytest.fixture(scope="session")
def simulate() -> type[Simulation]:
    """The simulation's class."""
    return Simulation
