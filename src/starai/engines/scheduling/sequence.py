"""A job on its way through the scheduler, and the order of deserving."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from operator import attrgetter

from starai.engines.scheduling.base import Job


class Phase(Enum):
    """Where a sequence is. ``SWAPPED`` and ``DROPPED`` are preempted: its KV is away, or gone."""

    WAITING = "waiting"
    RUNNING = "running"
    SWAPPED = "swapped"
    DROPPED = "dropped"


@dataclass(slots=True, eq=False)
class Sequence:
    """A job's state.

    ``number`` counts arrivals, ``level`` is the priority with aging. ``computed`` tokens are in
    memory; while it is ``returning``, others come back behind them. It had ``entry`` tokens when it
    was last admitted: what lies behind them was generated since. ``planned`` is the length at the
    last plan, ``counted`` the length up to which the tenant was charged. ``demand`` blocks were
    missing or pinned when it last did not fit, and ``patience`` plans more it is taken for granted
    that this did not change.
    """

    job: Job
    number: int
    level: int
    phase: Phase = Phase.WAITING
    computed: int = 0
    returning: bool = False
    entry: int = 0
    planned: int = 0
    counted: int = 0
    demand: int = 0
    patience: int = 0
    rank: tuple[int, float, int] = field(init=False)

    def __post_init__(self) -> None:
        """Rank it."""
        self.rise(self.level)

    def rise(self, level: int) -> None:
        """Give it another level. Lower ranks are more deserving."""
        self.level = level
        self.rank = (-level, self.job.arrived_s, self.number)

    @property
    def key(self) -> bytes:
        """The job's key."""
        return self.job.key

    @property
    def pending(self) -> int:
        """Tokens that the model has not seen yet."""
        return len(self.job.ids) - self.computed

    @property
    def decodes(self) -> bool:
        """Whether only generated tokens are pending, or just the last of the prompt."""
        return self.computed >= self.entry or self.pending == 1


_rank = attrgetter("rank")


class Running:
    """The running sequences, the most deserving first. A few hundred: lists beat trees."""

    def __init__(self) -> None:
        """Start with none."""
        self._ranked: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._ranked)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._ranked)

    def add(self, sequence: Sequence) -> None:
        """It runs from now on."""
        sequence.phase = Phase.RUNNING
        insort(self._ranked, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """It no longer runs."""
        del self._ranked[bisect_left(self._ranked, sequence.rank, key=_rank)]

    def snapshot(self) -> list[Sequence]:
        """All of them, unmoved by what is added or removed meanwhile."""
        return self._ranked.copy()

    @property
    def least(self) -> Sequence:
        """The least deserving one."""
        return self._ranked[-1]
