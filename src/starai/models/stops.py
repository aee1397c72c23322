"""Stop strings across token borders: what of an answer may be shown, however it is cut up."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Lets text through up to the first occurrence of any stop string.

    For any way of cutting a text into pieces, the pieces let through join to the text before the
    earliest stop string, or to all of it. To this end a tail that may begin a stop string is held
    back until the next piece decides; so is everything from a possible earlier stop on, even
    when a later-starting one is already complete.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Look for any of ``stops``; none may be empty."""
        if not all(stops):
            raise AssertionError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._held = ""
        #: Whether a stop string was found; no more text comes.
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that may be shown now."""
        if self.stopped:
            return ""
        buffer = self._held + text
        found = self._first(buffer)
        undecided = self._undecided(buffer)
        if found is not None and found <= undecided:
            self.stopped = True
            self._held = ""
            return buffer[:found]
        self._held = buffer[undecided:]
        return buffer[:undecided]

    def flush(self) -> str:
        """The rest that may be shown, now that no more text comes."""
        buffer, self._held = self._held, ""
        found = self._first(buffer)
        if found is not None:
            self.stopped = True
            return buffer[:found]
        return buffer

    def _first(self, buffer: str) -> int | None:
        """Where the earliest complete stop string begins."""
        starts = [start for stop in self._stops if (start := buffer.find(stop)) >= 0]
        return min(starts, default=None)

    def _undecided(self, buffer: str) -> int:
        """Where the longest tail begins that the next piece may complete to a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(buffer)), longest, -1):
                if buffer.endswith(stop[:length]):
                    longest = length
                    break
        return len(buffer) - longest
