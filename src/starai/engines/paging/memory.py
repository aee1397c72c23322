"""Paged KV memory: which blocks hold which sequence's tokens.

Blocks of `block_tokens` tokens, a table a sequence, reference counts, copy-on-write of the one
block that is both shared and written, and a prefix cache. After PagedAttention (Kwon et al., SOSP
2023); the length rule is ``ceil(length / block_tokens)`` blocks. It moves no data: it returns the
copies that somebody must make, and knows neither tensors nor when anything is due.

Two rules for whoever makes the copies:

- Copies are made in the order in which they were returned. A planner that groups them by kind
  (swaps out, copies on write) calls `swap_out` before `swap_in` before `reach`, and swaps no
  sequence out whose `reach` is part of the same step.
- What `swap_in` returns is read some time later, and told to `arrived`; the sequence goes on then.
- What `spills` returns is carried to the tier first of all, before anything is written anywhere.
- `note` is called after the forward pass that wrote the tokens.

Invariants, held by `check_integrity`: blocks behind ``ceil(computed / B)`` hold nothing and belong
to one sequence only; a block that others share or can find is never written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from starai.core.errors import ConfigurationRefused, InternalFault
from starai.engines.paging.blocks import Blocks, OutOfBlocks
from starai.engines.paging.chain import chain_link, chain_root
from starai.engines.paging.integrity import check_books
from starai.engines.paging.report import MemoryReport, report_on
from starai.engines.paging.sequences import Copy, Held, Return, Tally
from starai.engines.paging.swapping import Swapping

__all__ = ["Copy", "OutOfBlocks", "PagedMemory", "Return"]


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
        self._held: dict[bytes, Held] = {}
        self._tally = Tally()
        self._swapping = Swapping(self._blocks, tier_blocks, block_tokens, self._tally)

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
        chain = held.chain[: held.computed // self.block_tokens]
        twin = Held(held.root, held.findable, kept, chain, held.computed)
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
        self._tally.dropped_tokens += max(0, held.extent - held.lost)
        held.lost = max(held.lost, held.extent)
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
        if held.back:
            self._swapping.computed(held)
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

    def extent(self, key: bytes) -> int:
        """How many tokens' KV was computed, even if some of it is on its way back."""
        return self._get(key).extent

    @property
    def free_blocks(self) -> int:
        """How many blocks can be had: free ones and cached ones."""
        return self._blocks.available

    # -- swapping

    def swap_out(self, key: bytes) -> tuple[Copy, ...]:
        """Give back the blocks that only this sequence holds; shared ones stay.

        Those that can be found stay in the cache, and go to the tier only when `spills` says so.
        What was still to come back stays in the tier.

        Returns:
            Copies from the other blocks to tier slots.

        Raises:
            OutOfBlocks: the tier has no room; nothing has changed.
        """
        held = self._running(key)
        copies = self._swapping.out(held)
        self._release(held, held.computed)
        held.swapped = True
        return copies

    def spills(self) -> tuple[Copy, ...]:
        """Copies from blocks to tier slots, of what swapped sequences left and others now take."""
        return self._swapping.spills()

    def void(self, slots: Iterable[int]) -> None:
        """What was to be carried to these slots was not: it will be computed again."""
        self._swapping.void(slots)

    def private_tokens(self, key: bytes) -> int:
        """Computed tokens in blocks that only this sequence holds: what `swap_out` would move."""
        held = self._running(key)
        refs = self._blocks.refs
        private = sum(refs[block] == 1 for block in held.table)
        return min(held.extent, private * self.block_tokens)

    def blocks_to_swap_in(self, key: bytes) -> int:
        """How many free blocks `swap_in` would take."""
        held = self._get(key)
        refs = self._blocks.refs
        found = (self._swapping.cached(held, i) for i, b in enumerate(held.table) if b < 0)
        return sum(block is None or refs[block] == 0 for block in found)

    def gap(self, key: bytes) -> tuple[int, int]:
        """Of a swapped sequence, the first tokens in a row that are not in memory: from, to."""
        return self._swapping.gap(self._get(key))

    def swap_in(self, key: bytes, compute_to: int = 0) -> Return:
        """Bring a sequence back from the tier; what the cache still has is not copied.

        Args:
            key: whose.
            compute_to: what is missing before this token is not read, but to be computed; a
                multiple of `block_tokens`, or the end of the `gap`.

        Returns:
            Copies from tier slots to blocks; `arrived` or `astray` is to be called for all.

        Raises:
            OutOfBlocks: nothing has changed.
        """
        held = self._get(key)
        if not held.swapped:
            raise InternalFault("the sequence is not swapped out")
        need = self.blocks_to_swap_in(key)
        if need > self._blocks.available:
            raise OutOfBlocks(f"{need} blocks needed, {self.free_blocks} free")
        held.swapped = False
        return Return(key, self._swapping.bring(held, compute_to))

    def expected(self, key: bytes, copies: Iterable[Copy]) -> list[Copy]:
        """Which reads of `swap_in` are still wanted: the sequence may be gone by now."""
        held = self._held.get(key)
        return [] if held is None else self._swapping.expected(held, copies)

    def arrived(self, key: bytes, copies: Iterable[Copy]) -> None:
        """These reads of `swap_in` are made; those that nobody expects are ignored."""
        held = self._held.get(key)
        if held is not None:
            self._swapping.arrived(held, copies)

    def astray(self, key: bytes, copies: Iterable[Copy]) -> None:
        """These reads of `swap_in` will never be made: what they were for is to be computed."""
        held = self._held.get(key)
        if held is not None:
            self._swapping.astray(held, copies)

    def returning(self, key: bytes) -> bool:
        """Whether something that the sequence had computed is not there yet."""
        return self._get(key).back > 0

    def runnable(self, key: bytes, length: int) -> int:
        """Up to which of its ``length`` tokens the sequence may be computed now."""
        return self._swapping.runnable(self._get(key), length)

    def is_swapped(self, key: bytes) -> bool:
        """Whether `swap_in` must come before the sequence can run."""
        return self._get(key).swapped

    def check_integrity(self) -> None:
        """Check that every block and slot is accounted for once.

        Raises:
            InternalFault: naming the first invariant that is violated.
        """
        check_books(
            self._blocks,
            self._swapping.free,
            self.tier_blocks,
            self._held.values(),
            self.block_tokens,
        )

    def report(self) -> MemoryReport:
        """Count what is held and what happened; O(blocks), so not for every step."""
        return report_on(
            self._blocks,
            self._held.values(),
            self._tally,
            block_tokens=self.block_tokens,
            tier_total=self.tier_blocks,
            tier_used=self.tier_blocks - len(self._swapping.free),
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
                self._swapping.give(~block)
            else:
                self._blocks.release(block)
        held.computed = min(held.computed, length)
        if held.back:
            self._swapping.cut(held, length)
        del held.chain[length // self.block_tokens :]
        held.writable = 0
