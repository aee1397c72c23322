"""Read back or compute again: what costs least by measured rates, and how much of each.

What a preempted sequence lost to others comes back in one of two ways, or in both at once: its head
is computed, ``S_recompute = a * tokens + b * (end**2 - start**2)``, because attention looks back,
while its tail is read from the tier, ``bytes / read rate``. Whoever reads waits alone, while the
others go on; computing takes the steps of all. So `Gap.head` makes least of the seconds that all
sequences together lose: who comes back where nobody else runs has both end together, and the more
others run, the slower may a tier be from which everything is read. Writing happens behind the steps
and is waited for by nobody; what the prefix cache still holds costs nothing. It knows no clock:
seconds are handed in.

The seed's rule is the smaller of writing and reading, or computing. Computing and loading at once
until both meet is Cake's (Jin et al., "Compute or load KV cache? Why not both?", ICML 2025) and
KVPR's (Jiang et al., "Efficient LLM inference with I/O-aware partial KV cache recomputation",
2024); that computing is not free when others run is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

#: The share of a new measurement in a rate: the last ten or so transfers decide, so that one
#: disturbed transfer does not, and a disk that became slow is noticed within seconds.
SMOOTHING: Final = 0.2
#: What an old prefill pass counts after each new one. The fit needs short and long passes at once,
#: so it forgets more slowly than a rate: about a hundred passes.
FORGETTING: Final = 0.99
#: Shorter passes are not observed: their time is overhead, and says nothing about long ones.
OBSERVED_TOKENS_MIN: Final = 32


#: The share of what computing all of it costs that reading some must save for blocks to be written
#: at all: what saves less only wears the tier out.
WORTH: Final = 0.1


class Action(Enum):
    """What becomes of the KV of a preempted sequence: kept for it in the tier, or forgotten."""

    SWAP = "swap"
    RECOMPUTE = "recompute"


@dataclass(frozen=True, slots=True)
class PrefillFit:
    """Least squares of ``a * tokens + b * (end**2 - start**2) = seconds``, errors being relative.

    Holds the sums of the normal equations, each pass scaled by its seconds and older ones decayed.
    """

    linear_linear: float = 0.0
    linear_square: float = 0.0
    square_square: float = 0.0
    linear: float = 0.0
    square: float = 0.0

    def observe(self, tokens: int, seconds: float, start: int = 0) -> PrefillFit:
        """With one more pass: ``tokens`` from position ``start`` on took ``seconds``."""
        x, y = tokens / seconds, ((start + tokens) ** 2 - start**2) / seconds
        keep = FORGETTING
        return PrefillFit(
            keep * self.linear_linear + x * x,
            keep * self.linear_square + x * y,
            keep * self.square_square + y * y,
            keep * self.linear + x,
            keep * self.square + y,
        )

    @property
    def coefficients(self) -> tuple[float, float]:
        """``a`` in seconds a token and ``b`` in seconds a squared token, neither negative."""
        det = self.linear_linear * self.square_square - self.linear_square**2
        # Passes of one length cannot tell the two apart; then the time is taken as linear.
        if det > 1e-9 * self.linear_linear * self.square_square:
            a = (self.linear * self.square_square - self.square * self.linear_square) / det
            b = (self.square * self.linear_linear - self.linear * self.linear_square) / det
            if a >= 0 and b >= 0:
                return a, b
            if a < 0:
                return 0.0, self.square / self.square_square
        return (self.linear / self.linear_linear if self.linear_linear else 0.0), 0.0

    def seconds(self, tokens: int, start: int = 0) -> float:
        """What a pass over ``tokens`` from position ``start`` on should take."""
        a, b = self.coefficients
        return a * tokens + b * ((start + tokens) ** 2 - start**2)


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured speeds. Start from a measurement or a modest guess; observe every transfer and pass.

    A tier's rate of 0 is not known yet: the first transfer tells it, and until then nothing is
    swapped. ``prefill_tokens_per_s`` is the recent average; ``fit`` predicts as soon as it has seen
    a pass.
    """

    tier_write_bytes_per_s: float
    tier_read_bytes_per_s: float
    prefill_tokens_per_s: float
    fit: PrefillFit | None = None

    def observe_write(self, num_bytes: int, seconds: float) -> Rates:
        """With one more transfer to the tier."""
        rate = _smoothed(self.tier_write_bytes_per_s, num_bytes, seconds)
        return replace(self, tier_write_bytes_per_s=rate)

    def observe_read(self, num_bytes: int, seconds: float) -> Rates:
        """With one more transfer from the tier."""
        rate = _smoothed(self.tier_read_bytes_per_s, num_bytes, seconds)
        return replace(self, tier_read_bytes_per_s=rate)

    def observe_prefill(self, tokens: int, seconds: float, start: int = 0) -> Rates:
        """With one more prefill pass over ``tokens`` from position ``start`` on."""
        if tokens < OBSERVED_TOKENS_MIN or seconds <= 0:
            return self
        return replace(
            self,
            prefill_tokens_per_s=_smoothed(self.prefill_tokens_per_s, tokens, seconds),
            fit=(self.fit or PrefillFit()).observe(tokens, seconds, start),
        )

    def swap_seconds(self, num_bytes: int) -> float:
        """S_swap: writing the bytes to the tier and reading them back."""
        if not (self.tier_write_bytes_per_s and self.tier_read_bytes_per_s):
            return math.inf
        return num_bytes / self.tier_write_bytes_per_s + num_bytes / self.tier_read_bytes_per_s

    def read_seconds(self, num_bytes: int) -> float:
        """Reading the bytes from the tier."""
        return num_bytes / self.tier_read_bytes_per_s if self.tier_read_bytes_per_s else math.inf

    def recompute_seconds(self, tokens: int, start: int = 0) -> float:
        """S_recompute: computing ``tokens`` from position ``start`` on."""
        if self.fit is None:
            return tokens / self.prefill_tokens_per_s
        return self.fit.seconds(tokens, start)


@dataclass(frozen=True, slots=True)
class Gap:
    """What is missing of a sequence: ``tokens`` of ``token_bytes`` from position ``start`` on.

    ``others`` have something to compute meanwhile, and ``queued_bytes`` are read from the tier
    before. Blocks have ``block_tokens``.
    """

    tokens: int
    start: int
    token_bytes: int
    others: int = 0
    queued_bytes: int = 0
    block_tokens: int = 16

    def seconds(self, head: int, rates: Rates) -> float:
        """Until all is there, if ``head`` tokens are computed while the rest is read."""
        rest = self.tokens - head
        computing_s = rates.recompute_seconds(head, self.start)
        if not rest:
            return computing_s
        return max(computing_s, rates.read_seconds(rest * self.token_bytes + self.queued_bytes))

    def cost(self, head: int, rates: Rates) -> float:
        """Seconds that all sequences lose together: who reads waits alone, computing stops all."""
        return self.others * rates.recompute_seconds(head, self.start) + self.seconds(head, rates)

    def head(self, rates: Rates) -> int:
        """How many tokens to compute, so that it costs least: whole blocks, or all tokens.

        With nobody else to compute for, both end together.
        """
        # Computing takes longer with each block, and each block longer than the one before; reading
        # takes shorter by the same each time. So costs first fall and then rise.
        low, high = 0, (self.tokens - 1) // self.block_tokens
        while low < high:
            middle = (low + high) // 2
            here, next_one = (n * self.block_tokens for n in (middle, middle + 1))
            if self.cost(next_one, rates) < self.cost(here, rates):
                low = middle + 1
            else:
                high = middle
        return min((low * self.block_tokens, self.tokens), key=lambda head: self.cost(head, rates))


def choose(gap: Gap, rates: Rates) -> Action:
    """Whether it is worth while to carry what would be missing to the tier."""
    if gap.tokens == 0:
        return Action.RECOMPUTE
    back = gap.cost(gap.head(rates), rates)
    return Action.SWAP if back < (1 - WORTH) * gap.cost(gap.tokens, rates) else Action.RECOMPUTE


def _smoothed(rate: float, amount: int, seconds: float) -> float:
    """The rate whose seconds a unit are the exponential average of all seconds a unit."""
    if amount <= 0 or seconds <= 0:
        return rate
    if rate == 0:
        return amount / seconds
    return 1 / ((1 - SMOOTHING) / rate + SMOOTHING * seconds / amount)
