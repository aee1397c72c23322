"""The Merkle log against RFC 9162's definitions, known vectors, and hostile proofs."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, strategies as st

from starai.core.errors import InternalFault, InvalidRequest, SealBroken
from starai.ledger.merkle_log import (
    EMPTY_ROOT,
    TILE_HASHES,
    MemoryTiles,
    MerkleLog,
    tree_root,
    verify_consistency,
    verify_inclusion,
)
from starai.protocol.records import leaf_hash

# The tree of eight entries with which Certificate Transparency's implementations test themselves.
_ENTRIES = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")
_ENTRIES += ("606162636465666768696a6b6c6d6e6f",)
_ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
_EIGHT = [leaf_hash(bytes.fromhex(entry)) for entry in _ENTRIES]
#: Sizes where trees change their form: nothing, one, around powers of two and of tiles.
_EDGES = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 255, 256, 257, 511, 512, 513, 1000)


def _leaves(count: int) -> list[bytes]:
    return [leaf_hash(number.to_bytes(4, "big")) for number in range(count)]


def _log(leaves: list[bytes], step: int = 0) -> MerkleLog:
    """A log of leaves, appended all at once or ``step`` at a time, each time by a new log."""
    tiles, size = MemoryTiles(), 0
    for start in range(0, len(leaves), step or max(1, len(leaves))):
        log = MerkleLog(tiles, size)
        log.extend(leaves[start : start + (step or len(leaves))])
        tiles.update(log.changes())
        size = log.size
    return MerkleLog(tiles, size)


def _defined_root(leaves: list[bytes]) -> bytes:
    """Section 2.1.1, word for word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while 2 * split < len(leaves):
        split *= 2
    left, right = _defined_root(leaves[:split]), _defined_root(leaves[split:])
    return sha256(b"\x01" + left + right).digest()


@pytest.mark.parametrize("size", range(1, 9))
def test_known_roots(size: int) -> None:
    """The roots of the well-known tree of up to eight entries."""
    assert tree_root(_EIGHT[:size]).hex() == _ROOTS[size - 1]
    assert _log(_EIGHT).root(size).hex() == _ROOTS[size - 1]


def test_known_proofs() -> None:
    """The proofs that other implementations give in that tree."""
    log = _log(_EIGHT)
    first = [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]
    assert [one.hex() for one in log.inclusion(0)] == first
    assert [one.hex() for one in log.consistency(1)] == first
    assert [one.hex() for one in log.consistency(6)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert log.inclusion(0, 1) == []


@pytest.mark.parametrize("size", _EDGES)
@pytest.mark.parametrize("step", [0, 1, 7, 300])
def test_roots_are_as_defined(size: int, step: int) -> None:
    """However leaves come in, the root is the definition's, and only the last tiles change."""
    leaves = _leaves(size)
    log = _log(leaves, step)
    assert (log.size, log.root()) == (size, _defined_root(leaves))
    log.extend(_leaves(1))
    touched = log.changes()
    assert len(touched) <= 1 + (size % TILE_HASHES == TILE_HASHES - 1)
    assert log.root() == _defined_root([*leaves, *_leaves(1)])


def test_an_empty_log() -> None:
    """Nothing has the hash of nothing, begins everything, and holds no leaf."""
    log = _log([])
    assert log.root() == tree_root([]) == EMPTY_ROOT
    assert log.consistency(0) == []
    with pytest.raises(InvalidRequest):
        log.inclusion(0)
    verify_consistency(0, EMPTY_ROOT, 5, tree_root(_leaves(5)), [])
    with pytest.raises(SealBroken):
        verify_consistency(0, bytes(32), 5, tree_root(_leaves(5)), [])


@pytest.mark.parametrize("size", [size for size in _EDGES if size])
def test_every_leaf_is_proven(size: int) -> None:
    """Each leaf's proof holds for it, and for no other leaf, place, size or root."""
    leaves = _leaves(size)
    log = _log(leaves)
    root = log.root()
    for index in range(0, size, max(1, size // 40)):
        path = log.inclusion(index)
        assert len(path) <= size.bit_length()
        verify_inclusion(leaves[index], index, size, path, root)
        wrong = [
            (leaves[index][::-1], index, size, path, root),
            (leaves[index], size, size, path, root),
            (leaves[index], index, size, path, root[::-1]),
            (leaves[index], index, size, [*path, root], root),
        ]
        if path:
            wrong += [
                (leaves[index], index ^ 1, size, path, root),
                (leaves[index], index, size, path[1:], root),
                (leaves[index], index, size, [bytes(32), *path[1:]], root),
            ]
        for arguments in wrong:
            with pytest.raises(SealBroken):
                verify_inclusion(*arguments)


@pytest.mark.parametrize("size", _EDGES)
def test_every_size_begins_the_next(size: int) -> None:
    """Each earlier size is shown to begin the log; another beginning is not."""
    leaves = _leaves(size)
    log = _log(leaves)
    for old in (edge for edge in _EDGES if edge <= size):
        path = log.consistency(old)
        verify_consistency(old, log.root(old), size, log.root(), path)
        if not 0 < old < size:
            assert path == []
            continue
        other = _log([*leaves[: old - 1], bytes(32), *leaves[old:]])
        for arguments in (
            (old, other.root(old), size, log.root(), path),
            (old, other.root(old), size, log.root(), other.consistency(old)),
            (old, log.root(old), size, other.root(), path),
            (old, log.root(old), size, log.root(), path[:-1]),
            (old, log.root(old), size, log.root(), [*path, bytes(32)]),
            (old, log.root(old), size, log.root(), []),
            (size, log.root(), old, log.root(old), path),
        ):
            with pytest.raises(SealBroken):
                verify_consistency(*arguments)


def test_equal_sizes_need_equal_roots() -> None:
    """Between equal sizes nothing is proven but that they are the same."""
    root = tree_root(_leaves(5))
    verify_consistency(5, root, 5, root, [])
    for other, path in ((EMPTY_ROOT, []), (root, [bytes(32)])):
        with pytest.raises(SealBroken):
            verify_consistency(5, root, 5, other, path)


@given(st.data())
def test_any_proof_of_any_two_sizes(data: st.DataObject) -> None:
    """Inclusion and consistency hold between any sizes of any log, from the last size's tiles."""
    size = data.draw(st.integers(1, 700))
    old = data.draw(st.integers(1, size))
    index = data.draw(st.integers(0, old - 1))
    leaves = _leaves(size)
    log = _log(leaves, data.draw(st.sampled_from([0, 13, 256])))
    verify_inclusion(leaves[index], index, old, log.inclusion(index, old), log.root(old))
    verify_consistency(old, log.root(old), size, log.root(), log.consistency(old))


@given(
    st.integers(-1, 9),
    st.integers(-1, 9),
    st.lists(st.one_of(st.binary(max_size=40), st.binary(min_size=32, max_size=32)), max_size=70),
)
def test_no_rubbish_is_a_proof(index: int, size: int, path: list[bytes]) -> None:
    """Whatever bytes and numbers are handed in, they are no proof, and nothing crashes."""
    with pytest.raises(SealBroken):
        verify_inclusion(bytes(32), index, size, path, b"r" * 32)
    with pytest.raises(SealBroken):
        verify_consistency(index, b"o" * 32, size, b"r" * 32, path)


def test_one_tampered_leaf_of_a_hundred_thousand() -> None:
    """One changed bit in one of 100,000 leaves changes the root, and its proof no longer holds."""
    leaves = _leaves(100_000)
    sound = _log(leaves)
    root, path = sound.root(), sound.inclusion(77_777)
    assert len(path) == 17
    leaves[77_777] = bytes([leaves[77_777][0] ^ 1]) + leaves[77_777][1:]
    tampered = _log(leaves)
    assert tampered.root() != root
    with pytest.raises(SealBroken):
        verify_inclusion(leaves[77_777], 77_777, 100_000, path, root)
    with pytest.raises(SealBroken):
        verify_consistency(100_000, root, 100_000, tampered.root(), [])


def test_what_cannot_be_is_refused() -> None:
    """Leaves of another length, sizes out of range and lost tiles are refused, changing nothing."""
    log = _log(_leaves(3))
    with pytest.raises(InvalidRequest):
        log.extend([bytes(31)])
    assert (log.size, log.changes()) == (3, {})
    for call in (
        lambda: log.root(4),
        lambda: log.inclusion(3),
        lambda: log.inclusion(-1),
        lambda: log.consistency(4),
        lambda: log.consistency(3, 2),
    ):
        with pytest.raises(InvalidRequest):
            call()
    with pytest.raises(InternalFault, match="lacks"):
        MerkleLog(MemoryTiles({(0, 0): bytes(32)}), 3).root()
