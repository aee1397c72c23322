"""Which swapped sequence is given up first."""

from __future__ import annotations

import pytest

from starai.engines.paging.cost import Action
from starai.engines.paging.memory import PagedMemory
from starai.engines.scheduling.base import Job
from starai.engines.scheduling.pressure import Moves, Pressure
from starai.engines.scheduling.sequence import Phase, Running, Sequence


class Swapping:
    """Always swaps."""

    def choose(self, private_tokens: int, cached_tokens: int, surviving_tokens: int) -> Action:
        return Action.SWAP


class Told:
    """Always recomputes, and keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, int]] = []

    def choose(self, private_tokens: int, cached_tokens: int, surviving_tokens: int) -> Action:
        self.told.append((private_tokens, cached_tokens, surviving_tokens))
        return Action.RECOMPUTE


@pytest.mark.parametrize(
    ("first", "other", "survives"), [(64, 64, 64), (80, 80, 32), (80, 64, 48), (96, 96, 0)]
)
def test_the_rule_is_told_what_the_others_will_leave(first: int, other: int, survives: int) -> None:
    """The others grow until there is room again: what they take, the one that gives way loses."""
    memory, running, costs = PagedMemory(12), Running(), Told()
    pressure = Pressure(memory, costs, running, lambda _: None)
    limits = {b"first": first, b"other": other, b"victim": 144}
    for number, (key, most) in enumerate(limits.items()):
        length = 64 if key == b"victim" else 32
        sequence = Sequence(Job(key, [number] * length, most), number, 0)
        memory.open(key, sequence.job.ids)
        memory.reach(key, length)
        memory.note(key, sequence.job.ids, length)
        sequence.computed = length
        running.add(sequence)
    victim = running.least
    victim.job.ids.extend(range(80))
    assert not pressure.grow(victim, Moves())
    assert costs.told == [(64, 0, survives)]
    # Nobody grew while it was away: the next time it is expected to lose nothing.
    victim.computed = memory.reattach(victim.key, victim.job.ids)
    pressure.returns(victim)
    running.add(victim)
    assert not pressure.grow(victim, Moves())
    assert costs.told[1:] == [(64, 0, 64)]


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
    assert len(moves.swap_out) == 4
    assert pressure.unpin(last)
    assert [each.phase for each in sequences] == [Phase.RUNNING, Phase.DROPPED, Phase.SWAPPED]
    assert pressure.unpin(last)
    assert (last.phase, last.computed) == (Phase.DROPPED, 0)
    assert not pressure.unpin(last)
    memory.check_integrity()
