"""Chance as an argument: ``SystemRandomness`` for real keys, ``SeededRandomness`` for replays."""

from __future__ import annotations

import random  # noqa: TID251 - the one place
import secrets  # noqa: TID251 - the one place
from typing import Protocol

from starai.core.clock import Clock


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
        return secrets.token_bytes(num_bytes)

    def fraction(self) -> float:
        """A number in [0, 1)."""
        return secrets.randbits(53) / (1 << 53)


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
    tail = bytearray(randomness.take(10))
    tail[0] = 0x70 | (tail[0] & 0x0F)
    tail[2] = 0x80 | (tail[2] & 0x3F)
    return clock.now_ms().to_bytes(6, "big") + bytes(tail)
