"""OpenZeppelin's standard Merkle tree over hashed leaves: its root, its proofs, their check.

The layout is that of the npm package ``@openzeppelin/merkle-tree``: leaves in the order of their
hashes, from the end of a binary heap; a node is the Keccak-256 of its two children in ascending
order. Contracts check such proofs with a few lines. Other layouts give other roots from five
leaves on. Knows nothing of what a leaf says, and nothing of chains.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Final

from Crypto.Hash import keccak

from starai.core.errors import InvalidRequest

#: The root of a tree without leaves: no proof leads to it.
EMPTY_ROOT: Final = bytes(32)
#: Longest proof that anybody should accept: more leaves than people.
PROOF_HASHES_MAX: Final = 33


def keccak256(data: bytes) -> bytes:
    """Keccak-256 as Ethereum has it: the padding of before SHA-3 became a standard."""
    return keccak.new(digest_bits=256, data=data).digest()


def _pair(one: bytes, other: bytes) -> bytes:
    return keccak256(one + other if one < other else other + one)


class MerkleTree:
    """All nodes of the tree over some leaf hashes, as one heap: 64 bytes a leaf."""

    def __init__(self, leaves: Iterable[bytes]) -> None:
        """Build it from 32-byte leaf hashes in any order.

        Raises:
            InvalidRequest: a hash is of another length, or there twice.
        """
        ordered = sorted(leaves, reverse=True)
        if any(len(leaf) != 32 for leaf in ordered):
            raise InvalidRequest("the hash of a leaf has 32 bytes")
        if any(one == next_one for one, next_one in itertools.pairwise(ordered)):
            raise InvalidRequest("a leaf is in the tree twice")
        inner = max(0, len(ordered) - 1)
        self._heap = [b""] * inner + ordered
        # The smallest hash is last in the heap, so leaf i of n is node 2n - 2 - i.
        for index in range(inner - 1, -1, -1):
            self._heap[index] = _pair(self._heap[2 * index + 1], self._heap[2 * index + 2])
        self._at = {leaf: inner + index for index, leaf in enumerate(ordered)}

    @property
    def root(self) -> bytes:
        """The root, or `EMPTY_ROOT` if there are no leaves."""
        return self._heap[0] if self._heap else EMPTY_ROOT

    def proof(self, leaf: bytes) -> tuple[bytes, ...]:
        """The siblings from a leaf to the root, nearest first.

        Raises:
            InvalidRequest: the leaf is not in this tree.
        """
        index = self._at.get(leaf)
        if index is None:
            raise InvalidRequest("this leaf is not in the tree")
        siblings = []
        while index > 0:
            siblings.append(self._heap[index + 1 if index % 2 else index - 1])
            index = (index - 1) // 2
        return tuple(siblings)


def verify_proof(root: bytes, leaf: bytes, proof: Sequence[bytes]) -> bool:
    """Whether a proof leads from a leaf's hash to the root.

    The caller hashes the leaf itself, twice (`starai.settlement.leaves`), so that no inner node
    can pass for a leaf.
    """
    if len(proof) > PROOF_HASHES_MAX or any(len(one) != 32 for one in (root, leaf, *proof)):
        return False
    for sibling in proof:
        leaf = _pair(leaf, sibling)
    return leaf == root and root != EMPTY_ROOT
