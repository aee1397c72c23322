"""Paged memory, example by example."""

from __future__ import annotations

import pytest

from starai.core.errors import InternalFault
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
    assert [c.source for c in back] == [c.target for c in out]
    assert list(memory.table(B))[:2] == shared
    memory.check_integrity()
