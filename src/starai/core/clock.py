"""Time as an argument: services take a ``Clock`` instead of asking the machine.

``SystemClock`` is the machine's time. ``AnyioClock`` follows the running event loop's clock, so
that under trio's ``MockClock`` a day passes in a millisecond.
"""

from __future__ import annotations

import time
from typing import Protocol

import anyio


class Clock(Protocol):
    """Wall time, and time that never goes back."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never go back; only differences mean something."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    #: Seconds since some fixed point. The function itself: a request asks a dozen times.
    monotonic_s = staticmethod(time.monotonic)


class AnyioClock:
    """The event loop's clock, counted from ``epoch_ms``: virtual under trio's MockClock."""

    def __init__(self, epoch_ms: int = 1_800_000_000_000) -> None:
        """Start the wall clock at ``epoch_ms`` when the loop's clock stands at 0."""
        self._epoch_ms = epoch_ms

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch, as the loop's clock has it."""
        return self._epoch_ms + int(anyio.current_time() * 1000)

    def monotonic_s(self) -> float:
        """The loop's clock in seconds."""
        return anyio.current_time()
