"""Drafts from the text itself: what followed the last time that these tokens stood here.

Prompt lookup (A. Saxena, "Prompt Lookup Decoding", 2023): an answer often repeats its prompt or
itself, so the continuation of the latest earlier occurrence of the last few tokens is a good guess
of what comes. The model checks all guesses in one pass (`verify`); a wrong one costs the rows that
it took, so the length of drafts follows how often they came true, and is 0 where they do not pay.
A pure function of the tokens and the results; it needs no model. One object per sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: Lengths of the contexts that are looked up, the longest first: a longer match is a better guess.
_CONTEXTS: Final = (4, 3, 2)
#: Tokens of a sequence that are indexed, from its end when it begins: some 300 bytes each.
_INDEXED_MAX: Final = 16_384
#: The longest draft. Guesses further ahead come true too rarely to matter.
DRAFT_MAX: Final = 8
#: How much a guess counts against those before it.
_WEIGHT: Final = 0.1
#: Half of the first guesses come true, until more is known.
_RATE_FIRST: Final = 0.5
#: Tokens after which a sequence whose drafts did not pay is given another try.
_RETRY_TOKENS: Final = 64


class PromptLookup:
    """The drafts of one sequence."""

    def __init__(self, *, draft_cost: float = 0.1) -> None:
        """Know nothing yet.

        Args:
            draft_cost: what one more row adds to a step, in steps of one row. A machine that
                waits for memory reads the weights once for all rows: the cost is small there.
        """
        self._draft_cost = draft_cost
        self._behind: dict[tuple[int, ...], int] = {}
        self._indexed = -1
        self._rate = _RATE_FIRST
        self._idle = 0

    def propose(self, ids: Sequence[int], room: int) -> list[int]:
        """Guesses of the tokens that follow ``ids``; may be empty.

        Costs a constant for every token that is new since the last call.

        Args:
            ids: prompt and answer so far; must begin with what it was at the last call.
            room: the most guesses that are of use.
        """
        found = self._find(ids)
        if found is None:
            return []
        length = min(self._length(), room, len(ids) - found)
        return list(ids[found : found + length])

    def learn(self, proposed: int, accepted: int) -> None:
        """Hear how many of the guesses came true, from the first on."""
        if not proposed:
            return
        for came_true in (*(1.0,) * accepted, *(0.0,) * (accepted < proposed)):
            self._rate += _WEIGHT * (came_true - self._rate)

    def _find(self, ids: Sequence[int]) -> int | None:
        """Where the text behind the latest earlier occurrence of the last tokens begins."""
        size = len(ids)
        if self._indexed < 0:
            self._indexed = max(0, size - _INDEXED_MAX)
        # The last tokens themselves are indexed at the next call only: they must not find them.
        for end in range(self._indexed + 1, size):
            for length in _CONTEXTS:
                if length <= end:
                    self._behind[tuple(ids[end - length : end])] = end
        self._indexed = max(self._indexed, size - 1)
        for length in _CONTEXTS:
            if length < size:
                found = self._behind.get(tuple(ids[size - length : size]))
                if found is not None:
                    return found
        return None

    def _length(self) -> int:
        """The draft with the most tokens per time.

        With each guess true at rate r, k guesses give (1 - r^(k+1)) / (1 - r) tokens for
        1 + k * cost steps (Leviathan et al., "Fast Inference from Transformers via Speculative
        Decoding", ICML 2023, theorem 3.8).
        """
        best, length, tokens, chance = 1.0, 0, 1.0, 1.0
        for guesses in range(1, DRAFT_MAX + 1):
            chance *= self._rate
            tokens += chance
            speed = tokens / (1 + guesses * self._draft_cost)
            if speed > best:
                best, length = speed, guesses
        self._idle = 0 if length else self._idle + 1
        if self._idle >= _RETRY_TOKENS:
            self._idle = 0
            return 1
        return length
