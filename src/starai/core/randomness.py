"""Chance as an argument: ``SystemRandomness`` for real keys, ``SeededRandomness`` for replays."""

from __future__ import annotations

import os
import random  # noqa: TID251 - the one place
from typing import Final, Protocol

from starai.core.clock import Clock

#: The bits of a version 7 identifier's last ten bytes that chance fills, and those that are fixed.
_UUID7_CHANCE: Final = 0x0FFF_3FFF_FFFF_FFFF_FFFF
_UUID7_MARKS: Final = 0x7000_8000_0000_0000_0000


class Randomness(Protocol):
    """A source of bytes and of numbers in [0, 1)."""

    def take(self, num_bytes: int) -> bytes:
        """``num_bytes`` fresh bytes."""
        ...

    def fraction(self) -> float:
        """A number in [0, 1)."""
        ...


class SystemRandomness:
    """The operating system's randomness, fit for keys."""

    def take(self, num_bytes: int) -> bytes:
        """``num_bytes`` fresh bytes."""
        return os.urandom(num_bytes)

    def fraction(self) -> float:
        """A number in [0, 1)."""
        return (int.from_bytes(os.urandom(7), "big") >> 3) / (1 << 53)


class SeededRandomness:
    """The same bytes for the same seed: for simulations and tests, never for real keys."""

    def __init__(self, seed: int) -> None:
        """Start the stream of ``seed``."""
        self._source = random.Random(seed)  # noqa: S311 - simulation only

    def take(self, num_bytes: int) -> bytes:
        """The next ``num_bytes`` bytes of the stream."""
        return self._source.randbytes(num_bytes)

    def fraction(self) -> float:
        """The next number in [0, 1) of the stream."""
        return self._source.random()


def uuid7(clock: Clock, randomness: Randomness) -> bytes:
    """A time-ordered 16-byte identifier (RFC 9562, section 5.7)."""
    tail = int.from_bytes(randomness.take(10), "big") & _UUID7_CHANCE | _UUID7_MARKS
    return (clock.now_ms() << 80 | tail).to_bytes(16, "big")
