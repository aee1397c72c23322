"""Memory for those who run, and who gives way when there is none.

The least deserving gives way. Its blocks stay in the prefix cache until others take them, the end
first: those go to the tier, if that pays, or must be computed again. Who comes back has the tail of
what is missing read while its head is computed and the others go on. The most deserving never gives
way, so that something always advances. It does not know who waits or why.

Why moves may be executed by kind (all swaps out, then all copies): sequences grow from the most to
the least deserving, so that whoever gives way was not touched in the same plan; and nothing is
admitted into a plan in which something else still runs and had to give way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from starai.core.errors import InternalFault
from starai.engines.paging.cost import Action
from starai.engines.paging.memory import Copy, OutOfBlocks, PagedMemory, Return
from starai.engines.scheduling.base import Costs
from starai.engines.scheduling.sequence import Phase, Running, Sequence


@dataclass(slots=True)
class Moves:
    """What a plan moves, and who had to give way in it."""

    swap_out: list[Copy] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    returns: list[Return] = field(default_factory=list)
    preempted: list[tuple[bytes, Action]] = field(default_factory=list)


class Pressure:
    """Grows running sequences, preempting others for them."""

    def __init__(
        self,
        memory: PagedMemory,
        costs: Costs,
        running: Running,
        set_aside: Callable[[Sequence], None],
    ) -> None:
        """Take what is shared with the scheduler; ``set_aside`` is told of each preempted one."""
        self._memory = memory
        self._costs = costs
        self._running = running
        self._set_aside = set_aside
        self._swapped: dict[bytes, Sequence] = {}

    def grow(self, sequence: Sequence, moves: Moves) -> bool:
        """Give the sequence blocks for all its tokens; False if it had to give way itself.

        Raises:
            InternalFault: it has more tokens than its limit, and they do not fit.
        """
        length = len(sequence.job.ids)
        while True:
            try:
                moves.copies += self._memory.reach(sequence.key, length)
            except OutOfBlocks:
                if len(self._running) == 1 and self.unpin(sequence):
                    continue
                if length > sequence.job.limit:
                    raise InternalFault("a sequence became longer than its limit") from None
                victim = self._running.least
                self._preempt(victim, moves)
                if victim is sequence:
                    return False
            else:
                return True

    def swap_in(self, sequence: Sequence, moves: Moves) -> None:
        """Bring a swapped sequence back; the caller saw that it fits.

        Raises:
            OutOfBlocks: it does not.
        """
        memory, key = self._memory, sequence.key
        start, end = memory.gap(key)
        others = len(self._running)
        head = self._costs.head(end - start, start, others) if end > start else 0
        moves.returns.append(memory.swap_in(key, start + head))
        del self._swapped[key]
        sequence.computed, sequence.returning = memory.computed(key), memory.returning(key)

    def unpin(self, favoured: Sequence) -> bool:
        """Drop what is swapped out, the least deserving first: it may keep shared blocks in use.

        Returns:
            Whether there was one to drop, ``favoured`` being the last.
        """
        if not self._swapped:
            return False
        victim = max(self._swapped.values(), key=lambda one: (one is not favoured, one.rank))
        self._drop(victim)
        return True

    def forget(self, sequence: Sequence) -> None:
        """The sequence is removed."""
        self._swapped.pop(sequence.key, None)

    def _preempt(self, victim: Sequence, moves: Moves) -> None:
        private = self._memory.private_tokens(victim.key)
        cached = self._memory.extent(victim.key) - private
        action = self._costs.choose(private, cached, len(self._running) - 1)
        if action is Action.SWAP:
            try:
                moves.swap_out += self._memory.swap_out(victim.key)
                victim.phase = Phase.SWAPPED
                victim.computed = self._memory.computed(victim.key)
                self._swapped[victim.key] = victim
            except OutOfBlocks:
                action = Action.RECOMPUTE
        if action is Action.RECOMPUTE:
            self._drop(victim)
        victim.returning = False
        self._running.remove(victim)
        self._set_aside(victim)
        moves.preempted.append((victim.key, action))

    def _drop(self, victim: Sequence) -> None:
        self._memory.drop(victim.key)
        self._swapped.pop(victim.key, None)
        victim.phase = Phase.DROPPED
        victim.computed = 0
