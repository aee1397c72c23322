"""Choosing among the best, so that several who choose do not all choose the same.

The power of two choices (M. Mitzenmacher, IEEE TPDS 12:10, 2001) among those that are about as
good as the best: two are drawn, the better is taken. Each distributor knows its own tasks to the
moment and those of the others only by beats; without chance all would run to the same node in
between. Chance is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")

#: How many of the best are drawn from.
BEST_MAX: Final = 8
#: Who would finish later than the best by more than this share is not among them.
NEAR: Final = 0.25


def near_best(ranked: Sequence[tuple[float, T]]) -> int:
    """How many of the first are about as good as the first; ``ranked`` is sorted by time."""
    limit = ranked[0][0] * (1.0 + NEAR)
    number = 1
    for estimate, _ in ranked[1:BEST_MAX]:
        if estimate > limit:
            break
        number += 1
    return number


def two_choices(ranked: Sequence[tuple[float, T]], chance: float) -> T:
    """The better of two that are drawn from the near best; ``chance`` is in [0, 1)."""
    number = near_best(ranked)
    if number == 1:
        return ranked[0][1]
    first, second = divmod(int(chance * number * (number - 1)), number - 1)
    if second >= first:
        second += 1
    return ranked[min(first, second)][1]
