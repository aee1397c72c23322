"""Paged memory, example by example."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from starai.core.errors import ConfigurationRefused, InternalFault
from starai.engines.paging.blocks import Blocks
from starai.engines.paging.chain import Link
from starai.engines.paging.cost import Rates
from starai.engines.paging.memory import Copy, OutOfBlocks, PagedMemory

A, B, C, D = b"a", b"b", b"c", b"d"
IDS = list(range(100, 200))


def run(memory: PagedMemory, key: bytes, ids: list[int], salt: bytes = b"") -> int:
    """A sequence's prompt, from opening to the noted pass; how much of it was reused."""
    reused = memory.open(key, ids, salt)
    memory.reach(key, len(ids))
    memory.note(key, ids, len(ids))
    memory.check_integrity()
    return reused


def test_a_sequence_owns_as_many_blocks_as_its_length_needs() -> None:
    """ceil(length / block) blocks, growing one at a time."""
    memory = PagedMemory(8, block_tokens=4)
    memory.open(A, IDS[:4])
    for length in range(1, 33):
        assert memory.blocks_needed(A, length) == (length % 4 == 1)
        assert memory.reach(A, length) == ()
        assert len(memory.table(A)) == -(-length // 4)
        assert memory.free_blocks == 8 - len(memory.table(A))
    with pytest.raises(OutOfBlocks):
        memory.reach(A, 33)
    memory.check_integrity()
    memory.close(A)
    assert memory.free_blocks == 8


def test_a_finished_prompt_is_found_again_but_for_its_last_token() -> None:
    """Whole blocks are reused; at least one token is left to run."""
    memory = PagedMemory(16, block_tokens=4)
    run(memory, A, IDS[:10])
    first = list(memory.table(A))
    assert run(memory, B, IDS[:10]) == 8
    assert list(memory.table(B))[:2] == first[:2]
    assert run(memory, C, IDS[:8]) == 4
    memory.close(A)
    memory.close(B)
    assert run(memory, D, [*IDS[:6], 1, 2, 3]) == 4


def test_tenants_never_share() -> None:
    """The same prompt under another salt finds nothing."""
    memory = PagedMemory(16, block_tokens=4)
    run(memory, A, IDS[:9], b"x")
    assert run(memory, B, IDS[:9], b"y") == 0
    assert run(memory, C, IDS[:9], b"x") == 8


def test_the_first_writer_of_a_shared_block_copies_it() -> None:
    """After a fork one side copies the last, partial block and the other keeps it."""
    memory = PagedMemory(8, block_tokens=4)
    run(memory, A, IDS[:6])
    memory.fork(A, B)
    table = list(memory.table(A))
    assert memory.table(B) == table
    assert memory.blocks_needed(A, 7) == 1
    assert memory.reach(A, 7) == (Copy(table[1], memory.table(A)[1]),)
    assert memory.blocks_needed(B, 7) == 0
    assert memory.reach(B, 7) == ()
    assert memory.table(B) == table
    memory.check_integrity()


def test_swapping_returns_a_sequence_exactly() -> None:
    """What left for the tier comes back; shared blocks never left."""
    memory = PagedMemory(8, block_tokens=4, tier_blocks=2)
    run(memory, A, IDS[:8])
    memory.fork(A, B)
    memory.reach(B, 9)
    memory.note(B, IDS[:9], 9)
    shared = list(memory.table(A))
    out = memory.swap_out(B)
    assert len(out) == 1
    assert memory.is_swapped(B)
    memory.check_integrity()
    with pytest.raises(InternalFault):
        memory.reach(B, 10)
    back = memory.swap_in(B)
    assert [c.source for c in back.reads] == [c.target for c in out]
    assert list(memory.table(B))[:2] == shared
    assert memory.computed(B) == 8
    memory.arrived(B, back.reads)
    assert memory.computed(B) == 9
    memory.check_integrity()


def test_who_comes_back_is_read_in_part_and_computed_in_part() -> None:
    """The head of what is missing may be computed, its tail arrives in any order; then it is there.

    Nobody else finds a block before its content is there.
    """
    memory = PagedMemory(6, block_tokens=4, tier_blocks=6)
    run(memory, A, IDS[:18])
    memory.swap_out(A)
    run(memory, B, [1] * 24)
    memory.close(B)
    assert memory.gap(A) == (0, 18)
    back = memory.swap_in(A, compute_to=8)
    assert (memory.computed(A), memory.extent(A)) == (0, 18)
    assert len(back.reads) == 3
    assert memory.runnable(A, 19) == 8
    memory.arrived(A, back.reads[1:])
    memory.note(A, IDS, 4)
    memory.check_integrity()
    assert (memory.computed(A), memory.runnable(A, 19)) == (4, 8)
    assert memory.open(C, IDS) == 4
    memory.close(C)
    memory.note(A, IDS, 8)
    assert memory.runnable(A, 19) == 8
    memory.arrived(A, back.reads)
    assert (memory.computed(A), memory.runnable(A, 19)) == (18, 19)
    assert not memory.returning(A)
    assert memory.open(C, IDS) == 16
    assert memory.report().tier_used == 0
    assert memory.report().head_tokens == 8
    memory.check_integrity()


def test_what_never_arrives_is_computed() -> None:
    """A read that goes astray, or a slot that was not written, opens its tokens to computing."""
    memory = PagedMemory(6, block_tokens=4, tier_blocks=6)
    run(memory, A, IDS[:18])
    refused = memory.swap_out(A)[0].target
    run(memory, B, [1] * 24)
    memory.void([refused])
    memory.close(B)
    back = memory.swap_in(A)
    assert len(back.reads) == 4
    assert memory.runnable(A, 19) == 0
    memory.astray(A, back.reads[:1])
    assert memory.runnable(A, 19) == 4
    memory.arrived(A, back.reads)
    memory.note(A, IDS, 4)
    assert (memory.computed(A), memory.runnable(A, 19)) == (16, 19)
    memory.note(A, IDS, 18)
    assert not memory.returning(A)
    memory.check_integrity()


def test_what_went_astray_once_is_not_read_again() -> None:
    """Who gives way before that was computed has it computed the next time."""
    memory = PagedMemory(6, block_tokens=4, tier_blocks=6)
    run(memory, A, IDS[:18])
    memory.swap_out(A)
    run(memory, B, [1] * 24)
    memory.close(B)
    back = memory.swap_in(A)
    memory.astray(A, back.reads[1:2])
    memory.swap_out(A)
    again = memory.swap_in(A)
    assert {copy.source for copy in again.reads} == {
        copy.source for copy in (back.reads[0], *back.reads[2:])
    }
    memory.check_integrity()


def test_who_gives_way_on_its_way_back_loses_nothing() -> None:
    """What was not there yet stays in the tier; a read for the first return is not one of the next.

    A fork shares what is there only, and closing gives everything back.
    """
    memory = PagedMemory(8, block_tokens=4, tier_blocks=6)
    run(memory, A, IDS[:18])
    memory.swap_out(A)
    run(memory, B, [1] * 32)
    memory.close(B)
    back = memory.swap_in(A, compute_to=4)
    memory.note(A, IDS, 2)
    memory.fork(A, C)
    assert memory.computed(C) == 2
    assert len(memory.reach(C, 3)) == 1
    memory.close(C)
    assert memory.swap_out(A) == ()
    assert memory.computed(A) == 18
    assert memory.expected(A, back.reads) == []
    memory.check_integrity()
    assert len(memory.swap_in(A).reads) == 5
    memory.close(A)
    memory.arrived(A, back.reads)
    memory.astray(A, back.reads)
    assert memory.free_blocks == 8
    assert memory.report().tier_used == 0
    memory.check_integrity()


def test_the_cache_evicts_what_was_released_longest_ago_and_ends_before_beginnings() -> None:
    """LRU by release; of one sequence, the last block goes first."""
    memory = PagedMemory(6, block_tokens=2)
    run(memory, A, IDS[:6])
    memory.close(A)
    other = list(range(6))
    run(memory, B, other)
    memory.close(B)
    assert memory.report().blocks_cached == 6
    memory.open(C, [9, 9, 9])
    memory.reach(C, 3)
    # Two of A's three blocks went, its first one stayed; nothing of B's went.
    assert memory.open(D, [*IDS[:6], 9]) == 2
    assert memory.open(b"e", [*other, 9]) == 6
    assert memory.report().evictions == 2
    memory.check_integrity()


def test_using_a_cached_block_makes_it_young() -> None:
    """What was found and released again outlives what was not."""
    memory = PagedMemory(4, block_tokens=2)
    for key, token in ((A, 1), (B, 2)):
        run(memory, key, [token] * 4)
        memory.close(key)
    assert memory.open(C, [1] * 5) == 4
    memory.close(C)
    memory.open(D, [3] * 4)
    memory.reach(D, 4)
    assert memory.open(b"e", [1] * 5) == 4
    assert memory.open(b"f", [2] * 5) == 0


def test_what_runs_is_never_evicted() -> None:
    """Only blocks without a holder make room."""
    memory = PagedMemory(3, block_tokens=2)
    run(memory, A, IDS[:4])
    memory.open(B, [1] * 4)
    with pytest.raises(OutOfBlocks):
        memory.reach(B, 4)
    assert memory.reach(B, 2) == ()
    assert memory.report().evictions == 0


def test_a_hit_needs_the_same_tokens_not_only_the_same_digest() -> None:
    """Were two blocks to have one digest, the second would not be served the first's KV."""
    blocks = Blocks(2)
    block = blocks.take()
    blocks.publish(block, Link(b"digest", b"one"))
    assert blocks.find(Link(b"digest", b"one")) == block
    assert blocks.find(Link(b"digest", b"two")) is None


def test_two_that_compute_the_same_keep_their_own_blocks() -> None:
    """No table is rewritten; the first to be done is found."""
    memory = PagedMemory(8, block_tokens=4)
    for key in (A, B):
        memory.open(key, IDS[:9])
        memory.reach(key, 9)
    for key in (A, B):
        memory.note(key, IDS[:9], 9)
    assert not set(memory.table(A)) & set(memory.table(B))
    memory.open(C, IDS[:9])
    assert list(memory.table(C)) == list(memory.table(A))[:2]
    memory.close(B)
    memory.check_integrity()
    assert memory.report().blocks_cached == 0


def test_rolling_back_into_a_findable_block_makes_it_unfindable() -> None:
    """What was found before the rollback is written anew, so nobody may find it."""
    memory = PagedMemory(4, block_tokens=4)
    run(memory, A, IDS[:4])
    memory.truncate(A, 2)
    assert memory.reach(A, 3) == ()
    memory.check_integrity()
    assert memory.open(B, IDS[:5]) == 0


def test_rolling_back_into_a_block_that_another_found_copies_it() -> None:
    """The finder keeps what it found."""
    memory = PagedMemory(4, block_tokens=4)
    run(memory, A, IDS[:4])
    memory.open(B, IDS[:5])
    memory.truncate(A, 2)
    before = memory.table(A)[0]
    assert memory.reach(A, 3) == (Copy(before, memory.table(A)[0]),)
    assert list(memory.table(B)) == [before]
    memory.check_integrity()


def test_a_dropped_sequence_finds_its_beginning_again() -> None:
    """What the cache kept is attached, the rest counts as recomputed."""
    memory = PagedMemory(4, block_tokens=4)
    run(memory, A, IDS[:11])
    memory.drop(A)
    assert memory.free_blocks == 4
    assert memory.computed(A) == 0
    run(memory, B, [1] * 12)
    assert memory.reattach(A, IDS[:11]) == 4
    assert memory.report().recomputed_tokens == 7
    memory.check_integrity()


def test_a_swapped_sequence_takes_from_the_cache_what_is_still_there() -> None:
    """Swapping in right after swapping out copies only what could not be found."""
    memory = PagedMemory(4, block_tokens=4, tier_blocks=4)
    run(memory, A, IDS[:10])
    assert len(memory.swap_out(A)) == 1
    assert memory.blocks_to_swap_in(A) == 3
    back = memory.swap_in(A)
    assert len(back.reads) == 1
    memory.arrived(A, back.reads)
    assert memory.spills() == ()
    table = list(memory.table(A))
    memory.swap_out(A)
    run(memory, B, [1] * 16)
    spilled = memory.spills()
    assert [copy.source for copy in spilled] == table[1::-1], "the end goes first"
    assert memory.spills() == ()
    memory.close(B)
    back = memory.swap_in(A)
    assert len(back.reads) == 3
    memory.arrived(A, back.reads)
    assert {copy.source for copy in back.reads} > {copy.target for copy in spilled}
    memory.close(A)
    # What came back from the tier can be found again.
    assert memory.open(C, IDS[:10]) == 8


def test_a_shared_block_neither_leaves_nor_comes_back() -> None:
    """Swapping in takes nothing for blocks that others hold, even if they were private before."""
    memory = PagedMemory(6, block_tokens=4, tier_blocks=4)
    run(memory, A, IDS[:10])
    memory.swap_out(A)
    memory.open(B, IDS[:10])
    assert memory.blocks_to_swap_in(A) == 1
    free = memory.free_blocks
    assert len(memory.swap_in(A).reads) == 1
    assert memory.free_blocks == free - 1
    memory.check_integrity()


def test_what_was_owed_to_a_sequence_that_ended_is_carried_nowhere() -> None:
    """Its slots may belong to another by the time the copies are made."""
    memory = PagedMemory(4, block_tokens=4, tier_blocks=4)
    run(memory, A, IDS[:8])
    memory.swap_out(A)
    run(memory, B, [1] * 16)
    memory.drop(A)
    first = memory.swap_out(B)
    memory.open(C, [2] * 9)
    memory.reach(C, 9)
    targets = [copy.target for copy in (*first, *memory.spills())]
    assert len(targets) == len(set(targets)) == 3
    memory.check_integrity()


def test_what_is_overwritten_is_carried_away_first() -> None:
    """A block that somebody found, cut back and goes on writing in was owed to the tier."""
    memory = PagedMemory(8, block_tokens=4, tier_blocks=8)
    run(memory, A, IDS[:8])
    block = memory.table(A)[1]
    memory.swap_out(A)
    run(memory, B, IDS[:9])
    memory.truncate(B, 6)
    memory.reach(B, 7)
    assert [copy.source for copy in memory.spills()] == [block]
    memory.check_integrity()
    assert len(memory.swap_in(A).reads) == 1
    memory.check_integrity()


def test_a_full_tier_refuses_and_changes_nothing() -> None:
    """OutOfBlocks from swap_out leaves the sequence running."""
    memory = PagedMemory(4, block_tokens=4, tier_blocks=1)
    run(memory, A, IDS[:8])
    with pytest.raises(OutOfBlocks):
        memory.swap_out(A)
    assert not memory.is_swapped(A)
    assert memory.reach(A, 9) == ()
    memory.check_integrity()


def test_adopted_kv_is_never_found_by_others() -> None:
    """It came from elsewhere, so it has no chain."""
    memory = PagedMemory(8, block_tokens=4)
    memory.adopt(A, 8)
    assert memory.computed(A) == 8
    memory.reach(A, 12)
    memory.note(A, IDS[:12], 12)
    assert memory.open(B, IDS[:12]) == 0
    memory.close(A)
    assert memory.free_blocks == 8
    assert memory.report().blocks_cached == 0


def test_without_sharing_nothing_is_found() -> None:
    """share_prefixes=False keeps no index."""
    memory = PagedMemory(8, block_tokens=4, share_prefixes=False)
    run(memory, A, IDS[:9])
    assert run(memory, B, IDS[:9]) == 0
    memory.close(A)
    assert memory.report().blocks_cached == 0


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("prompt", [15, 16, 17, 100])
def test_forks_save_what_the_formula_says(n: int, prompt: int) -> None:
    """N answers to one prompt take (n - 1) times its full blocks less than n sequences alone."""
    ids = list(range(prompt))
    shared, alone = PagedMemory(400), PagedMemory(400, share_prefixes=False)
    keys = [b"%d" % i for i in range(n)]
    run(shared, keys[0], ids)
    for key in keys[1:]:
        shared.fork(keys[0], key)
    for i, key in enumerate(keys):
        run(alone, key, ids)
        for memory in (shared, alone):
            memory.reach(key, prompt + 20)
            memory.note(key, [*ids, *[i] * 20], prompt + 20)
    full = prompt // 16
    report = shared.report()
    assert shared.free_blocks - alone.free_blocks == (n - 1) * full
    assert report.sharing_saves_blocks == report.formula_saves_blocks == (n - 1) * full
    assert report.seed_formula_blocks == n * full
    assert report.copies == (n - 1 if prompt % 16 else 0)


def test_mistakes_of_the_caller_are_faults() -> None:
    """Unknown keys, keys used twice and impossible lengths are told, not guessed at."""
    memory = PagedMemory(4, block_tokens=4, tier_blocks=4)
    run(memory, A, IDS[:4])
    for mistake in (
        lambda: memory.open(A, IDS[:4]),
        lambda: memory.fork(A, A),
        lambda: memory.adopt(A, 1),
        lambda: memory.reach(B, 1),
        lambda: memory.close(B),
        lambda: memory.note(A, IDS[:4], 3),
        lambda: memory.note(A, IDS[:9], 5),
        lambda: memory.note(A, IDS[:4], 5),
        lambda: memory.swap_in(A),
        lambda: memory.reattach(A, IDS[:4]),
    ):
        with pytest.raises(InternalFault):
            mistake()
        memory.check_integrity()
    with pytest.raises(ConfigurationRefused, match="at least one block"):
        PagedMemory(0)


def test_each_broken_book_is_noticed() -> None:
    """check_integrity finds a wrong count, a lost block, a lost slot, a wrong name."""

    def broken(breaking: Callable[[PagedMemory], object]) -> None:
        memory = PagedMemory(6, block_tokens=4, tier_blocks=2)
        run(memory, A, IDS[:6])
        run(memory, B, [*IDS[:6], 7])
        memory.close(B)
        breaking(memory)
        with pytest.raises(InternalFault, match="inconsistent"):
            memory.check_integrity()

    broken(lambda m: m._blocks.refs.__setitem__(0, 2))
    broken(lambda m: m._blocks.free.pop())
    broken(lambda m: m._blocks.free.append(m._blocks.free[0]))
    broken(lambda m: m._swapping.free.pop())
    broken(lambda m: m._blocks.index.clear())
    broken(lambda m: m._held[A].table.pop())
    broken(lambda m: m._held[A].chain.pop())
    broken(lambda m: m._blocks.unpublish(m.table(A)[0]) or m._blocks.index.update({b"x": 0}))


def test_the_report_reads_well() -> None:
    """It counts waste, reuse, sharing and, told rates, milliseconds."""
    memory = PagedMemory(10, block_tokens=4, tier_blocks=4)
    run(memory, A, IDS[:10])
    run(memory, B, IDS[:10])
    report = memory.report()
    # A takes 3 blocks, B one of its own: 10 + 2 tokens in 16 places.
    assert (report.blocks_used, report.tokens_held, report.tokens_served) == (4, 12, 20)
    assert report.waste == pytest.approx(0.25)
    assert report.reuse == pytest.approx(8 / 20)
    assert report.page_faults == 4
    text = report.render(2**20, Rates(2**30, 2**31, 1000.0))
    for line in (
        "blocks       4 used, 0 cached, 6 free, of 4 tokens each",
        "waste        25.0% (12 tokens held, 20 served to 2 sequences)",
        "reuse        40.0% (8 of 20 looked-up tokens)",
        (
            "S_COW        2 blocks (2.0 MiB) saved by sharing now; formula (n-1): 2, "
            "the seed's (n): 4; 0 copies made"
        ),
        "S_swap       1.465 ms a block, out and in",
        "S_recompute  4.000 ms a block, at a sequence's start",
    ):
        assert line in text.splitlines()
    assert "S_swap" not in str(report)


def test_bookkeeping_is_cheap_with_ten_thousand_sequences() -> None:
    """A decode token that crosses no block boundary costs a few microseconds of CPU time."""
    memory = PagedMemory(20_000)
    sequences = {b"%d" % i: [i, *range(4)] for i in range(10_000)}
    for key, ids in sequences.items():
        memory.open(key, ids)
        memory.reach(key, 5)
        memory.note(key, ids, 5)
    took = []
    for length in range(6, 12):
        start = time.process_time()
        for key, ids in sequences.items():
            ids.append(length)
            memory.reach(key, length)
            memory.note(key, ids, length)
        took.append((time.process_time() - start) / len(sequences))
    assert min(took) < 10e-6
