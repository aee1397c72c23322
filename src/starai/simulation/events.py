"""Virtual time for the event-driven simulation: a heap of what happens when. It is also a clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

#: Where the wall clock stands at second 0.
EPOCH_MS = 1_800_000_000_000


class Events:
    """What happens when; equal moments in the order in which they were said."""

    def __init__(self) -> None:
        """Begin at second 0 with nothing to happen."""
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0

    @property
    def num_events(self) -> int:
        """Events said so far."""
        return self._number

    def at(self, at_s: float, do: Callable[..., None], *arguments: Any) -> None:
        """Do something at a moment, or now if that has passed."""
        self._number += 1
        heapq.heappush(self._heap, (max(at_s, self.now_s), self._number, do, arguments))

    def after(self, seconds: float, do: Callable[..., None], *arguments: Any) -> None:
        """Do something in so many seconds."""
        self.at(self.now_s + seconds, do, *arguments)

    def step(self) -> bool:
        """Let the next thing happen; False when there is none."""
        if not self._heap:
            return False
        self.now_s, _, do, arguments = heapq.heappop(self._heap)
        do(*arguments)
        return True

    def now_ms(self) -> int:
        """Wall time in Unix milliseconds."""
        return EPOCH_MS + int(self.now_s * 1000)

    def monotonic_s(self) -> float:
        """Seconds since the beginning."""
        return self.now_s
