"""Leaves: sums only grow, go where their owner wants them, and are written in one way only."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, strategies as st

from starai.core.errors import InvalidRequest, MalformedFrame
from starai.settlement.leaves import (
    Leaf,
    LeafKind,
    Owner,
    Placed,
    advance,
    dust_nano,
    leaf_file,
    leaves_of,
    parse_leaf_file,
    waiting_nano,
)
from starai.settlement.tree import keccak256

NODE = Owner(LeafKind.EARNED, b"n" * 32)
OTHER = Owner(LeafKind.EARNED, b"o" * 32)
HERE, THERE = b"\x01" * 20, b"\x02" * 20

_OWNERS = [NODE, OTHER, Owner(LeafKind.SPENT, bytes(7) + b"\x01")]
_DAYS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(_OWNERS), st.integers(-(10**7), 10**9)),
        st.dictionaries(st.sampled_from(_OWNERS), st.sampled_from([HERE, THERE])),
    ),
    max_size=8,
)


def after(days) -> list[dict[Placed, int]]:
    """The running sums after each day."""
    sums: dict[Placed, int] = {}
    seen = []
    for flows, addresses in days:
        sums = {**sums, **advance(sums, flows, addresses)}
        seen.append(sums)
    return seen


def test_a_leaf_is_hashed_as_solidity_encodes_it() -> None:
    """A leaf is the double hash of three words: kind, address and amount."""
    words = (1).to_bytes(32, "big") + bytes(12) + HERE + (5).to_bytes(32, "big")
    assert Leaf(LeafKind.SPENT, HERE, 5).hash() == keccak256(keccak256(words))
    assert Leaf(LeafKind.EARNED, HERE, 5).hash() != Leaf(LeafKind.SPENT, HERE, 5).hash()


@pytest.mark.parametrize("leaf", [(HERE[:19], 1), (HERE + b"x", 1), (HERE, -1), (HERE, 1 << 256)])
def test_a_malformed_leaf_is_refused(leaf: tuple[bytes, int]) -> None:
    """An address of another length or an amount out of range is no leaf."""
    with pytest.raises(InvalidRequest):
        Leaf(LeafKind.EARNED, *leaf).hash()


def test_fractions_of_a_unit_are_paid_later() -> None:
    """The sum is floored, not each day's part, so nothing is lost over many days."""
    days = [({NODE: 400}, {NODE: HERE})] * 5
    seen = after(days)
    assert [[leaf.units for leaf in leaves_of(sums)] for sums in seen] == [[], [], [1], [1], [2]]
    assert [dust_nano(sums) for sums in seen] == [400, 800, 200, 600, 0]


def test_a_new_address_gets_what_comes_after_it() -> None:
    """What the old address has got stays there, and nothing is there twice."""
    sums = after([({NODE: 5000}, {NODE: HERE}), ({NODE: 2000}, {NODE: THERE})])[-1]
    assert leaves_of(sums) == [Leaf(LeafKind.EARNED, HERE, 5), Leaf(LeafKind.EARNED, THERE, 2)]


def test_nodes_of_one_owner_share_a_leaf() -> None:
    """Two nodes with one address have one leaf, over the sum of both."""
    sums = after([({NODE: 1500, OTHER: 1500}, {NODE: HERE, OTHER: HERE})])[-1]
    assert leaves_of(sums) == [Leaf(LeafKind.EARNED, HERE, 3)]


def test_a_node_without_an_address_waits() -> None:
    """Earnings wait for an address as long as it takes, and then are placed as a whole."""
    seen = after([({NODE: 3000}, {}), ({}, {}), ({NODE: 1}, {NODE: HERE})])
    assert [waiting_nano(sums, LeafKind.EARNED) for sums in seen] == [3000, 3000, 0]
    assert [len(leaves_of(sums)) for sums in seen] == [0, 0, 1]


def test_a_customer_that_spent_nothing_has_a_leaf() -> None:
    """Each address of a customer has one, of nothing or of less than a unit; a node's has not."""
    idle, thrifty = (Owner(LeafKind.SPENT, bytes(7) + bytes([number])) for number in (1, 2))
    seen = after(
        [
            ({NODE: 999, thrifty: 999}, {NODE: HERE, idle: HERE, thrifty: THERE}),
            ({}, {NODE: HERE, idle: HERE, thrifty: THERE}),
            ({idle: 5000}, {idle: THERE}),
        ]
    )
    nothing = [Leaf(LeafKind.SPENT, HERE, 0), Leaf(LeafKind.SPENT, THERE, 0)]
    assert leaves_of(seen[0]) == leaves_of(seen[1]) == nothing
    assert leaves_of(seen[2]) == [nothing[0], Leaf(LeafKind.SPENT, THERE, 5)]


@given(_DAYS)
def test_every_address_of_a_customer_has_a_leaf(days) -> None:
    """Whoever named an address by a day's end has a leaf there in that day's tree."""
    named: set[bytes] = set()
    for (_, addresses), sums in zip(days, after(days), strict=True):
        named.update(at for owner, at in addresses.items() if owner.kind is LeafKind.SPENT)
        there = {leaf.address for leaf in leaves_of(sums) if leaf.kind is LeafKind.SPENT}
        assert there == named


@given(_DAYS)
def test_leaves_never_fall_and_never_exceed_what_was_got(days) -> None:
    """Whatever days bring: no leaf shrinks, and no owner's places hold more than its best total."""
    before: dict[tuple[LeafKind, bytes], int] = {}
    most: defaultdict[Owner, int] = defaultdict(int)
    for sums in after(days):
        now = {(leaf.kind, leaf.address): leaf.units for leaf in leaves_of(sums)}
        assert all(now.get(place, 0) >= units for place, units in before.items())
        before = now
        placed: defaultdict[Owner, int] = defaultdict(int)
        for at, nano in sums.items():
            owner = Owner(at.kind, at.key)
            if at.address:
                placed[owner] += nano
            else:
                most[owner] = max(most[owner], nano)
        assert all(nano <= most[owner] for owner, nano in placed.items())
        assert 0 <= dust_nano(sums) < 1000 * max(1, len(now) + len(_OWNERS))


@given(_DAYS)
def test_the_leaf_file_is_read_back(days) -> None:
    """What is written is read back, but for sums that came to nothing."""
    for sums in after(days):
        text = leaf_file(sums)
        assert parse_leaf_file(text) == {
            at: nano for at, nano in sums.items() if nano or at.address
        }
        assert leaf_file(parse_leaf_file(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "earned 00 - 1",
        "earned 00 - 01\n",
        "earned 00 - 0\n",
        "lent 00 - 1\n",
        "earned 0 - 1\n",
        "earned 00 -  1\n",
        "earned AA - 1\n",
        "earned 01 - 1\nearned 00 - 1\n",
        "earned 00 - 1\nearned 00 - 1\n",
        "\n",
    ],
)
def test_no_other_spelling_is_a_leaf_file(text: str) -> None:
    """A file that is not exactly what would be written is refused."""
    with pytest.raises(MalformedFrame):
        parse_leaf_file(text)
