"""The chain of blocks: bytes that no other block has, and a chain that cannot be bent."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, strategies as st

from starai.core.errors import Conflict, MalformedFrame
from starai.ledger.blocks import NO_BLOCK, Block, check_follows

FIRST = Block(
    network="test",
    height=0,
    prev=NO_BLOCK,
    first_task=1,
    last_task=5,
    num_tasks=5,
    tree_size=5,
    log_root=b"l" * 32,
    first_transfer=1,
    last_transfer=0,
    transfers_root=b"t" * 32,
    books_hash=b"b" * 32,
    total_debits=1 << 80,
    closed_ms=1_000,
)
NEXT = msgspec.structs.replace(
    FIRST,
    height=1,
    prev=FIRST.hash(),
    first_task=6,
    last_task=9,
    num_tasks=3,
    tree_size=8,
    last_transfer=4,
    closed_ms=1_000,
)

_HASH = st.binary(min_size=32, max_size=32)
_NUMBER = st.integers(0, (1 << 63) - 1)
_BLOCKS = st.builds(
    Block,
    network=st.text(max_size=20),
    height=_NUMBER,
    prev=_HASH,
    first_task=_NUMBER,
    last_task=_NUMBER,
    num_tasks=_NUMBER,
    tree_size=_NUMBER,
    log_root=_HASH,
    first_transfer=_NUMBER,
    last_transfer=_NUMBER,
    transfers_root=_HASH,
    books_hash=_HASH,
    total_debits=st.integers(0, (1 << 127) - 1),
    closed_ms=_NUMBER,
)


@given(_BLOCKS, _BLOCKS)
def test_bytes_say_exactly_one_block(one: Block, other: Block) -> None:
    """A block comes back from its bytes, and two blocks share bytes or hash only if equal."""
    assert Block.parse(one.canonical()) == one
    assert (one == other) == (one.canonical() == other.canonical()) == (one.hash() == other.hash())


def test_the_bytes_are_fixed_for_ever() -> None:
    """The first block's bytes, as a verifier that was written from the text alone has them."""
    data = FIRST.canonical()
    assert data[:31].hex() == "0000000f" + b"starai/v1/block".hex() + "00000004" + b"test".hex() + (
        "00000008"
    )
    assert len(data) == 19 + 8 + 4 * 36 + 8 * 12 + 20
    assert data.endswith(b"\x00\x00\x00\x08" + (1_000).to_bytes(8, "big"))


@given(st.binary(max_size=400), st.integers(0, 400))
def test_damaged_bytes_are_no_block(rubbish: bytes, place: int) -> None:
    """Rubbish, and a block's bytes with something put in, cut or changed, are refused."""
    data = FIRST.canonical()
    for wrong in (rubbish, data[:place] + rubbish + data[place:], data[: place % len(data)]):
        if wrong != data:
            with pytest.raises(MalformedFrame):
                Block.parse(wrong)


@pytest.mark.parametrize(
    "change",
    [{"height": -1}, {"height": 1 << 63}, {"total_debits": 1 << 127}, {"prev": b""}],
)
def test_fields_out_of_range_have_no_bytes(change: dict[str, object]) -> None:
    """What its field cannot hold is refused, not cut."""
    with pytest.raises(MalformedFrame):
        msgspec.structs.replace(FIRST, **change).canonical()


def test_a_chain_begins_and_goes_on() -> None:
    """The first block begins it, the next one follows; gaps in row numbers do no harm."""
    check_follows(FIRST, None)
    check_follows(NEXT, FIRST)
    nothing = msgspec.structs.replace(
        NEXT, height=2, prev=NEXT.hash(), first_task=10, num_tasks=0, first_transfer=5
    )
    check_follows(nothing, NEXT)


@pytest.mark.parametrize(
    "change",
    [
        {"height": 2},
        {"prev": NO_BLOCK},
        {"first_task": 7},
        {"first_transfer": 2},
        {"tree_size": 9},
        {"num_tasks": 5, "tree_size": 10},
        {"network": "other"},
        {"total_debits": 0},
        {"closed_ms": 999},
        {"last_transfer": -1},
        {"last_task": 4, "num_tasks": 0, "tree_size": 5},
    ],
)
def test_what_does_not_follow_is_refused(change: dict[str, object]) -> None:
    """A gap, another past, a wrong count, less money or an earlier time: no next block."""
    with pytest.raises(Conflict):
        check_follows(msgspec.structs.replace(NEXT, **change), FIRST)


@pytest.mark.parametrize("change", [{"height": 1}, {"prev": b"p" * 32}, {"first_task": 0}])
def test_a_chain_begins_in_one_way(change: dict[str, object]) -> None:
    """A first block has height 0, no block before, and all rows since the first."""
    with pytest.raises(Conflict):
        check_follows(msgspec.structs.replace(FIRST, **change), None)
