"""Paged memory against a model: what a sequence reads through its table is always its own.

Block contents are simulated: a block and a tier slot hold what was written there, as (salt, token)
or nothing, and the copies that the memory asks for are carried out on them. What is read from the
tier comes some time later, block by block, or never; what is carried there may be refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from starai.engines.paging.memory import Copy, OutOfBlocks, PagedMemory, Return

NUM_BLOCKS = 10
TIER_BLOCKS = 5
SEQUENCES_MAX = 7
Cell = tuple[bytes, tuple[int, ...]] | None
# Two token ids and short prompts: prefixes meet all the time.
TOKENS = st.integers(0, 1)
PROMPTS = st.builds(
    lambda beginning, length, end: ([beginning] * length) + end,
    TOKENS,
    st.integers(1, 10),
    st.lists(TOKENS, max_size=4),
)
PICKS = st.integers(0, 7)
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
    foreign: int = 0
    kv: list[Cell] = field(default_factory=list)

    def cell(self, position: int) -> Cell:
        """The KV that a pass writes at a position."""
        if position < self.foreign:
            return (self.salt, (position,))
        return (self.salt, tuple(self.ids[: position + 1]))


class Machine(RuleBasedStateMachine):
    """All operations in any order, on a memory that is too small for them."""

    @initialize(size=st.sampled_from([1, 2, 3, 4]), share=st.sampled_from([True, True, False]))
    def start(self, size: int, share: bool) -> None:
        self.size, self.share = size, share
        self.memory = PagedMemory(
            NUM_BLOCKS, block_tokens=size, tier_blocks=TIER_BLOCKS, share_prefixes=share
        )
        self.pool: list[list[Cell]] = [[None] * size for _ in range(NUM_BLOCKS)]
        self.tier: list[list[Cell] | None] = [[None] * size for _ in range(TIER_BLOCKS)]
        self.told: dict[bytes, Told] = {}
        self.reads: list[tuple[bytes, Copy]] = []
        self.refuses = 0
        self.count = 0

    # -- helpers

    def running(self) -> list[bytes]:
        return [k for k, t in self.told.items() if not t.swapped and not t.dropped]

    def settled(self) -> list[bytes]:
        return [k for k in self.running() if not self.memory.returning(k)]

    def returning(self) -> list[bytes]:
        return [k for k in self.running() if self.memory.returning(k)]

    def swapped(self) -> list[bytes]:
        return [k for k, t in self.told.items() if t.swapped]

    def kept(self) -> list[bytes]:
        return [k for k, t in self.told.items() if not t.dropped]

    def dropped(self) -> list[bytes]:
        return [k for k, t in self.told.items() if t.dropped and t.ids]

    def choose(self, pick: int, keys: list[bytes]) -> tuple[bytes, Told]:
        assume(keys)
        key = keys[pick % len(keys)]
        return key, self.told[key]

    def new_key(self) -> bytes:
        self.count += 1
        return b"%d" % self.count

    def carry_out(
        self, copies: tuple[Copy, ...], source: list[list[Cell]], target: list[list[Cell]]
    ) -> None:
        for copy in copies:
            target[copy.target] = list(source[copy.source])

    def spill(self, copies: tuple[Copy, ...]) -> None:
        """Carry to the tier, which takes only some of it while it refuses."""
        refused, self.refuses = copies[: self.refuses], max(0, self.refuses - len(copies))
        self.carry_out(copies[len(refused) :], self.pool, self.tier)
        for copy in refused:
            self.tier[copy.target] = None
        self.memory.void(copy.target for copy in refused)

    def catch_up(self, key: bytes) -> None:
        """What came back counts as computed."""
        told = self.told[key]
        told.computed = self.memory.computed(key)
        told.kv = [told.cell(position) for position in range(told.computed)]

    def books(self) -> object:
        """All that a failed operation must leave alone."""
        live = {k: self.memory._held[k] for k in self.told}
        return (
            {k: (list(h.table), list(h.chain), h.computed, h.swapped) for k, h in live.items()},
            list(self.memory._blocks.refs),
            list(self.memory._blocks.cached),
            list(self.memory._blocks.free),
            dict(self.memory._blocks.index),
            list(self.memory._swapping.free),
        )

    def attempt(self, act: Callable[[], tuple[Copy, ...]], room: bool) -> tuple[Copy, ...] | None:
        """Do it if there should be room; if not, it must refuse and leave everything alone."""
        if room:
            copies = act()
            self.spill(self.memory.spills())
            return copies
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

    @precondition(lambda self: len(self.told) < SEQUENCES_MAX)
    @rule(ids=PROMPTS, salt=SALTS, length=st.integers(1, 14))
    def open(self, ids: list[int], salt: bytes, length: int) -> None:
        key = self.new_key()
        reused = self.memory.open(key, ids, salt)
        self.told[key] = Told(salt, list(ids))
        self.found(key, reused)
        if reused < length <= len(ids):
            self.run(key, length)

    @precondition(lambda self: self.running())
    @rule(pick=PICKS, more=st.lists(TOKENS, max_size=5), part=st.integers(1, 5))
    def advance(self, pick: int, more: list[int], part: int) -> None:
        key, told = self.choose(pick, self.running())
        told.ids += more
        length = self.memory.runnable(key, len(told.ids))
        length = min(length, told.computed + part)
        assume(length > told.computed)
        assume(not (told.adopted and self.memory.returning(key)))
        if self.run(key, length):
            self.catch_up(key)

    @precondition(lambda self: self.settled())
    @rule(pick=PICKS, ahead=st.integers(0, 9))
    def reserve(self, pick: int, ahead: int) -> None:
        key, told = self.choose(pick, self.settled())
        length = told.computed + ahead
        room = self.memory.blocks_needed(key, length) <= self.memory.free_blocks
        copies = self.attempt(lambda: self.memory.reach(key, length), room)
        self.carry_out(copies or (), self.pool, self.pool)

    @precondition(lambda self: self.running())
    @rule(pick=PICKS, tail=st.lists(TOKENS, max_size=4))
    def fork(self, pick: int, tail: list[int]) -> None:
        key, told = self.choose(pick, self.running())
        free, new = self.memory.free_blocks, self.new_key()
        self.memory.fork(key, new)
        assert self.memory.free_blocks == free
        self.told[new] = Told(
            told.salt,
            told.ids[: told.computed] + tail,
            told.computed,
            adopted=told.adopted,
            foreign=told.foreign,
            kv=list(told.kv),
        )

    @precondition(lambda self: self.kept())
    @rule(pick=PICKS, back=st.integers(0, 8), other=st.lists(TOKENS, max_size=4))
    def truncate(self, pick: int, back: int, other: list[int]) -> None:
        key, told = self.choose(pick, self.kept())
        length = max(0, told.computed - back)
        assume(not (told.adopted and self.memory.returning(key)))
        self.memory.truncate(key, length)
        told.computed, told.kv = length, told.kv[:length]
        told.foreign = min(told.foreign, length)
        told.ids = told.ids[:length] + other

    @precondition(lambda self: self.running())
    @rule(pick=PICKS)
    def swap_out(self, pick: int) -> None:
        key, told = self.choose(pick, self.running())
        held = self.memory._held[key]
        extent = max(told.computed, held.back)
        table = self.memory.table(key)[: -(-extent // self.size)]
        refs = self.memory._blocks.refs
        private = [b for i, b in enumerate(table) if refs[b] == 1 and i not in held.slots]
        room = len(private) <= len(self.memory._swapping.free)
        copies = self.attempt(lambda: self.memory.swap_out(key), room)
        if copies is not None:
            named = [b for b in private if self.memory._blocks.links[b]]
            assert sorted([*named, *(copy.source for copy in copies)]) == sorted(private)
            assert set(named) <= set(self.memory._blocks.cached)
            self.spill(() if told.adopted else copies)
            if told.adopted:  # nobody could compute it again
                self.carry_out(copies, self.pool, self.tier)
            told.swapped = True
            self.catch_up(key)

    @precondition(lambda self: self.swapped())
    @rule(pick=PICKS, blocks=st.integers(0, 9))
    def swap_in(self, pick: int, blocks: int) -> None:
        key, told = self.choose(pick, self.swapped())
        before, need = self.memory.free_blocks, self.memory.blocks_to_swap_in(key)
        start, end = self.memory.gap(key)
        assert start <= end <= told.computed
        head = 0 if told.adopted else min(start + blocks * self.size, end)
        back: list[Return] = []

        def act() -> tuple[Copy, ...]:
            back.append(self.memory.swap_in(key, head))
            return ()

        if self.attempt(act, need <= before) is not None:
            assert before - self.memory.free_blocks == need
            assert len(back[0].reads) <= need
            assert self.memory.returning(key) == (end > start)
            self.reads += [(key, copy) for copy in back[0].reads]
            told.swapped = False
            self.catch_up(key)
            assert told.computed == (start if end > start else told.computed)

    @precondition(lambda self: self.reads)
    @rule(picks=st.lists(PICKS, min_size=1, max_size=9))
    def arrive(self, picks: list[int]) -> None:
        for pick in picks:
            if self.reads:
                key, copy = self.reads.pop(pick % len(self.reads))
                found = self.tier[copy.source]
                for one in self.memory.expected(key, [copy]):
                    if found is None:  # it was refused in the same plan
                        self.memory.astray(key, [one])
                    else:
                        self.pool[one.target] = list(found)
                self.memory.arrived(key, [copy])
                if key in self.told:
                    self.catch_up(key)

    @precondition(lambda self: self.reads)
    @rule(pick=PICKS)
    def go_astray(self, pick: int) -> None:
        key, copy = self.reads[pick % len(self.reads)]
        assume(key not in self.told or not self.told[key].adopted)
        self.reads.remove((key, copy))
        self.memory.astray(key, [copy])
        assert self.memory.expected(key, [copy]) == []

    @rule(blocks=st.integers(1, 4))
    def refuse(self, blocks: int) -> None:
        self.refuses = blocks

    @precondition(lambda self: self.told)
    @rule(pick=PICKS)
    def drop(self, pick: int) -> None:
        key, told = self.choose(pick, [k for k, t in self.told.items() if not t.adopted])
        self.memory.drop(key)
        told.computed, told.kv, told.swapped, told.dropped = 0, [], False, True

    @precondition(lambda self: self.dropped())
    @rule(pick=PICKS, run=st.booleans())
    def reattach(self, pick: int, run: bool) -> None:
        key, told = self.choose(pick, self.dropped())
        told.dropped = False
        self.found(key, self.memory.reattach(key, told.ids))
        if run:
            self.run(key, len(told.ids))

    @precondition(lambda self: len(self.told) < SEQUENCES_MAX)
    @rule(num_tokens=st.integers(1, 9))
    def adopt(self, num_tokens: int) -> None:
        key = self.new_key()
        need = -(-num_tokens // self.size)
        before, room = self.memory.free_blocks, need <= self.memory.free_blocks

        def act() -> tuple[Copy, ...]:
            self.memory.adopt(key, num_tokens)
            return ()

        if self.attempt(act, room) is None:
            return
        assert before - self.memory.free_blocks == need
        cells: list[Cell] = [(b"elsewhere" + key, (i,)) for i in range(num_tokens)]
        table = self.memory.table(key)
        for position, cell in enumerate(cells):
            self.pool[table[position // self.size]][position % self.size] = cell
        self.told[key] = Told(
            b"elsewhere" + key,
            [0] * num_tokens,
            num_tokens,
            adopted=True,
            foreign=num_tokens,
            kv=cells,
        )

    @precondition(lambda self: self.told)
    @rule(pick=PICKS)
    def close(self, pick: int) -> None:
        key, _ = self.choose(pick, list(self.told))
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
TestMachine.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
