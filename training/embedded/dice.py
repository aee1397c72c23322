"""A seeded die for the corpus: picks, chances and numbers; knows nothing about text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from starai.core.randomness import SeededRandomness

T = TypeVar("T")


class Dice:
    """Choices that are a pure function of the seed."""

    def __init__(self, seed: int) -> None:
        """Start the stream of ``seed``."""
        self._randomness = SeededRandomness(seed)

    def below(self, bound: int) -> int:
        """A whole number in [0, bound)."""
        return int(self._randomness.fraction() * bound)

    def between(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return low + self.below(high - low + 1)

    def chance(self, probability: float) -> bool:
        """True with ``probability``."""
        return self._randomness.fraction() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One of ``items``."""
        return items[self.below(len(items))]

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """``count`` different ones of ``items``, in a random order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def weighted(self, weights: Sequence[tuple[T, float]]) -> T:
        """One item, each as likely as its weight."""
        point = self._randomness.fraction() * sum(weight for _, weight in weights)
        for item, weight in weights:
            point -= weight
            if point < 0:
                return item
        return weights[-1][0]
