"""Paged KV memory: which blocks hold which sequence's tokens.

Blocks of `block_tokens` tokens, a table a sequence, reference counts, copy-on-write of the one
block that is both shared and written, and a prefix cache. After PagedAttention (Kwon et al., SOSP
2023); the length rule is ``ceil(length / block_tokens)`` blocks. It moves no data: it returns the
copies that somebody must make, and knows neither tensors nor when anything is due.

Two rules for whoever makes the copies:

- Copies are made in the order in which they were returned. A planner that groups them by kind
  (swaps out, swaps in, copies on write) calls `swap_out` before `swap_in` before `reach`, and
  swaps no sequence out whose `reach` is part of the same step.
- What `spills` returns is carried to the tier first of all, before anything is written anywhere.
- `note` is called after the forward pass that wrote the tokens.

Invariants, held by `check_integrity`: blocks behind ``ceil(computed / B)`` hold nothing and belong
to one sequence only; a block that others share or can find is never written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starai.core.errors import ConfigurationRefused, InternalFault
from starai.engines.paging.blocks import Blocks, OutOfBlocks
from starai.engines.paging.chain import chain_link, chain_root
from starai.engines.paging.integrity import check_books
from starai.engines.paging.report import MemoryReport, report_on
from starai.engines.paging.sequences import Held, Tally

__all__ = ["Copy", "OutOfBlocks", "PagedMemory"]


@dataclass(frozen=True, slots=True)
class Copy:
    """A block to copy in every layer's pool, before new tokens are written."""

    source: int
    target: int


class PagedMemory:
    """Gives blocks to sequences and takes them back."""

    def __init__(
        self,
        num_blocks: int,
        *,
        block_tokens: int = 16,
        tier_blocks: int = 0,
        share_prefixes: bool = True,
    ) -> None:
        """Take the size of the pool and, for swapping, of the tier behind it, in blocks.

        Raises:
            ConfigurationRefused: a size is impossible.
        """
        if num_blocks < 1 or block_tokens < 1 or tier_blocks < 0:
            raise ConfigurationRefused(
                f"KV memory needs at least one block of one token, not {num_blocks} blocks of "
                f"{block_tokens} tokens and {tier_blocks} tier blocks"
            )
        self.block_tokens = block_tokens
        self.num_blocks = num_blocks
        self.tier_blocks = tier_blocks
        self._share = share_prefixes
        self._blocks = Blocks(num_blocks)
        self._slots = list(range(tier_blocks - 1, -1, -1))
        self._held: dict[bytes, Held] = {}
        self._tally = Tally()

    # -- a sequence's life

    def open(self, key: bytes, ids: Sequence[int], salt: bytes = b"") -> int:
        """Start a sequence; whole blocks of ``ids`` that are findable are attached.

        ``salt`` is all that the KV depends on besides the tokens and the model: the tenant, an
        adapter. Sequences of different salts never share.

        Returns:
            How many tokens' KV is there: a multiple of `block_tokens`, at most ``len(ids) - 1``,
            because the last token must be run to get logits.
        """
        held = Held(chain_root(salt) if self._share else b"", self._share)
        self._add(key, held)
        return self._attach(held, ids)

    def reattach(self, key: bytes, ids: Sequence[int]) -> int:
        """Start a dropped sequence again, like `open`."""
        held = self._get(key)
        if held.table or held.computed:
            raise InternalFault("a sequence that holds blocks cannot be attached again")
        reused = self._attach(held, ids)
        self._tally.recomputed_tokens += max(0, held.lost - reused)
        held.lost = 0
        return reused

    def adopt(self, key: bytes, num_tokens: int) -> None:
        """Start a sequence whose KV comes from elsewhere: its blocks are never findable.

        Raises:
            OutOfBlocks: there is no room; the sequence was not started.
        """
        need = -(-num_tokens // self.block_tokens)
        if need > self.free_blocks:
            raise OutOfBlocks(f"{need} blocks needed, {self.free_blocks} free")
        held = Held(b"", findable=False, computed=num_tokens)
        self._add(key, held)
        held.table.extend(self._blocks.take() for _ in range(need))
        held.writable = need * self.block_tokens

    def fork(self, key: bytes, new_key: bytes) -> None:
        """Start a sequence that shares all computed blocks of another; who writes first copies."""
        held = self._running(key)
        kept = held.table[: -(-held.computed // self.block_tokens)]
        twin = Held(held.root, held.findable, kept, held.chain.copy(), held.computed)
        self._add(new_key, twin)
        for block in kept:
            self._blocks.hold(block)
        held.writable = 0

    def close(self, key: bytes) -> None:
        """End a sequence; its findable blocks stay cached until they are needed."""
        self._release(self._get(key), 0)
        del self._held[key]

    def drop(self, key: bytes) -> None:
        """Give all blocks back, to compute them again after `reattach`."""
        held = self._get(key)
        self._tally.dropped_tokens += max(0, held.computed - held.lost)
        held.lost = max(held.lost, held.computed)
        self._release(held, 0)
        held.swapped = False

    # -- growing and shrinking

    def blocks_needed(self, key: bytes, length: int) -> int:
        """How many free blocks `reach` would take (and `swap_in` before it)."""
        held = self._get(key)
        growth = max(0, -(-length // self.block_tokens) - len(held.table))
        if held.swapped:
            return growth + self.blocks_to_swap_in(key) + self._copies_on_write(held, length)
        return 0 if length <= held.writable else growth + self._copies_on_write(held, length)

    def reach(self, key: bytes, length: int) -> tuple[Copy, ...]:
        """Own blocks for ``length`` tokens, writable from the computed length on.

        Returns:
            The copy to make before writing, if the block written first is shared.

        Raises:
            OutOfBlocks: nothing has changed.
        """
        held = self._running(key)
        if length <= held.writable:
            return ()
        need = self.blocks_needed(key, length)
        if need > self._blocks.available:
            raise OutOfBlocks(f"{need} blocks needed, {self.free_blocks} free")
        copies = self._make_writable(held, length)
        while len(held.table) * self.block_tokens < length:
            held.table.append(self._blocks.take())
        if length > held.computed:
            held.writable = len(held.table) * self.block_tokens
        return copies

    def note(self, key: bytes, ids: Sequence[int], computed: int) -> None:
        """The KV of the first ``computed`` of ``ids`` now is in memory.

        Full blocks become findable. Costs O(new tokens).
        """
        held = self._running(key)
        size = self.block_tokens
        if not held.computed <= computed <= min(len(ids), len(held.table) * size):
            raise InternalFault(
                f"{computed} tokens cannot be in memory: {held.computed} were, of {len(ids)}"
            )
        held.computed = computed
        if held.findable and computed >= (len(held.chain) + 1) * size:
            self._name(held, ids)

    def truncate(self, key: bytes, length: int) -> None:
        """Forget what is computed behind ``length`` tokens and give back the blocks behind it."""
        self._release(self._get(key), length)

    # -- reading

    def table(self, key: bytes) -> Sequence[int]:
        """The block ids in order of position: a live list, not to be changed or kept."""
        return self._running(key).table

    def computed(self, key: bytes) -> int:
        """How many tokens' KV is in memory, or in the tier."""
        return self._get(key).computed

    @property
    def free_blocks(self) -> int:
        """How many blocks can be had: free ones and cached ones."""
        return self._blocks.available

    # -- swapping

    def swap_out(self, key: bytes) -> tuple[Copy, ...]:
        """Give back the blocks that only this sequence holds; shared ones stay.

        Those that can be found stay in the cache, and go to the tier only when `spills` says so.

        Returns:
            Copies from the other blocks to tier slots.

        Raises:
            OutOfBlocks: the tier has no room; nothing has changed.
        """
        held = self._running(key)
        refs = self._blocks.refs
        kept = -(-held.computed // self.block_tokens)
        private = [i for i in range(kept) if refs[held.table[i]] == 1]
        if len(private) > len(self._slots):
            raise OutOfBlocks(f"{len(private)} tier slots needed, {len(self._slots)} free")
        self._release(held, held.computed)
        copies = []
        # The last block first, so that the cache evicts it before those it depends on.
        for i in reversed(private):
            block, slot = held.table[i], self._slots.pop()
            if self._blocks.links[block] is None:
                copies.append(Copy(block, slot))
            else:
                self._blocks.parking.park(block, slot)
            self._blocks.release(block)
            held.table[i] = ~slot
        held.swapped = True
        held.writable = 0
        self._tally.swapped_out_blocks += len(copies)
        return tuple(copies)

    def spills(self) -> tuple[Copy, ...]:
        """Copies from blocks to tier slots, of what swapped sequences left and others now take."""
        copies = tuple(Copy(block, slot) for block, slot in self._blocks.parking.spilled())
        self._tally.swapped_out_blocks += len(copies)
        return copies

    def private_tokens(self, key: bytes) -> int:
        """Computed tokens in blocks that only this sequence holds: what `swap_out` would move."""
        held = self._running(key)
        refs = self._blocks.refs
        private = sum(refs[block] == 1 for block in held.table)
        return min(held.computed, private * self.block_tokens)

    def blocks_to_swap_in(self, key: bytes) -> int:
        """How many free blocks `swap_in` would take."""
        held = self._get(key)
        refs = self._blocks.refs
        found = (self._still_cached(held, i) for i, b in enumerate(held.table) if b < 0)
        return sum(block is None or refs[block] == 0 for block in found)

    def swap_in(self, key: bytes) -> tuple[Copy, ...]:
        """Bring a sequence back from the tier; what the cache still has is not copied.

        Returns:
            Copies from tier slots to blocks.

        Raises:
            OutOfBlocks: nothing has changed.
        """
        held = self._get(key)
        if not held.swapped:
            raise InternalFault("the sequence is not swapped out")
        need = self.blocks_to_swap_in(key)
        if need > self._blocks.available:
            raise OutOfBlocks(f"{need} blocks needed, {self.free_blocks} free")
        away = [i for i, block in enumerate(held.table) if block < 0]
        slots = {i: ~held.table[i] for i in away}
        # Everything still cached is held before the first block is taken, which might evict it.
        for i in away:
            block = self._still_cached(held, i)
            if block is not None:
                self._blocks.hold(block)
                held.table[i] = block
            self._blocks.parking.unpark(slots[i])
        copies = [self._bring_back(held, i, slots[i]) for i in away if held.table[i] < 0]
        self._slots.extend(slots.values())
        held.swapped = False
        self._tally.swapped_in_blocks += len(copies)
        return tuple(copies)

    def is_swapped(self, key: bytes) -> bool:
        """Whether `swap_in` must come before the sequence can run."""
        return self._get(key).swapped

    def check_integrity(self) -> None:
        """Check that every block and slot is accounted for once.

        Raises:
            InternalFault: naming the first invariant that is violated.
        """
        check_books(
            self._blocks, self._slots, self.tier_blocks, self._held.values(), self.block_tokens
        )

    def report(self) -> MemoryReport:
        """Count what is held and what happened; O(blocks), so not for every step."""
        return report_on(
            self._blocks,
            self._held.values(),
            self._tally,
            block_tokens=self.block_tokens,
            tier_total=self.tier_blocks,
            tier_used=self.tier_blocks - len(self._slots),
        )

    # -- inside

    def _add(self, key: bytes, held: Held) -> None:
        if key in self._held:
            raise InternalFault("a sequence of this key is open")
        self._held[key] = held

    def _get(self, key: bytes) -> Held:
        try:
            return self._held[key]
        except KeyError:
            raise InternalFault("no sequence of this key is open") from None

    def _running(self, key: bytes) -> Held:
        held = self._get(key)
        if held.swapped:
            raise InternalFault("the sequence is swapped out")
        return held

    def _attach(self, held: Held, ids: Sequence[int]) -> int:
        size = self.block_tokens
        if not held.findable:
            return 0
        parent = held.root
        for start in range(0, (len(ids) - 1) // size * size, size):
            link = chain_link(parent, ids[start : start + size])
            block = self._blocks.find(link)
            if block is None:
                break
            self._blocks.hold(block)
            held.table.append(block)
            held.chain.append(link)
            parent = link.digest
        held.computed = len(held.table) * size
        self._tally.looked_up_tokens += len(ids)
        self._tally.hit_tokens += held.computed
        return held.computed

    def _name(self, held: Held, ids: Sequence[int]) -> None:
        size = self.block_tokens
        parent = held.chain[-1].digest if held.chain else held.root
        for i in range(len(held.chain), held.computed // size):
            link = chain_link(parent, ids[i * size : (i + 1) * size])
            held.chain.append(link)
            self._blocks.publish(held.table[i], link)
            parent = link.digest

    def _copies_on_write(self, held: Held, length: int) -> int:
        """1 if writing up to ``length`` first needs a copy of the last block, else 0."""
        first, inside = divmod(held.computed, self.block_tokens)
        if not inside or length <= held.computed:
            return 0
        block, refs = held.table[first], self._blocks.refs
        if block >= 0:
            return int(refs[block] > 1)
        parked = self._blocks.parking.block(~block)
        return int(parked is not None and refs[parked] > 0)

    def _make_writable(self, held: Held, length: int) -> tuple[Copy, ...]:
        first, inside = divmod(held.computed, self.block_tokens)
        if not inside or length <= held.computed:
            return ()
        block = held.table[first]
        if not self._copies_on_write(held, length):
            # What others could find is about to change (after `truncate` into a full block).
            self._blocks.unpublish(block)
            return ()
        own = self._blocks.take()
        self._blocks.release(block)
        held.table[first] = own
        self._tally.copies += 1
        return (Copy(block, own),)

    def _release(self, held: Held, length: int) -> None:
        """Give back all blocks and slots behind ``length`` tokens, the last one first."""
        kept = -(-length // self.block_tokens)
        while len(held.table) > kept:
            block = held.table.pop()
            if block < 0:
                self._blocks.parking.forget(~block)
                self._slots.append(~block)
            else:
                self._blocks.release(block)
        held.computed = min(held.computed, length)
        del held.chain[length // self.block_tokens :]
        held.writable = 0

    def _still_cached(self, held: Held, i: int) -> int | None:
        parked = self._blocks.parking.block(~held.table[i])
        if parked is not None:
            return parked
        return self._blocks.find(held.chain[i]) if i < len(held.chain) else None

    def _bring_back(self, held: Held, i: int, slot: int) -> Copy:
        block = self._blocks.take()
        held.table[i] = block
        if i < len(held.chain):
            self._blocks.publish(block, held.chain[i])
        return Copy(slot, block)
