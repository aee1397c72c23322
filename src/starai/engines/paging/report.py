"""What paged memory has to show: waste, page faults, reuse, and what sharing and swapping save.

The quantities that the seed's section 7 promises, each measured. It knows blocks and tokens; bytes
and milliseconds only when told what a block weighs and how fast the machine is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import msgspec

from starai.engines.paging.blocks import Blocks
from starai.engines.paging.cost import Rates
from starai.engines.paging.sequences import Held, Tally


class MemoryReport(msgspec.Struct, frozen=True):
    """The state of a `PagedMemory`, and what happened since it was made.

    ``tokens_held`` counts a token once however many sequences share it, ``tokens_served`` once for
    each. ``sharing_saves_blocks`` is measured: what the tables would take unshared, less what they
    take. ``formula_saves_blocks`` is the sum of ``n - 1`` over blocks shared by ``n``, and must
    equal it; ``seed_formula_blocks`` is the seed's ``n``, which counts the copy that stays.
    ``bytes_per_block`` is 0 and ``rates`` None where nobody said.
    """

    block_tokens: int
    blocks_total: int
    blocks_used: int
    blocks_cached: int
    blocks_free: int
    tier_total: int
    tier_used: int
    sequences: int
    tokens_held: int
    tokens_served: int
    page_faults: int
    looked_up_tokens: int
    reused_tokens: int
    evictions: int
    copies: int
    sharing_saves_blocks: int
    formula_saves_blocks: int
    seed_formula_blocks: int
    swapped_out_blocks: int
    swapped_in_blocks: int
    dropped_tokens: int
    recomputed_tokens: int
    head_tokens: int
    bytes_per_block: int = 0
    rates: Rates | None = None

    @property
    def waste(self) -> float:
        """The share of used blocks' room that holds no token."""
        room = self.blocks_used * self.block_tokens
        return 1 - self.tokens_held / room if room else 0.0

    @property
    def reuse(self) -> float:
        """The share of looked-up prompt tokens whose KV was there already."""
        return self.reused_tokens / self.looked_up_tokens if self.looked_up_tokens else 0.0

    def __str__(self) -> str:
        """The report in blocks and tokens; in MiB and ms as far as it knows them."""
        return self.render(self.bytes_per_block, self.rates)

    def render(self, bytes_per_block: int = 0, rates: Rates | None = None) -> str:
        """For people; in MiB too if a block's bytes are given, in ms if rates are."""
        saved = f"{self.sharing_saves_blocks:,} blocks"
        if bytes_per_block:
            saved += f" ({self.sharing_saves_blocks * bytes_per_block / 2**20:,.1f} MiB)"
        rows = {
            "blocks": f"{self.blocks_used:,} used, {self.blocks_cached:,} cached, "
            f"{self.blocks_free:,} free, of {self.block_tokens} tokens each",
            "waste": f"{self.waste:.1%} ({self.tokens_held:,} tokens held, "
            f"{self.tokens_served:,} served to {self.sequences:,} sequences)",
            "page faults": f"{self.page_faults:,}, evictions {self.evictions:,}",
            "reuse": f"{self.reuse:.1%} ({self.reused_tokens:,} of "
            f"{self.looked_up_tokens:,} looked-up tokens)",
            "S_COW": f"{saved} saved by sharing now; formula (n-1): "
            f"{self.formula_saves_blocks:,}, the seed's (n): {self.seed_formula_blocks:,}; "
            f"{self.copies:,} copies made",
            "tier": f"{self.tier_used:,} of {self.tier_total:,} blocks; "
            f"{self.swapped_out_blocks:,} swapped out, {self.swapped_in_blocks:,} in, "
            f"{self.head_tokens:,} tokens computed meanwhile; "
            f"{self.recomputed_tokens:,} of {self.dropped_tokens:,} dropped tokens recomputed",
        }
        if rates is not None and bytes_per_block:
            swap_ms = 1000 * rates.swap_seconds(bytes_per_block)
            recompute_ms = 1000 * rates.recompute_seconds(self.block_tokens)
            rows["S_swap"] = f"{swap_ms:.3f} ms a block, out and in"
            rows["S_recompute"] = f"{recompute_ms:.3f} ms a block, at a sequence's start"
        return "\n".join(f"{name:<13}{row}" for name, row in rows.items())


def report_on(
    blocks: Blocks,
    held: Collection[Held],
    tally: Tally,
    *,
    block_tokens: int,
    tier_total: int,
    tier_used: int,
) -> MemoryReport:
    """Count everything; O(blocks held by all sequences)."""
    filled: Counter[int] = Counter()
    served = tabled = 0
    for one in held:
        served += one.computed
        for i, block in enumerate(one.table):
            if block >= 0:
                tabled += 1
                inside = min(block_tokens, max(0, one.computed - i * block_tokens))
                filled[block] = max(filled[block], inside)
    shared = [refs for refs in blocks.refs if refs > 1]
    return MemoryReport(
        block_tokens=block_tokens,
        blocks_total=len(blocks.refs),
        blocks_used=len(filled),
        blocks_cached=len(blocks.cached),
        blocks_free=len(blocks.free),
        tier_total=tier_total,
        tier_used=tier_used,
        sequences=len(held),
        tokens_held=filled.total(),
        tokens_served=served,
        page_faults=blocks.num_taken,
        looked_up_tokens=tally.looked_up_tokens,
        reused_tokens=tally.hit_tokens,
        evictions=blocks.num_evicted,
        copies=tally.copies,
        sharing_saves_blocks=tabled - len(filled),
        formula_saves_blocks=sum(shared) - len(shared),
        seed_formula_blocks=sum(shared),
        swapped_out_blocks=tally.swapped_out_blocks,
        swapped_in_blocks=tally.swapped_in_blocks,
        dropped_tokens=tally.dropped_tokens,
        recomputed_tokens=tally.recomputed_tokens,
        head_tokens=tally.head_tokens,
    )
