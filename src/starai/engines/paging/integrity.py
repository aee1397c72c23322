"""Checks that the books of paged memory balance. It changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from starai.core.errors import InternalFault
from starai.engines.paging.blocks import Blocks
from starai.engines.paging.sequences import Held


def check_books(
    blocks: Blocks, slots: Sequence[int], tier_blocks: int, held: Collection[Held], size: int
) -> None:
    """Check every block, slot and table; ``size`` is tokens a block. O(blocks + tables).

    Raises:
        InternalFault: naming the first invariant that is violated.
    """
    _check_blocks(blocks, held)
    _check_index(blocks)
    _check_parking(blocks, slots)
    away = [~b for one in held for b in one.table if b < 0]
    away += [slot for one in held for slot in one.slots.values()]
    _must(sorted([*away, *slots]) == list(range(tier_blocks)), "each tier slot has one owner")
    for one in held:
        _check_sequence(blocks, one, size)


def _must(true: bool, invariant: str) -> None:
    if not true:
        raise InternalFault(f"paged memory is inconsistent: not so that {invariant}")


def _check_blocks(blocks: Blocks, held: Collection[Held]) -> None:
    holders = Counter(block for one in held for block in one.table if block >= 0)
    free, cached = set(blocks.free), set(blocks.cached)
    _must(len(free) == len(blocks.free), "a block is free once")
    _must(not free & cached, "a free block is not cached")
    for block, refs in enumerate(blocks.refs):
        _must(refs == holders[block], f"block {block} counts its holders")
        idle = (block in free) + (block in cached)
        _must(idle == (refs == 0), f"block {block} is either free, cached or referenced")
    _must(not any(blocks.links[block] for block in free), "a free block cannot be found")
    _must(all(blocks.links[block] for block in cached), "a cached block can be found")
    _must(set(holders) <= set(range(len(blocks.refs))), "tables hold blocks that exist")


def _check_index(blocks: Blocks) -> None:
    listed = {link.digest: b for b, link in enumerate(blocks.links) if link is not None}
    _must(listed == blocks.index, "the index lists exactly the findable blocks")


def _check_parking(blocks: Blocks, free_slots: Sequence[int]) -> None:
    parked = blocks.parking.parked
    _must(all(blocks.links[block] for block in parked.values()), "a parked block can be found")
    _must(not set(parked) & set(free_slots), "what a free slot was owed is forgotten")


def _check_sequence(blocks: Blocks, one: Held, size: int) -> None:
    full, used = one.extent // size, -(-one.computed // size)
    _must(-(-one.extent // size) <= len(one.table), "computed tokens have blocks")
    _must(len(one.chain) == (full if one.findable else 0), "each full block of a chain is named")
    _must(one.swapped or min(one.table, default=0) >= 0, "only swapped sequences use the tier")
    _must(len(set(one.table)) == len(one.table), "a table holds a block once")
    _must(bool(one.slots) == bool(one.back), "only who comes back waits for blocks")
    _must(one.reading <= one.slots.keys(), "what is read has a slot until it is here")
    _must(not one.back or one.computed // size in one.slots, "it goes on where a block is missing")
    for i, block in enumerate(one.table):
        if block < 0:
            continue
        link = blocks.links[block]
        if i < len(one.chain):
            _must(link in (None, one.chain[i]), f"block {block} is named as its content")
        there = i * size < one.back and i not in one.slots
        if i >= used and not there:
            _must(blocks.refs[block] == 1 and link is None, f"empty block {block} is private")
