"""Who waits, and who goes next.

By level first (priority, which rises with age), preempted jobs before new ones, then by fairness
between tenants, then by deadline, then by arrival. It does not know memory: whether the next one
fits is the scheduler's business.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Final

from starai.engines.scheduling.base import Limits
from starai.engines.scheduling.fairness import TokenCounters
from starai.engines.scheduling.sequence import Phase, Sequence

#: Jobs that may rise in one plan; the others rise in the next ones. Keeps a plan short when
#: thousands arrived at once.
_RISING_MAX: Final = 64

#: The sort key of an entry is unique before its last element is reached, which is the sequence.
_Entry = tuple[float, float, int, Sequence]


class Line:
    """Those of one level. All lists are sorted; moving pointers is cheaper than balancing trees."""

    def __init__(self, counters: TokenCounters) -> None:
        """Take the counters that decide between tenants."""
        self._counters = counters
        self._returning: list[tuple[float, int, Sequence]] = []
        self._tenants: dict[bytes, list[_Entry]] = {}
        # By the service at the time of insertion; it only grows, so that the first entry, once it
        # is up to date, is the least served.
        self._order: list[tuple[int, bytes]] = []
        self._placed: dict[bytes, int] = {}

    def __bool__(self) -> bool:
        return bool(self._returning or self._tenants)

    def add(self, sequence: Sequence, due_s: float) -> None:
        """It waits in this line."""
        job = sequence.job
        if sequence.phase is not Phase.WAITING:
            insort(self._returning, (job.arrived_s, sequence.number, sequence))
            return
        entries = self._tenants.get(job.tenant)
        if entries is None:
            self._counters.lift(job.tenant, self._least())
            entries = self._tenants[job.tenant] = []
            self._place(job.tenant)
        insort(entries, (due_s, job.arrived_s, sequence.number, sequence))

    def remove(self, sequence: Sequence, due_s: float) -> None:
        """It no longer waits in this line."""
        job = sequence.job
        if sequence.phase is not Phase.WAITING:
            del self._returning[bisect_left(self._returning, (job.arrived_s, sequence.number))]
            return
        entries = self._tenants[job.tenant]
        del entries[bisect_left(entries, (due_s, job.arrived_s, sequence.number))]
        if not entries:
            del self._tenants[job.tenant]
            placed = (self._placed.pop(job.tenant), job.tenant)
            del self._order[bisect_left(self._order, placed)]

    def first(self) -> Sequence:
        """Who goes next; the line is not empty."""
        if self._returning:
            return self._returning[0][-1]
        self._least()
        return self._tenants[self._order[0][1]][0][-1]

    def _least(self) -> int | None:
        """The least service of a tenant in the line, whose entry then is the first."""
        while self._order:
            placed, tenant = self._order[0]
            if self._counters.served(tenant) == placed:
                return placed
            del self._order[0]
            self._place(tenant)
        return None

    def _place(self, tenant: bytes) -> None:
        self._placed[tenant] = self._counters.served(tenant)
        insort(self._order, (self._placed[tenant], tenant))


class WaitingRoom:
    """All lines, one a level."""

    def __init__(self, limits: Limits, counters: TokenCounters) -> None:
        """Take the limits and the tenants' counters."""
        self._limits = limits
        self._counters = counters
        self._lines: dict[int, Line] = {}
        self._size = 0
        # When each one may rise next: (time, number, sequence), and the same by number.
        self._rising: list[tuple[float, int, Sequence]] = []
        self._rises_s: dict[int, float] = {}

    def __len__(self) -> int:
        return self._size

    def add(self, sequence: Sequence) -> None:
        """It waits, new or preempted."""
        self._size += 1
        self._enter_line(sequence)
        steps = sequence.level - sequence.job.priority + 1
        self._rise_at(sequence, sequence.job.arrived_s + steps * self._limits.aging_s)

    def remove(self, sequence: Sequence) -> None:
        """It no longer waits."""
        self._size -= 1
        self._leave_line(sequence)
        at_s = self._rises_s.pop(sequence.number)
        del self._rising[bisect_left(self._rising, (at_s, sequence.number))]

    def first(self) -> Sequence | None:
        """Who goes next, if anybody waits. Nobody passes it, however small."""
        return self._lines[max(self._lines)].first() if self._lines else None

    def age(self, now_s: float, ceiling: int) -> None:
        """Let those rise who waited long enough, but not above ``ceiling``.

        The ceiling is the highest priority that any job has: rising further would only set a
        tenant's old jobs above the new jobs of others, which is not fair.
        """
        for _ in range(_RISING_MAX):
            if not self._rising or self._rising[0][0] > now_s:
                return
            sequence = self._rising.pop(0)[-1]
            job = sequence.job
            waited = int((now_s - job.arrived_s) / self._limits.aging_s)
            level = min(job.priority + waited, max(ceiling, sequence.level))
            if level > sequence.level:
                self._leave_line(sequence)
                sequence.rise(level)
                self._enter_line(sequence)
            self._rise_at(sequence, job.arrived_s + (waited + 1) * self._limits.aging_s)

    def _rise_at(self, sequence: Sequence, at_s: float) -> None:
        self._rises_s[sequence.number] = at_s
        insort(self._rising, (at_s, sequence.number, sequence))

    def _enter_line(self, sequence: Sequence) -> None:
        line = self._lines.get(sequence.level)
        if line is None:
            line = self._lines[sequence.level] = Line(self._counters)
        line.add(sequence, self._due_s(sequence))

    def _leave_line(self, sequence: Sequence) -> None:
        line = self._lines[sequence.level]
        line.remove(sequence, self._due_s(sequence))
        if not line:
            del self._lines[sequence.level]

    def _due_s(self, sequence: Sequence) -> float:
        job = sequence.job
        return min(job.deadline_s, job.arrived_s + self._limits.patience_s)
