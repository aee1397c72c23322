"""The values between an engine and its scheduler: jobs and budgets in, plans out.

They know neither a model nor a clock; seconds are of whatever clock the engine reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from starai.engines.paging.cost import Action
from starai.engines.paging.memory import Copy, Return

#: Waiting this long is worth one point of priority, so that nobody waits for ever behind a stream
#: of better requests. Long against a chat's time to first token, short against a batch job's.
AGING_S: Final = 15.0
#: A job without a deadline stands in its tenant's line as if it had to be done after this long:
#: urgent requests pass it, but only those that came less than this after it.
PATIENCE_S: Final = 60.0
#: The share of all blocks that an admission leaves free, besides a block for each running
#: sequence. What is admitted then can grow for a while before anything must be preempted.
WATERMARK: Final = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What the scheduler knows of a request.

    ``ids`` is the live list of prompt and answer: the engine appends to it, the scheduler reads
    it. ``limit`` is the most tokens it may ever hold. Equal ``salt`` means that prefixes may be
    shared. A higher ``priority`` goes first; at ``deadline_s`` the job is worth nothing any more.
    """

    key: bytes
    ids: list[int]
    limit: int
    tenant: bytes = b""
    salt: bytes = b""
    priority: int = 0
    deadline_s: float = math.inf
    arrived_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """Run tokens ``start`` to ``start + count`` of a job in this step.

    Those behind the end of the job's ids are drafts, which the engine puts there itself.
    """

    key: bytes
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: ``swap_out``, then ``copies``, then one forward pass; ``returns`` meanwhile.

    Each of the two may be carried out at once: nothing is read that it writes. What ``returns``
    reads is told to the memory, some plans later. Without ``works`` all wait for that.
    ``works`` has the decodes first, then prompt chunks, each key at most once. ``expired`` jobs
    are already removed. ``preempted`` jobs come back by themselves.
    """

    swap_out: tuple[Copy, ...] = ()
    copies: tuple[Copy, ...] = ()
    returns: tuple[Return, ...] = ()
    works: tuple[Work, ...] = ()
    expired: tuple[bytes, ...] = ()
    preempted: tuple[tuple[bytes, Action], ...] = ()


@dataclass(frozen=True, slots=True)
class Budget:
    """What a step may spend.

    ``prompt_tokens`` bounds the prompt chunks of a step, not its decodes. ``draft`` says for each
    decoding job how many speculative tokens behind the last it would like to have verified.
    """

    prompt_tokens: int
    draft: Mapping[bytes, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a scheduler; for those with a default see its constant.

    ``max_running`` sequences run at once, and ``max_waiting`` jobs may wait beyond the free places:
    0 takes only what can begin.
    """

    max_running: int
    max_waiting: int
    watermark: float = WATERMARK
    aging_s: float = AGING_S
    patience_s: float = PATIENCE_S


class Costs(Protocol):
    """Decides what becomes of the KV of a preempted sequence."""

    def choose(self, private_tokens: int, cached_tokens: int, others: int) -> Action:
        """Swap or recompute.

        Args:
            private_tokens: tokens whose KV this sequence alone holds.
            cached_tokens: tokens before them whose KV others hold, so that it stays.
            others: sequences that go on meanwhile.
        """
        ...

    def head(self, lost_tokens: int, start: int, others: int) -> int:
        """How many tokens to compute while the others are read from the tier; whole blocks or all.

        Args:
            lost_tokens: tokens of a sequence that comes back whose KV is in the tier only.
            start: how many tokens before them are in memory.
            others: sequences that go on meanwhile.
        """
        ...
