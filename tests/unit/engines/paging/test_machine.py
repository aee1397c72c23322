"""Paged memory against a model: what a sequence reads through its table is always its own.

Block contents are simulated: a block and a tier slot hold what was written there, as (salt, token)
or nothing, and the copies that the memory asks for are carried out on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from starai.engines.paging.memory import Copy, OutOfBlocks, PagedMemory

NUM_BLOCKS = 12
TIER_BLOCKS = 5
Cell = tuple[bytes, tuple[int, ...]] | None
# Two token ids and short prompts: prefixes meet all the time.
TOKENS = st.integers(0, 1)
PROMPTS = st.lists(TOKENS, min_size=1, max_size=14)
SALTS = st.sampled_from([b"", b"x"])


@dataclass
class Told:
    """What a sequence should be: KV of a position depends on the salt and all tokens up to it."""

    salt: bytes
    ids: list[int]
    computed: int = 0
    reserved: int = 0
    swapped: bool = False
    dropped: bool = False
    adopted: bool = False
    kv: list[Cell] = field(default_factory=list)

    def cell(self, position: int) -> Cell:
        """The KV that a pass writes at a position."""
        return (self.salt, tuple(self.ids[: position + 1]))


class Machine(RuleBasedStateMachine):
    """All operations in any order, on a memory that is too small for them."""

    keys = Bundle("keys")

    @initialize(size=st.sampled_from([1, 2, 3, 4]), share=st.sampled_from([True, True, False]))
    def start(self, size: int, share: bool) -> None:
        self.size, self.share = size, share
        self.memory = PagedMemory(
            NUM_BLOCKS, block_tokens=size, tier_blocks=TIER_BLOCKS, share_prefixes=share
        )
        self.pool: list[list[Cell]] = [[None] * size for _ in range(NUM_BLOCKS)]
        self.tier: list[list[Cell]] = [[None] * size for _ in range(TIER_BLOCKS)]
        self.told: dict[bytes, Told] = {}
        self.count = 0

    # -- helpers

    def new_key(self) -> bytes:
        self.count += 1
        return b"%d" % self.count

    def carry_out(
        self, copies: tuple[Copy, ...], source: list[list[Cell]], target: list[list[Cell]]
    ) -> None:
        for copy in copies:
            target[copy.target] = list(source[copy.source])

    def books(self) -> object:
        """All that a failed operation must leave alone."""
        live = {k: self.memory._held[k] for k in self.told}
        return (
            {k: (list(h.table), list(h.chain), h.computed, h.swapped) for k, h in live.items()},
            list(self.memory._blocks.refs),
            list(self.memory._blocks.cached),
            list(self.memory._blocks.free),
            dict(self.memory._blocks.index),
            list(self.memory._slots),
        )

    def attempt(self, act: Callable[[], tuple[Copy, ...]], room: bool) -> tuple[Copy, ...] | None:
        """Do it if there should be room; if not, it must refuse and leave everything alone."""
        if room:
            return act()
        before = self.books()
        with pytest.raises(OutOfBlocks):
            act()
        assert self.books() == before
        return None

    def run(self, key: bytes, length: int) -> bool:
        """One pass: reach, write, note."""
        told = self.told[key]
        room = self.memory.blocks_needed(key, length) <= self.memory.free_blocks
        before = self.memory.free_blocks
        need = self.memory.blocks_needed(key, length)
        copies = self.attempt(lambda: self.memory.reach(key, length), room)
        if copies is None:
            return False
        assert before - self.memory.free_blocks == need
        assert self.memory.reach(key, length) == ()
        assert self.memory.blocks_needed(key, length) == 0
        self.carry_out(copies, self.pool, self.pool)
        table = self.memory.table(key)
        for position in range(told.computed, length):
            cell = told.cell(position)
            self.pool[table[position // self.size]][position % self.size] = cell
            told.kv.append(cell)
        self.memory.note(key, told.ids, length)
        told.computed = length
        return True

    def found(self, key: bytes, reused: int) -> None:
        """Check what a prefix hit claims, and take it for computed."""
        told = self.told[key]
        assert reused % self.size == 0
        assert reused < len(told.ids)
        assert self.share or reused == 0
        told.computed = reused
        told.kv = [told.cell(position) for position in range(reused)]

    # -- rules

    @rule(target=keys, ids=PROMPTS, salt=SALTS, length=st.integers(1, 14))
    def open(self, ids: list[int], salt: bytes, length: int) -> bytes:
        key = self.new_key()
        reused = self.memory.open(key, ids, salt)
        self.told[key] = Told(salt, list(ids))
        self.found(key, reused)
        if reused < length <= len(ids):
            self.run(key, length)
        return key

    @rule(key=keys, more=st.lists(TOKENS, max_size=5), part=st.integers(1, 5))
    def advance(self, key: bytes, more: list[int], part: int) -> None:
        told = self.told[key]
        assume(not told.swapped and not told.dropped)
        told.ids += more
        length = min(len(told.ids), told.computed + part)
        assume(length > told.computed)
        self.run(key, length)

    @rule(key=keys, ahead=st.integers(0, 9))
    def reserve(self, key: bytes, ahead: int) -> None:
        told = self.told[key]
        assume(not told.swapped and not told.dropped)
        length = told.computed + ahead
        room = self.memory.blocks_needed(key, length) <= self.memory.free_blocks
        copies = self.attempt(lambda: self.memory.reach(key, length), room)
        self.carry_out(copies or (), self.pool, self.pool)

    @rule(target=keys, key=keys, tail=st.lists(TOKENS, max_size=4))
    def fork(self, key: bytes, tail: list[int]) -> object:
        told = self.told[key]
        assume(not told.swapped and not told.dropped)
        free, new = self.memory.free_blocks, self.new_key()
        self.memory.fork(key, new)
        assert self.memory.free_blocks == free
        self.told[new] = Told(
            told.salt,
            told.ids[: told.computed] + tail,
            told.computed,
            adopted=told.adopted,
            kv=list(told.kv),
        )
        return new

    @rule(key=keys, back=st.integers(0, 8), other=st.lists(TOKENS, max_size=4))
    def truncate(self, key: bytes, back: int, other: list[int]) -> None:
        told = self.told[key]
        assume(not told.dropped)
        length = max(0, told.computed - back)
        self.memory.truncate(key, length)
        told.computed, told.kv = length, told.kv[:length]
        told.ids = told.ids[:length] + other

    @rule(key=keys)
    def swap_out(self, key: bytes) -> None:
        told = self.told[key]
        assume(not told.swapped and not told.dropped)
        used = -(-told.computed // self.size)
        held = self.memory.table(key)[:used]
        private = [b for b in held if self.memory._blocks.refs[b] == 1]
        room = len(private) <= len(self.memory._slots)
        copies = self.attempt(lambda: self.memory.swap_out(key), room)
        if copies is not None:
            assert sorted(copy.source for copy in copies) == sorted(private)
            self.carry_out(copies, self.pool, self.tier)
            told.swapped = True

    @rule(key=keys)
    def swap_in(self, key: bytes) -> None:
        told = self.told[key]
        assume(told.swapped)
        before, need = self.memory.free_blocks, self.memory.blocks_to_swap_in(key)
        copies = self.attempt(lambda: self.memory.swap_in(key), need <= before)
        if copies is not None:
            assert before - self.memory.free_blocks == need
            assert len(copies) <= need
            self.carry_out(copies, self.tier, self.pool)
            told.swapped = False

    @rule(key=keys)
    def drop(self, key: bytes) -> None:
        told = self.told[key]
        assume(not told.adopted)
        self.memory.drop(key)
        told.computed, told.kv, told.swapped, told.dropped = 0, [], False, True

    @rule(key=keys, run=st.booleans())
    def reattach(self, key: bytes, run: bool) -> None:
        told = self.told[key]
        assume(told.dropped and told.ids)
        told.dropped = False
        self.found(key, self.memory.reattach(key, told.ids))
        if run:
            self.run(key, len(told.ids))

    @rule(target=keys, num_tokens=st.integers(1, 9))
    def adopt(self, num_tokens: int) -> object:
        key = self.new_key()
        need = -(-num_tokens // self.size)
        before, room = self.memory.free_blocks, need <= self.memory.free_blocks

        def act() -> tuple[Copy, ...]:
            self.memory.adopt(key, num_tokens)
            return ()

        if self.attempt(act, room) is None:
            return multiple()
        assert before - self.memory.free_blocks == need
        cells: list[Cell] = [(b"elsewhere" + key, (i,)) for i in range(num_tokens)]
        table = self.memory.table(key)
        for position, cell in enumerate(cells):
            self.pool[table[position // self.size]][position % self.size] = cell
        self.told[key] = Told(
            b"elsewhere" + key, [0] * num_tokens, num_tokens, adopted=True, kv=cells
        )
        return key

    @rule(key=consumes(keys))
    def close(self, key: bytes) -> None:
        self.memory.close(key)
        del self.told[key]

    # -- invariants

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "memory"):
            return
        self.memory.check_integrity()
        report = self.memory.report()
        assert report.sharing_saves_blocks == report.formula_saves_blocks
        assert 0 <= report.waste <= 1
        assert report.blocks_used + report.blocks_cached + report.blocks_free == NUM_BLOCKS

    @invariant()
    def everyone_reads_their_own(self) -> None:
        for key, told in getattr(self, "told", {}).items():
            assert self.memory.computed(key) == told.computed
            assert self.memory.is_swapped(key) == told.swapped
            if not told.swapped:
                table = self.memory.table(key)
                read = [
                    self.pool[table[p // self.size]][p % self.size] for p in range(told.computed)
                ]
                assert read == told.kv

    def teardown(self) -> None:
        for key in getattr(self, "told", {}):
            self.memory.close(key)
        if hasattr(self, "memory"):
            self.memory.check_integrity()
            assert self.memory.free_blocks == NUM_BLOCKS


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
