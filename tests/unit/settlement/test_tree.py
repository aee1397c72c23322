"""OpenZeppelin's tree: equal roots and proofs, and no proof of what is not in it."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, strategies as st

from starai.core.errors import InvalidRequest
from starai.settlement.leaves import Leaf, LeafKind, tree_of
from starai.settlement.tree import (
    EMPTY_ROOT,
    PROOF_HASHES_MAX,
    MerkleTree,
    keccak256,
    verify_proof,
)

# Made once with npm's @openzeppelin/merkle-tree 1.0.8 (Node 20), and never by the code under test:
# `StandardMerkleTree.of(values, ['uint256', 'address', 'uint256']).root`, where value number i is
# [i % 2, the first 20 bytes of SHA-256 of `payee i`, i * i * 1000 + 7].
GOLDEN = {
    1: "a9fb2786339ddf6e8879d531792317946fa8bc0f3d2d70bb9a3a65538205453b",
    2: "2e6013a1fbaa97efe50972bc50602bc6f158f342bf1aed81e9bce53f5c667500",
    5: "53e3d62979d5c54313ba305b39b34e37ada3fc87ab7f31554f5b8f701a2bc933",
    1_000: "ada3a640bcdea1ab7427b95e0ad4f27b93a6d5856eb8c3c638a98681b7fdf961",
    100_000: "e706e9cf63b86337182d17b8a0fe3659b980f5cbde9ed9ac066a581edf5800e8",
}
#: ``tree.getProof(3)`` of the tree of five.
GOLDEN_PROOF = (
    "145b32eaa8729b283527eabdb9a59741a86c38857e70916f68c2aa1ee640c714",
    "e393e67695b6ba6d70c69b6c938243ba5272c58ada566e0c896a7391604fdfc1",
    "99c7794681c0f44f439456c6b71b9af444d504d0ce890d6c0812cdeb292067e3",
)


def leaves(num: int) -> list[Leaf]:
    """The leaves of the golden trees."""
    return [
        Leaf(LeafKind(i % 2), hashlib.sha256(f"payee {i}".encode()).digest()[:20], i * i * 1000 + 7)
        for i in range(num)
    ]


@pytest.mark.parametrize("num", GOLDEN)
def test_roots_are_those_of_openzeppelin(num: int) -> None:
    """The root is the one that the npm package computes, whatever the order of the leaves."""
    assert tree_of(reversed(leaves(num))).root.hex() == GOLDEN[num]


def test_a_proof_is_that_of_openzeppelin() -> None:
    """The proof of a leaf is the one that the npm package gives."""
    tree, leaf = tree_of(leaves(5)), leaves(5)[3].hash()
    assert tuple(one.hex() for one in tree.proof(leaf)) == GOLDEN_PROOF
    assert verify_proof(tree.root, leaf, tree.proof(leaf))


@given(st.integers(1, 70), st.data())
def test_every_leaf_has_a_proof_and_nothing_else_has(num: int, data: st.DataObject) -> None:
    """Each leaf is proven; a changed leaf, a changed proof or another root is not."""
    tree = tree_of(leaves(num))
    chosen = data.draw(st.sampled_from(leaves(num)))
    proof = tree.proof(chosen.hash())
    assert verify_proof(tree.root, chosen.hash(), proof)
    forged = chosen._replace(units=chosen.units + 1)
    assert not verify_proof(tree.root, forged.hash(), proof)
    assert not verify_proof(keccak256(tree.root), chosen.hash(), proof)
    if proof:
        place = data.draw(st.integers(0, len(proof) - 1))
        changed = (*proof[:place], keccak256(proof[place]), *proof[place + 1 :])
        assert not verify_proof(tree.root, chosen.hash(), changed)
        assert not verify_proof(tree.root, chosen.hash(), proof[:-1])


def test_an_inner_node_is_no_leaf() -> None:
    """64 bytes of two hashes do not pass for a leaf: leaves are hashed twice."""
    tree = tree_of(leaves(2))
    one, other = sorted(leaf.hash() for leaf in leaves(2))
    assert keccak256(one + other) == tree.root
    assert not verify_proof(tree.root, keccak256(keccak256(one + other)), ())


def test_an_empty_tree_proves_nothing() -> None:
    """Without leaves the root is zero, and no proof leads to it."""
    assert MerkleTree([]).root == EMPTY_ROOT
    assert not verify_proof(EMPTY_ROOT, EMPTY_ROOT, ())


def test_what_is_no_tree_is_refused() -> None:
    """Hashes of another length, doubles, and leaves that are not there are refused."""
    leaf = leaves(1)[0].hash()
    for wrong in ([b"x" * 64], [leaf, leaf], [b""]):
        with pytest.raises(InvalidRequest):
            MerkleTree(wrong)
    with pytest.raises(InvalidRequest):
        MerkleTree([leaf]).proof(b"x" * 32)
    tree = tree_of(leaves(2))
    too_long = tree.proof(leaf) * (PROOF_HASHES_MAX + 1)
    assert not verify_proof(tree.root, leaf, too_long)
    assert not verify_proof(tree.root, b"x" * 64, ())
