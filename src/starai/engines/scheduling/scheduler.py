"""Plans an engine's steps: continuous batching over paged memory.

Every decode advances in every step; prompts share what the engine spends on them, chunk by chunk.
A job is admitted when its whole prompt fits with some room to spare; the running ones grow, and
the least deserving gives way when memory is full. State in, plan out: no clock, no tensors.

Continuous batching after Orca (Yu et al., OSDI 2022), chunked prefill after Sarathi-Serve (Agrawal
et al., OSDI 2024), preemption after PagedAttention (Kwon et al., SOSP 2023).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import Counter
from typing import Final

from starai.core.errors import ContextTooLong, InvalidRequest, Overloaded
from starai.engines.paging.memory import PagedMemory
from starai.engines.scheduling.base import Budget, Costs, Job, Limits, Plan, Work
from starai.engines.scheduling.fairness import TokenCounters
from starai.engines.scheduling.pressure import Moves, Pressure
from starai.engines.scheduling.sequence import Phase, Running, Sequence
from starai.engines.scheduling.waiting import WaitingRoom

__all__ = ["Budget", "Costs", "Job", "Limits", "Plan", "Scheduler", "Work"]

#: A job that did not fit is looked up in the prefix cache again when enough became free, or after a
#: plan for each so many of its tokens: a lookup hashes the whole prompt, so this is what a plan
#: spends on it on average.
_LOOKUP_TOKENS: Final = 512


class Scheduler:
    """Owns the life of every sequence in a `PagedMemory`; see the module's text."""

    def __init__(self, memory: PagedMemory, limits: Limits, costs: Costs) -> None:
        """Take an empty memory, the bounds, and who decides between swapping and recomputing."""
        self._memory = memory
        self._limits = limits
        self._counters = TokenCounters()
        self._waiting = WaitingRoom(limits, self._counters)
        self._running = Running()
        self._pressure = Pressure(memory, costs, self._running, self._waiting.add)
        self._sequences: dict[bytes, Sequence] = {}
        self._deadlines: list[tuple[float, int, Sequence]] = []
        self._priorities: Counter[int] = Counter()
        self._num_arrived = 0

    # -- jobs come and go

    def add(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises:
            ContextTooLong: it may become longer than the whole memory.
            InvalidRequest: it has no tokens, or its key is in use.
            Overloaded: too many are waiting.
        """
        self._check(job)
        self._check_line()
        self._waiting.add(self._enter(job))

    def fork(self, key: bytes, job: Job) -> None:
        """Let a job continue from what another one has computed, sharing its blocks.

        It runs at once if the other one runs and there is a place; else it waits like any other,
        and comes to the same tokens.

        Raises:
            ContextTooLong: it may become longer than the whole memory.
            InvalidRequest: it has no tokens, its key is in use, or ``key`` is not.
            Overloaded: too many are waiting.
        """
        parent = self._sequences.get(key)
        if parent is None:
            raise InvalidRequest("there is no such sequence to fork")
        if (
            parent.phase is not Phase.RUNNING
            or parent.job.salt != job.salt
            or len(self._running) >= self._limits.max_running
        ):
            self.add(job)
            return
        self._check(job)
        sequence = self._enter(job)
        shared = min(_common(parent.job.ids, job.ids, parent.computed), len(job.ids) - 1)
        self._memory.fork(key, job.key)
        if shared < parent.computed:
            self._memory.truncate(job.key, shared)
        sequence.computed = shared
        sequence.entry = len(job.ids)
        sequence.counted = sequence.entry
        self._running.add(sequence)

    def remove(self, key: bytes) -> None:
        """Forget a job and free its memory at once. Unknown keys are ignored."""
        sequence = self._sequences.pop(key, None)
        if sequence is None:
            return
        job = sequence.job
        if sequence.phase is Phase.RUNNING:
            self._charge(sequence)
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        if sequence.phase is not Phase.WAITING:
            self._pressure.forget(sequence)
            self._memory.close(key)
        if job.deadline_s < math.inf:
            del self._deadlines[bisect_left(self._deadlines, (job.deadline_s, sequence.number))]
        self._priorities[job.priority] -= 1
        if not self._priorities[job.priority]:
            del self._priorities[job.priority]
        self._counters.leave(job.tenant)

    def failed(self, key: bytes) -> None:
        """Forget a job that could not be computed: what was not `done` is found by nobody."""
        self.remove(key)

    @property
    def has_work(self) -> bool:
        """Whether any job is here."""
        return bool(self._sequences)

    @property
    def num_waiting(self) -> int:
        """Jobs that wait, preempted ones included."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Jobs that run."""
        return len(self._running)

    # -- a step

    def plan(self, now_s: float, budget: Budget) -> Plan:
        """What to do in the next step. Unless `done` follows, the next plan has the same works.

        Besides, it has those of who came back meanwhile.
        """
        expired = self._expire(now_s)
        if self._priorities:
            self._waiting.age(now_s, max(self._priorities))
        moves = Moves()
        for sequence in self._running.snapshot():
            if sequence.phase is Phase.RUNNING:
                self._catch_up(sequence)
                self._charge(sequence)
                self._pressure.grow(sequence, moves)
        if not moves.preempted or not len(self._running):
            self._admit(moves, budget.prompt_tokens)
        works = self._decodes(budget, moves)
        works += self._chunks(max(budget.prompt_tokens, 0 if works else 1))
        return Plan(
            (*moves.swap_out, *self._memory.spills()),
            tuple(moves.copies),
            tuple(moves.returns),
            tuple(works),
            tuple(expired),
            tuple(moves.preempted),
        )

    def done(self, plan: Plan) -> None:
        """The plan's works were run; drafts that were accepted are in the jobs' ids by now."""
        memory = self._memory
        for work in plan.works:
            sequence = self._sequences.get(work.key)
            if sequence is None or sequence.phase is not Phase.RUNNING:
                continue
            ids = sequence.job.ids
            end = work.start + work.count
            # The last of the ids is drawn from what came before it: it cannot be an accepted draft.
            computed = min(end, max(sequence.planned, len(ids) - 1))
            sequence.computed = computed
            memory.note(work.key, ids, computed)
            self._catch_up(sequence)
            if computed < end and self._blocks(end) > self._blocks(computed + 1):
                memory.truncate(work.key, computed)

    # -- inside

    def _check(self, job: Job) -> None:
        if job.key in self._sequences:
            raise InvalidRequest("this key is in use")
        if not 0 < len(job.ids) <= job.limit:
            raise InvalidRequest("a job has at least one token and at most its limit")
        if self._blocks(job.limit) > self._memory.num_blocks:
            room = self._memory.num_blocks * self._memory.block_tokens
            raise ContextTooLong(
                f"prompt and answer may take {job.limit} tokens, but the KV memory holds {room}:"
                " shorten the prompt, lower max_tokens, or give the engine more memory"
            )

    def _check_line(self) -> None:
        places = self._limits.max_running - len(self._running)
        if len(self._waiting) >= self._limits.max_waiting + max(0, places):
            raise Overloaded(f"{len(self._waiting)} requests are waiting already; try again soon")

    def _enter(self, job: Job) -> Sequence:
        """Take in a job that was checked."""
        self._num_arrived += 1
        sequence = Sequence(job, self._num_arrived, job.priority)
        self._sequences[job.key] = sequence
        self._counters.enter(job.tenant)
        self._priorities[job.priority] += 1
        if job.deadline_s < math.inf:
            insort(self._deadlines, (job.deadline_s, sequence.number, sequence))
        return sequence

    def _expire(self, now_s: float) -> list[bytes]:
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            expired.append(self._deadlines[0][-1].key)
            self.remove(expired[-1])
        return expired

    def _charge(self, sequence: Sequence) -> None:
        """Charge the tenant for what was generated since."""
        length = len(sequence.job.ids)
        if length > sequence.counted:
            self._counters.charge(sequence.job.tenant, output_tokens=length - sequence.counted)
            sequence.counted = length

    def _admit(self, moves: Moves, prompt_tokens: int) -> None:
        """Admit who goes next, as long as places, prompt tokens and memory last.

        Prompts that would get none of this step's tokens take no memory from growth yet.
        """
        queued: Counter[int] = Counter()
        for running in self._running:
            if not running.decodes:
                queued[running.level] += self._runnable(running)
        while len(self._running) < self._limits.max_running:
            sequence = self._waiting.first()
            if sequence is None:
                return
            ahead = sum(pending for level, pending in queued.items() if level >= sequence.level)
            if sequence.phase is not Phase.SWAPPED and ahead >= max(prompt_tokens, 1):
                return
            if not self._fits_in(sequence, moves):
                # With nobody running, what is in the way is swapped out but shares blocks.
                if len(self._running) or not self._pressure.unpin(sequence):
                    return
                continue
            if not sequence.decodes:
                queued[sequence.level] += self._runnable(sequence)

    def _fits_in(self, sequence: Sequence, moves: Moves) -> bool:
        """Admit a sequence if its blocks fit with room to spare; if not, nothing has changed."""
        spare = self._spare_blocks() if len(self._running) else 0
        length = len(sequence.job.ids)
        if sequence.phase is Phase.SWAPPED:
            if self._memory.blocks_needed(sequence.key, length) + spare > self._memory.free_blocks:
                return False
            self._waiting.remove(sequence)
            self._pressure.swap_in(sequence, moves)
        else:
            if not self._attach(sequence, spare):
                return False
            self._waiting.remove(sequence)
            if sequence.phase is Phase.WAITING:
                self._counters.chosen(sequence.job.tenant)
                self._counters.charge(sequence.job.tenant, input_tokens=sequence.pending)
                sequence.counted = length
        moves.copies += self._memory.reach(sequence.key, length)
        sequence.entry = length
        self._running.add(sequence)
        return True

    def _attach(self, sequence: Sequence, spare: int) -> bool:
        """Take what the prefix cache has, if the rest fits too."""
        memory, key, ids = self._memory, sequence.key, sequence.job.ids
        free = memory.free_blocks
        if sequence.patience and len(self._running) and sequence.demand + spare > free:
            sequence.patience -= 1
            return False
        if sequence.phase is Phase.DROPPED:
            computed = memory.reattach(key, ids)
        else:
            computed = memory.open(key, ids, sequence.job.salt)
        need = memory.blocks_needed(key, len(ids))
        if need + spare > memory.free_blocks:
            sequence.demand = need + free - memory.free_blocks
            sequence.patience = len(ids) // _LOOKUP_TOKENS
            if sequence.phase is Phase.DROPPED:
                memory.drop(key)
            else:
                memory.close(key)
            return False
        sequence.computed = computed
        return True

    def _decodes(self, budget: Budget, moves: Moves) -> list[Work]:
        works = []
        for sequence in self._running:
            sequence.planned = len(sequence.job.ids)
            if sequence.decodes:
                count = sequence.pending
                if budget.draft:
                    count += self._grant(sequence, budget.draft.get(sequence.key, 0), moves)
                works.append(Work(sequence.key, sequence.computed, count))
        return works

    def _grant(self, sequence: Sequence, drafts: int, moves: Moves) -> int:
        """How many drafts may be verified: what the limit and spare memory allow."""
        memory, length = self._memory, len(sequence.job.ids)
        drafts = min(drafts, sequence.job.limit - length)
        if drafts <= 0:
            return 0
        need = memory.blocks_needed(sequence.key, length + drafts)
        if need and need + self._spare_blocks() > memory.free_blocks:
            drafts = min(drafts, -length % memory.block_tokens)
        moves.copies += memory.reach(sequence.key, length + drafts)
        return drafts

    def _chunks(self, prompt_tokens: int) -> list[Work]:
        works = []
        for sequence in self._running:
            if prompt_tokens <= 0:
                break
            if not sequence.decodes:
                count = min(self._runnable(sequence), prompt_tokens)
                prompt_tokens -= count
                if count:
                    works.append(Work(sequence.key, sequence.computed, count))
        return works

    def _catch_up(self, sequence: Sequence) -> None:
        """What came back of a sequence since counts as computed."""
        if sequence.returning:
            sequence.computed = self._memory.computed(sequence.key)
            sequence.returning = self._memory.returning(sequence.key)

    def _runnable(self, sequence: Sequence) -> int:
        """Pending tokens that can be computed now: those behind a gap cannot."""
        if not sequence.returning:
            return sequence.pending
        return self._memory.runnable(sequence.key, len(sequence.job.ids)) - sequence.computed

    def _spare_blocks(self) -> int:
        """Blocks to leave free for growth: one for each running sequence, or a small share."""
        share = math.ceil(self._limits.watermark * self._memory.num_blocks)
        return max(share, len(self._running) + 1)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._memory.block_tokens)


def _common(one: list[int], other: list[int], length: int) -> int:
    """How many of the first ``length`` ids are the same in both."""
    length = min(length, len(other))
    if one[:length] == other[:length]:
        return length
    return next(i for i in range(length) if one[i] != other[i])
