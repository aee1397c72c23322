"""The index of prompt beginnings: chained, bounded, and without prompts."""

from __future__ import annotations

import sys
import tracemalloc

import pytest
from hypothesis import given, strategies as st

from starai.matching import PrefixIndex, block_hashes
from starai.matching.prefixes import (
    BELIEVED,
    BLOCK_TOKENS,
    BLOCKS_MAX,
    PARTIES_MAX,
)

KEY = b"k" * 32
BLOCK = BELIEVED * BLOCK_TOKENS


def prompt(*blocks: int, rest: int = 0) -> bytes:
    """Token ids: each block holds one number all over; ``rest`` tokens follow."""
    ids = [number for number in blocks for _ in range(BLOCK_TOKENS)] + [0] * rest
    return b"".join(one.to_bytes(4, "little") for one in ids)


def hashes(*blocks: int, rest: int = 0, scope: bytes = b"m") -> list[int]:
    return block_hashes(KEY, scope, prompt(*blocks, rest=rest))


def test_equal_beginnings_have_equal_hashes_and_nothing_else_has() -> None:
    """A block's hash covers all before it, the model and the tenant."""
    assert hashes(1, 2, 3)[:2] == hashes(1, 2, 9)[:2]
    assert hashes(1, 2, 3)[2] != hashes(1, 2, 9)[2]
    assert hashes(9, 2)[1] != hashes(1, 2)[1]
    assert set(hashes(1, 2)).isdisjoint(hashes(1, 2, scope=b"other"))
    assert set(hashes(1, 2)).isdisjoint(block_hashes(b"other", b"m", prompt(1, 2)))


def test_only_full_blocks_count_and_only_so_many() -> None:
    """A short prompt has no blocks; a huge one is hashed up to a bound."""
    assert hashes(rest=BLOCK_TOKENS - 1) == []
    assert len(hashes(1, rest=5)) == 1
    assert len(hashes(*range(BLOCKS_MAX + 5))) == BLOCKS_MAX


def test_the_longest_common_beginning_is_found_for_each_party() -> None:
    """Two parties with different parts of a prompt have different credit."""
    index = PrefixIndex()
    index.add(hashes(1, 2, 3), "long")
    index.add(hashes(1, 7), "short")
    assert index.find(hashes(1, 2, 3, 4)) == {"long": 3 * BLOCK, "short": BLOCK}
    assert index.find(hashes(5)) == {}


def test_a_party_that_is_gone_is_forgotten_everywhere() -> None:
    """When it comes back it has nothing yet."""
    index = PrefixIndex()
    index.add(hashes(1, 2), "a")
    index.forget("a")
    index.forget("a")
    assert index.find(hashes(1, 2)) == {}
    index.add(hashes(1), "a")
    assert index.find(hashes(1, 2)) == {"a": BLOCK}
    assert index.num_parties == 1


def test_a_block_keeps_its_latest_holders() -> None:
    """A system prompt that everybody has read names a few of them, not all."""
    index = PrefixIndex()
    for number in range(50):
        index.add(hashes(1), f"{number}")
    assert set(index.find(hashes(1))) == {str(n) for n in range(50 - PARTIES_MAX, 50)}


def test_what_is_used_stays_and_a_beginning_outlives_its_ends() -> None:
    """Eviction takes the ends of old prompts first, so that what remains is still of use."""
    index = PrefixIndex(entries_max=4)
    index.add(hashes(1, 2, 3), "a")
    index.add(hashes(8, 9), "b")
    assert index.find(hashes(1, 2, 3)) == {"a": 2 * BLOCK}
    index.add(hashes(1, 2), "a")
    index.add(hashes(6, 7), "c")
    assert index.find(hashes(1, 2)) == {"a": 2 * BLOCK}
    assert index.find(hashes(8, 9)) == {}


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 3), max_size=6), st.sampled_from("abc"), st.booleans()),
        max_size=30,
    )
)
def test_it_never_outgrows_its_bound_nor_claims_what_was_not_added(
    steps: list[tuple[list[int], str, bool]],
) -> None:
    """Against a table of everything added since a party was last forgotten."""
    index = PrefixIndex(entries_max=8)
    added: dict[str, list[list[int]]] = {}
    for blocks, party, forget in steps:
        if forget:
            index.forget(party)
            added.pop(party, None)
        else:
            index.add(hashes(*blocks), party)
            added.setdefault(party, []).append(blocks)
        assert len(index) <= 8
        for known, credit in index.find(hashes(*blocks)).items():
            shared = round(credit / BLOCK)
            assert any(one[:shared] == blocks[:shared] for one in added[known])


@pytest.mark.slow
def test_a_full_index_fits_into_its_memory() -> None:
    """The index at its bound takes less than 10 MB."""
    tracemalloc.start()
    index = PrefixIndex()
    for number in range(600):
        index.add(hashes(*range(number * 100, number * 100 + 60)), f"{number % 100}")
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert sys.getsizeof(index) < size < 10e6
