"""Swap or recompute: the smaller predicted time, from measured rates.

The seed's rule: a preempted sequence's own KV is either written to the tier and read back
(``S_swap = bytes / write rate + bytes / read rate``) or computed again. Computing is not linear in
length, because attention looks back: ``S_recompute = a * tokens + b * (end**2 - start**2)``. Both
coefficients are fitted to what prefill passes took. What the prefix cache still holds when the
sequence returns costs nothing either way: it is neither written, nor read, nor computed. It knows
no clock: seconds are handed in.
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


class Action(Enum):
    """What becomes of the KV of a preempted sequence."""

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

    def recompute_seconds(self, tokens: int, start: int = 0) -> float:
        """S_recompute: computing ``tokens`` from position ``start`` on."""
        if self.fit is None:
            return tokens / self.prefill_tokens_per_s
        return self.fit.seconds(tokens, start)


def choose(
    private_tokens: int,
    cached_tokens: int,
    *,
    bytes_per_token: int,
    rates: Rates,
) -> Action:
    """The action of the smaller predicted time; recomputing on a tie, as it moves nothing.

    Args:
        private_tokens: the tokens whose KV only this sequence holds.
        cached_tokens: the tokens before them whose KV others hold, so that it need not be computed.
        bytes_per_token: of KV, in all layers.
        rates: what was measured.
    """
    swap_s = rates.swap_seconds(private_tokens * bytes_per_token)
    recompute_s = rates.recompute_seconds(private_tokens, cached_tokens)
    return Action.SWAP if swap_s < recompute_s else Action.RECOMPUTE


def _smoothed(rate: float, amount: int, seconds: float) -> float:
    """The rate whose seconds a unit are the exponential average of all seconds a unit."""
    if amount <= 0 or seconds <= 0:
        return rate
    if rate == 0:
        return amount / seconds
    return 1 / ((1 - SMOOTHING) / rate + SMOOTHING * seconds / amount)
