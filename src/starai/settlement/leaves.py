"""What a day's tree says: how much each address earned, or each customer's address spent, ever.

Amounts only grow, so a claim is the difference to what was claimed before, and a day that was
missed loses nothing. Books count nano-USD, tokens have six decimals: `token_units` floors what
an address has *ever* got, so the rest of a unit is paid with a later day. A node or a customer may
change its address: what the old one has got stays there. Several may share one: it gets one leaf.
Every address of a customer has one, be it of nothing: deposits are taken back against it.
Knows nothing of databases, nor of how a contract is called.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from starai.core.errors import InvalidRequest, MalformedFrame
from starai.settlement.tree import MerkleTree, keccak256

ADDRESS_BYTES: Final = 20
#: Nano-USD in one base unit of a token with six decimals.
NANO_PER_UNIT: Final = 1000
_UINT256_END: Final = 1 << 256


class LeafKind(enum.IntEnum):
    """Which side of the books a leaf is about; it is hashed too, so neither passes for both."""

    EARNED = 0
    SPENT = 1


class Leaf(NamedTuple):
    """One line of the tree: ``units`` base units of the token, ever."""

    kind: LeafKind
    address: bytes
    units: int

    def hash(self) -> bytes:
        """``keccak(keccak(abi.encode(uint256 kind, address, uint256 units)))``.

        Hashed twice, so that the 64 bytes of an inner node cannot be a leaf.

        Raises:
            InvalidRequest: the address has not 20 bytes, or the amount is out of range.
        """
        if len(self.address) != ADDRESS_BYTES or not 0 <= self.units < _UINT256_END:
            raise InvalidRequest("a leaf has an address of 20 bytes and a uint256 amount")
        word = self.kind.to_bytes(32, "big") + bytes(12) + self.address
        return keccak256(keccak256(word + self.units.to_bytes(32, "big")))


class Owner(NamedTuple):
    """Whose money a leaf is about: a node by its raw key, a customer by its number in 8 bytes."""

    kind: LeafKind
    key: bytes


class Placed(NamedTuple):
    """One running sum: what of an owner's money went to an address, ever.

    With an empty address it is all that the owner ever got, whether an address was there or not.
    """

    kind: LeafKind
    key: bytes
    address: bytes = b""


def token_units(nano: int) -> int:
    """Whole base units of a token with six decimals in ``nano`` nano-USD."""
    return nano // NANO_PER_UNIT


def advance(
    sums: Mapping[Placed, int], flows: Mapping[Owner, int], addresses: Mapping[Owner, bytes]
) -> dict[Placed, int]:
    """The running sums that a day changes, in nano-USD.

    Args:
        sums: the sums before the day.
        flows: what the day brought each owner; negative where more was taken back than given.
        addresses: where the owners want their money now. Those without one wait.

    What an owner got beyond what was placed goes to its address of now. Less than what was placed
    places nothing: what was published cannot be taken back, so later earnings make up for it. A
    customer's address is placed even if that is nothing.
    """
    changed: dict[Placed, int] = {}
    placed: defaultdict[Owner, int] = defaultdict(int)
    totals: dict[Owner, int] = {}
    for sum_of, nano in sums.items():
        owner = Owner(sum_of.kind, sum_of.key)
        if sum_of.address:
            placed[owner] += nano
        else:
            totals[owner] = nano
    for owner, flow in flows.items():
        if flow:
            totals[owner] = changed[Placed(*owner)] = totals.get(owner, 0) + flow
    for owner, address in addresses.items():
        more = totals.get(owner, 0) - placed[owner]
        there = Placed(*owner, address)
        if more > 0 or (owner.kind is LeafKind.SPENT and there not in sums):
            changed[there] = sums.get(there, 0) + max(0, more)
    return changed


def waiting_nano(sums: Mapping[Placed, int], kind: LeafKind) -> int:
    """What owners of this kind got and what is not placed, for want of an address."""
    left: defaultdict[bytes, int] = defaultdict(int)
    for sum_of, nano in sums.items():
        if sum_of.kind is kind:
            left[sum_of.key] += -nano if sum_of.address else nano
    return sum(nano for nano in left.values() if nano > 0)


def leaves_of(sums: Mapping[Placed, int]) -> list[Leaf]:
    """One leaf for each kind and address, in order; nothing to claim is left out."""
    by_address: defaultdict[tuple[LeafKind, bytes], int] = defaultdict(int)
    for sum_of, nano in sums.items():
        if sum_of.address:
            by_address[sum_of.kind, sum_of.address] += nano
    leaves = (Leaf(*place, token_units(nano)) for place, nano in sorted(by_address.items()))
    return [leaf for leaf in leaves if leaf.units or leaf.kind is LeafKind.SPENT]


def dust_nano(sums: Mapping[Placed, int]) -> int:
    """What flooring leaves of the earned sums to later days."""
    leaves = leaves_of(sums)
    placed = sum(n for at, n in sums.items() if at.address and at.kind is LeafKind.EARNED)
    earned = sum(leaf.units for leaf in leaves if leaf.kind is LeafKind.EARNED)
    return placed - earned * NANO_PER_UNIT


def tree_of(leaves: Iterable[Leaf]) -> MerkleTree:
    """The tree over these leaves.

    Raises:
        InvalidRequest: a leaf is malformed or there twice.
    """
    return MerkleTree(leaf.hash() for leaf in leaves)


def leaf_file(sums: Mapping[Placed, int]) -> str:
    """The running sums as text: the leaves, and the next day's beginning, follow from it alone.

    One line each, ``kind owner address nano`` in ascending order, with ``-`` for no address. Totals
    that came back to nothing are left out.
    """
    return "".join(
        f"{at.kind.name.lower()} {at.key.hex()} {at.address.hex() or '-'} {nano}\n"
        for at, nano in sorted(sums.items())
        if nano or at.address
    )


def parse_leaf_file(text: str) -> dict[Placed, int]:
    """The running sums of a `leaf_file`.

    Raises:
        MalformedFrame: the text is not exactly what `leaf_file` writes.
    """
    sums = {}
    try:
        for line in text.splitlines():
            kind, key, address, nano = line.split(" ")
            place = b"" if address == "-" else bytes.fromhex(address)
            sums[Placed(LeafKind[kind.upper()], bytes.fromhex(key), place)] = int(nano)
    except (KeyError, ValueError) as error:
        raise MalformedFrame("a line of the leaf file is not a running sum") from error
    if leaf_file(sums) != text:
        raise MalformedFrame("the leaf file is not in its canonical form")
    return sums
