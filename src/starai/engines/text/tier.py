"""Where KV blocks go when the pool is full, and what it costs to bring them there and back.

The tier is a second pool of the same form: in ordinary memory, or in a file that has no name and
is gone with the process, because KV memory is as secret as the prompt it came from. Every transfer
is timed, and so is every prompt; `choose` compares what it would cost to move a sequence with what
it would cost to compute it again.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from starai.core.clock import Clock
from starai.core.errors import ConfigurationRefused
from starai.engines.paging.cost import Action, Rates, choose
from starai.engines.paging.memory import Copy
from starai.engines.text.pool import KeyValuePool

#: What a machine is taken for until it was measured; the trial below measures the tier.
_FIRST_RATES: Final = Rates(0.0, 0.0, 500.0)
#: Blocks that are carried to the tier and back once, to know its speed before it matters.
_TRIAL_BLOCKS: Final = 8


class Tier:
    """The blocks behind a pool, and the measured rates."""

    def __init__(
        self,
        pool: KeyValuePool,
        tier_blocks: int,
        clock: Clock,
        *,
        disk: bool,
        always: Action | None = None,
    ) -> None:
        """Set ``tier_blocks`` aside, on disk or in memory; the pool's layers must be there.

        ``always`` takes the choice away.

        Raises:
            ConfigurationRefused: there is no room for the file.
        """
        self.rates = _FIRST_RATES
        self._always = always
        self._pool = pool
        self._clock = clock
        self._behind = pool.alike(tier_blocks, _in_file if disk else _in_memory)
        trial = [Copy(n, n) for n in range(min(_TRIAL_BLOCKS, tier_blocks, pool.num_blocks))]
        self.swap_out(trial)
        self.swap_in(trial)

    def swap_out(self, copies: Sequence[Copy]) -> None:
        """Carry blocks to tier slots."""
        if copies:
            begun = self._clock.monotonic_s()
            self._behind.copy(copies, self._pool)
            self.rates = self.rates.observe_write(self._bytes(copies), self._since(begun))

    def swap_in(self, copies: Sequence[Copy]) -> None:
        """Carry tier slots back to blocks."""
        if copies:
            begun = self._clock.monotonic_s()
            self._pool.copy(copies, self._behind)
            self.rates = self.rates.observe_read(self._bytes(copies), self._since(begun))

    def note_prefill(self, tokens: int, start: int, seconds: float) -> None:
        """A pass over ``tokens`` of a prompt from ``start`` on took ``seconds``."""
        self.rates = self.rates.observe_prefill(tokens, seconds, start)

    def choose(self, private_tokens: int, cached_tokens: int) -> Action:
        """Swap or recompute, whichever is predicted to be faster; see `Costs.choose`."""
        if self._always is not None:
            return self._always
        return choose(
            private_tokens,
            cached_tokens,
            bytes_per_token=self._pool.bytes_per_token,
            rates=self.rates,
        )

    def _bytes(self, copies: Sequence[Copy]) -> int:
        return len(copies) * self._pool.bytes_per_block

    def _since(self, begun: float) -> float:
        # A clock may be too coarse for a small copy; nothing is infinitely fast.
        return max(self._clock.monotonic_s() - begun, 1e-6)


def _in_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _in_file(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    numel = math.prod(shape)
    try:
        with tempfile.NamedTemporaryFile(prefix="starai-kv-") as file:
            # The mapping keeps the file alive after its name is gone.
            size = max(1, numel * dtype.itemsize)
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):
                # A disk that is full later would end the process by a signal, in mid-write.
                os.posix_fallocate(file.fileno(), 0, size)
            flat: Tensor = torch.from_file(file.name, shared=True, size=numel, dtype=dtype)
            return flat.view(shape)
    except (OSError, RuntimeError) as error:
        raise ConfigurationRefused(
            f"no room to swap {numel * dtype.itemsize} bytes to: lower swap_gib"
        ) from error
