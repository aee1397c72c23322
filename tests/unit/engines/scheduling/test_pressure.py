"""Which swapped sequence is given up first."""

from __future__ import annotations

from starai.engines.paging.cost import Action
from starai.engines.paging.memory import PagedMemory
from starai.engines.scheduling.base import Job
from starai.engines.scheduling.pressure import Moves, Pressure
from starai.engines.scheduling.sequence import Phase, Running, Sequence


class Swapping:
    """Always swaps."""

    def choose(self, private_tokens: int, cached_tokens: int, others: int) -> Action:
        return Action.SWAP

    def head(self, lost_tokens: int, start: int, others: int) -> int:
        return 0


def test_the_least_deserving_is_unpinned_first_and_the_favoured_last() -> None:
    """Swapped sequences are dropped from the end, whom it is done for after all others."""
    memory, running, set_aside = PagedMemory(6, tier_blocks=9), Running(), list[Sequence]()
    pressure = Pressure(memory, Swapping(), running, set_aside.append)
    sequences = [Sequence(Job(b"%d" % n, [n] * 30, 90), n, 0) for n in range(3)]
    for sequence in sequences:
        memory.open(sequence.key, sequence.job.ids)
        memory.reach(sequence.key, 30)
        memory.note(sequence.key, sequence.job.ids, 30)
        sequence.computed = 30
        running.add(sequence)
    last = sequences[2]
    moves = Moves()
    last.job.ids.extend(range(60))
    assert not pressure.grow(last, moves)
    for sequence in sequences[:2]:
        sequence.job.ids.extend(range(60))
    assert not pressure.grow(sequences[1], moves)
    assert pressure.grow(sequences[0], moves)
    assert set_aside == [last, sequences[1]]
    spilled = memory.spills()
    assert len(moves.swap_out) + len(spilled) == 4
    assert {copy.source for copy in spilled} <= set(range(6))
    assert pressure.unpin(last)
    assert [each.phase for each in sequences] == [Phase.RUNNING, Phase.DROPPED, Phase.SWAPPED]
    assert pressure.unpin(last)
    assert (last.phase, last.computed) == (Phase.DROPPED, 0)
    assert not pressure.unpin(last)
    memory.check_integrity()
