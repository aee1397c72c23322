"""The KV memory of an engine: the pool, the books that say whose block is whose, and the tier.

Sizes all three by what the options allow and the model needs, and carries out what a plan says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec
import torch

from starai.core.clock import Clock
from starai.core.errors import ConfigurationRefused
from starai.engines.paging.cost import Action
from starai.engines.paging.memory import PagedMemory
from starai.engines.paging.report import MemoryReport
from starai.engines.scheduling.base import Plan
from starai.engines.text.attention import Pass, Span
from starai.engines.text.forward import forward
from starai.engines.text.options import TextOptions
from starai.engines.text.pool import BLOCK_TOKENS, KeyValuePool
from starai.engines.text.tier import Tier

_GIB: Final = 1 << 30
#: What should be back soon is waited for no longer than this, in seconds: a disk may be busy.
_SOON_MOST_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class KeyValueMemory:
    """Blocks, books and tier of one engine."""

    pool: KeyValuePool
    books: PagedMemory
    tier: Tier

    @property
    def room_tokens(self) -> int:
        """Tokens that all blocks together hold."""
        return self.books.num_blocks * self.books.block_tokens

    def carry_out(self, plan: Plan) -> bool:
        """Move the blocks that a plan moves, in its order, and begin to read what it brings back.

        Returns:
            Whether something is back already, or as good as: then another plan has more works.
        """
        for key, _ in plan.preempted:
            self.tier.forget(key)
        self.books.void(self.tier.swap_out(plan.swap_out))
        self.pool.copy(plan.copies)
        for back in plan.returns:
            self.tier.bring(back)
        if not plan.returns:
            return False
        if self.tier.soon:
            self.tier.wait(_SOON_MOST_S)
        return self.collect()

    def collect(self) -> bool:
        """Put into blocks what was read from the tier since; whether there was anything."""
        taken = self.tier.collect()
        for arrived in taken:
            if arrived.rows is None:
                self.books.astray(arrived.key, arrived.copies)
                continue
            wanted = self.books.expected(arrived.key, arrived.copies)
            self.tier.load(arrived, wanted)
            self.books.arrived(arrived.key, wanted)
        return bool(taken)

    def report(self) -> MemoryReport:
        """What the memory holds and what sharing and swapping saved."""
        return msgspec.structs.replace(
            self.books.report(), bytes_per_block=self.pool.bytes_per_block, rates=self.tier.rates
        )


@torch.inference_mode()
def reserve_memory(
    model: Any, options: TextOptions, slots: int, context: int, clock: Clock
) -> KeyValueMemory:
    """Reserve it now, so that a lack of memory shows at the start.

    Args:
        model: a model that computes with the packed attention.
        options: how much, and in which form.
        slots: sequences that run at once.
        context: the most tokens of one of them.
        clock: times what is carried to the tier.

    Raises:
        ConfigurationRefused: the memory cannot be had, or does not hold one block.
    """
    trial = KeyValuePool(1, int8=options.kv_bits == 8)
    forward(model, Pass(trial, [Span((0,), 0, 1)]), [0], [0])
    allowed = int(options.kv_gib * _GIB) // trial.bytes_per_block
    num_blocks = min(allowed, slots * -(-context // BLOCK_TOKENS))
    if num_blocks < 1:
        raise ConfigurationRefused(
            f"kv_gib {options.kv_gib:g} does not hold {BLOCK_TOKENS} tokens of this model, which "
            f"take {trial.bytes_per_block} bytes: give it more"
        )
    tier_blocks = min(int(options.swap_gib * _GIB) // trial.bytes_per_block, num_blocks)
    try:
        pool = trial.alike(num_blocks, _on(model.device))
        always = None if options.preempt == "measured" else Action(options.preempt)
        tier = Tier(pool, tier_blocks, clock, disk=options.swap == "disk", always=always)
    except RuntimeError as error:
        raise ConfigurationRefused(
            f"no memory for {num_blocks} blocks of {BLOCK_TOKENS} tokens: lower slots, kv_gib or "
            "context"
        ) from error
    books = PagedMemory(
        num_blocks,
        block_tokens=BLOCK_TOKENS,
        tier_blocks=tier_blocks,
        share_prefixes=options.prefixes,
    )
    return KeyValueMemory(pool, books, tier)


def _on(device: torch.device) -> Any:
    def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    return allocate
