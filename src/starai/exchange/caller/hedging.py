"""When a second callee is asked because the first lets the first token wait.

A request that takes longer than 95 of 100 like it is probably in trouble: asking a second callee
then cuts the tail for a twentieth more work (J. Dean and L. A. Barroso, "The Tail at Scale", CACM
2013). What is like it: the same model, and a prompt of the same order of length. Hedges are a
bounded share of all requests, so that they never add up when everybody is slow. Pure: times are
arguments, in seconds.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict, deque
from typing import Final

#: At most this share of requests is hedged, of the last few hundred.
SHARE: Final = 0.05
SAVED_MAX: Final = 5.0
#: First tokens that the percentile is taken of, and how many it takes to say anything.
WINDOW: Final = 256
SAMPLES_MIN: Final = 20
PERCENTILE: Final = 0.95
#: Nothing is hedged sooner than this: a round trip around the world and some prefill.
DELAY_MIN_S: Final = 0.05
#: Kinds of requests that are kept apart.
KINDS_MAX: Final = 256

Kind = tuple[bytes, int]


class _Recent:
    """The last times, in order of arrival and of size."""

    def __init__(self) -> None:
        self.arrived: deque[float] = deque()
        self.ordered: list[float] = []

    def add(self, seconds: float) -> None:
        if len(self.arrived) >= WINDOW:
            del self.ordered[bisect.bisect_left(self.ordered, self.arrived.popleft())]
        self.arrived.append(seconds)
        bisect.insort(self.ordered, seconds)

    def percentile(self) -> float:
        return self.ordered[int(PERCENTILE * (len(self.ordered) - 1))]


class Hedging:
    """What first tokens take, and how many hedges are left."""

    def __init__(self) -> None:
        """Know nothing, with one hedge in hand."""
        self._kinds: OrderedDict[Kind, _Recent] = OrderedDict()
        self._saved = 1.0
        #: Requests seen, hedges begun, hedges that were first with a token.
        self.num_requests = self.num_hedged = self.num_won = 0

    def begin(self, model_root: bytes, num_prompt: int) -> float | None:
        """A request begins: after how long to hedge it; None: never, there is too little to go by.

        The length of prompts is told apart by powers of two.
        """
        self.num_requests += 1
        self._saved = min(SAVED_MAX, self._saved + SHARE)
        recent = self._kinds.get((model_root, num_prompt.bit_length()))
        if recent is None or len(recent.ordered) < SAMPLES_MIN:
            return None
        return max(DELAY_MIN_S, recent.percentile())

    def may_hedge(self) -> bool:
        """Whether there is a hedge left."""
        return self._saved >= 1.0

    def hedged(self) -> None:
        """One was begun."""
        self.num_hedged += 1
        self._saved -= 1.0

    def first_token(
        self, model_root: bytes, num_prompt: int, took_s: float, *, by_hedge: bool
    ) -> None:
        """A first token came ``took_s`` after the request was first offered."""
        self.num_won += by_hedge
        kind = (model_root, num_prompt.bit_length())
        recent = self._kinds.get(kind)
        if recent is None:
            recent = self._kinds[kind] = _Recent()
            if len(self._kinds) > KINDS_MAX:
                self._kinds.popitem(last=False)
        self._kinds.move_to_end(kind)
        recent.add(took_s)
