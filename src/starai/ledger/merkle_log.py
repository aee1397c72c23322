"""An append-only Merkle tree (RFC 9162, section 2.1), kept in tiles, with its proofs.

A tile holds up to 256 neighbouring hashes of one of the tree's levels 0, 8, 16 and so on (the
layout of C2SP's tlog-tiles). What lies between those levels is computed when it is asked for, from
one tile: so a leaf costs 32 bytes and about one hash, and a proof reads one or two tiles a level.
Proofs of any earlier size come from the same tiles, because nothing in them ever changes but the
end. Knows nothing of records, of signatures, or of where tiles are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Final, Protocol

from starai.core.errors import InternalFault, InvalidRequest, SealBroken

HASH_BYTES: Final = 32
#: Levels of the tree in one tile.
TILE_LEVELS: Final = 8
TILE_HASHES: Final = 1 << TILE_LEVELS
_TILE_BYTES: Final = TILE_HASHES * HASH_BYTES
_PAIR_BYTES: Final = 2 * HASH_BYTES
_INNER: Final = b"\x01"
#: The root of a tree without leaves (section 2.1.1).
EMPTY_ROOT: Final = sha256(b"").digest()
#: No proof is longer: a tree of 2^63 leaves has 63 levels, and a consistency proof one hash more.
PROOF_HASHES_MAX: Final = 64


class Tiles(Protocol):
    """Where a log reads what it does not have in memory."""

    def tile(self, level: int, position: int) -> bytes:
        """The hashes of a tile, concatenated; fewer than `TILE_HASHES` only at the log's end."""
        ...


class MemoryTiles(dict[tuple[int, int], bytes]):
    """Tiles in memory, for a log that is not kept."""

    def tile(self, level: int, position: int) -> bytes:
        """The hashes of a tile."""
        return self[level, position]


class MerkleLog:
    """A log of ``size`` leaves over tiles; what is appended stays in memory, in `changes`.

    Made for one piece of work, such as one block or one proof: it keeps every tile that it read.
    """

    def __init__(self, tiles: Tiles, size: int = 0) -> None:
        """Take the tiles of a log that has ``size`` leaves."""
        self._tiles = tiles
        self._known: dict[tuple[int, int], bytes] = {}
        self._changed: set[tuple[int, int]] = set()
        self.size = size

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Append leaf hashes (`starai.protocol.records.leaf_hash` makes them), in order.

        Raises:
            InvalidRequest: one has not 32 bytes; then nothing is appended.
        """
        added = list(leaves)
        if any(len(leaf) != HASH_BYTES for leaf in added):
            raise InvalidRequest("a leaf of the log has 32 bytes")
        self._extend(0, self.size, b"".join(added))
        self.size += len(added)

    def changes(self) -> dict[tuple[int, int], bytes]:
        """The tiles that differ from what was read, by tile level and position."""
        return {place: self._known[place] for place in sorted(self._changed)}

    def root(self, size: int | None = None) -> bytes:
        """The root over the first ``size`` leaves, or over all.

        Raises:
            InvalidRequest: the log has fewer.
        """
        size = self._within(size)
        return self._span(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int | None = None) -> list[bytes]:
        """The proof that leaf ``index`` is among the first ``size`` (section 2.1.3.1).

        Raises:
            InvalidRequest: there is no such leaf.
        """
        first, end = 0, self._within(size)
        if not 0 <= index < end:
            raise InvalidRequest(f"a log of {end} leaves has no leaf {index}")
        path = []
        while end - first > 1:
            split = _split(first, end)
            if index < split:
                path.append(self._span(split, end))
                end = split
            else:
                path.append(self._span(first, split))
                first = split
        return path[::-1]

    def consistency(self, old: int, size: int | None = None) -> list[bytes]:
        """The proof that the first ``old`` leaves begin the first ``size`` (section 2.1.4.1).

        Empty where nothing needs proof: from no leaves at all, and between equal sizes.

        Raises:
            InvalidRequest: the sizes are out of order, or the log has fewer leaves.
        """
        first, end = 0, self._within(size)
        if not 0 <= old <= end:
            raise InvalidRequest(f"{old} leaves cannot begin {end}")
        if not old:
            return []
        path, is_whole = [], True
        while old != end:
            split = _split(first, end)
            if old <= split:
                path.append(self._span(split, end))
                end = split
            else:
                path.append(self._span(first, split))
                first, is_whole = split, False
        if not is_whole:
            path.append(self._span(first, end))
        return path[::-1]

    def _within(self, size: int | None) -> int:
        if size is None:
            return self.size
        if not 0 <= size <= self.size:
            raise InvalidRequest(f"the log has {self.size} leaves, not {size}")
        return size

    def _extend(self, level: int, count: int, hashes: bytes) -> None:
        """Append to tile level ``level``, which has ``count`` hashes, and to those above."""
        position, used = divmod(count, TILE_HASHES)
        if used:
            hashes = self._tile(level, position)[: used * HASH_BYTES] + hashes
        full = []
        for start in range(0, len(hashes), _TILE_BYTES):
            tile = hashes[start : start + _TILE_BYTES]
            self._known[level, position] = tile
            self._changed.add((level, position))
            position += 1
            if len(tile) == _TILE_BYTES:
                full.append(_fold(tile))
        if full:
            self._extend(level + 1, count >> TILE_LEVELS, b"".join(full))

    def _tile(self, level: int, position: int) -> bytes:
        known = self._known.get((level, position))
        if known is None:
            known = self._known[level, position] = self._tiles.tile(level, position)
        return known

    def _node(self, level: int, position: int) -> bytes:
        """The root of the perfect subtree over leaves ``position << level`` and its neighbours."""
        tile_level, height = divmod(level, TILE_LEVELS)
        tile, start = divmod(position << height, TILE_HASHES)
        end = start + (1 << height)
        hashes = self._tile(tile_level, tile)[start * HASH_BYTES : end * HASH_BYTES]
        if len(hashes) != HASH_BYTES << height:
            raise InternalFault("the log lacks hashes that it must have")
        return _fold(hashes)

    def _span(self, first: int, end: int) -> bytes:
        """The root over leaves ``first`` to ``end``, where a subtree of that size may begin."""
        peaks = []
        while first < end:
            level = (end - first).bit_length() - 1
            peaks.append(self._node(level, first >> level))
            first += 1 << level
        root = peaks.pop()
        while peaks:
            root = _inner(peaks.pop(), root)
        return root


def tree_root(leaves: Iterable[bytes]) -> bytes:
    """The root over leaf hashes, for a tree that is not kept.

    Raises:
        InvalidRequest: a leaf has not 32 bytes.
    """
    log = MerkleLog(MemoryTiles())
    log.extend(leaves)
    return log.root()


def verify_inclusion(
    leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes
) -> None:
    """Check that ``leaf`` is number ``index`` of the ``size`` under ``root`` (section 2.1.3.2).

    Raises:
        SealBroken: the proof does not show it.
    """
    if not 0 <= index < size:
        raise SealBroken("no inclusion proof: there is no such leaf")
    node, last, found = index, size - 1, leaf
    for other in _hashes(path):
        if not last:
            raise SealBroken("no inclusion proof: it is too long")
        if node & 1 or node == last:
            found = _inner(other, found)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            found = _inner(found, other)
        node, last = node >> 1, last >> 1
    if last or found != root:
        raise SealBroken("no inclusion proof: it leads to another root")


def verify_consistency(
    old: int, old_root: bytes, size: int, root: bytes, path: Sequence[bytes]
) -> None:
    """Check that the tree of ``size`` begins with the one of ``old`` (section 2.1.4.2).

    Raises:
        SealBroken: the proof does not show it.
    """
    if not 0 <= old <= size:
        raise SealBroken("no consistency proof: the sizes are out of order")
    if old in (0, size):
        if path or old_root != (root if old == size else EMPTY_ROOT):
            raise SealBroken("no consistency proof: these are different trees")
        return
    rest: Iterator[bytes] = _hashes(path)
    node, last = old - 1, size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    # A tree of a power of two is itself the first node of the proof.
    seed = old_root if not node else next(rest, b"")
    old_found = found = seed
    for other in rest:
        if not last:
            raise SealBroken("no consistency proof: it is too long")
        if node & 1 or node == last:
            old_found, found = _inner(other, old_found), _inner(other, found)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            found = _inner(found, other)
        node, last = node >> 1, last >> 1
    if last or old_found != old_root or found != root:
        raise SealBroken("no consistency proof: the new tree does not begin with the old one")


def _hashes(path: Sequence[bytes]) -> Iterator[bytes]:
    if len(path) > PROOF_HASHES_MAX or any(len(one) != HASH_BYTES for one in path):
        raise SealBroken("a proof has at most 64 hashes of 32 bytes")
    return iter(path)


def _split(first: int, end: int) -> int:
    """Where the left subtree ends: after the largest power of two smaller than the size."""
    return first + (1 << ((end - first - 1).bit_length() - 1))


def _inner(left: bytes, right: bytes) -> bytes:
    return sha256(_INNER + left + right).digest()


def _fold(hashes: bytes) -> bytes:
    """The root over a power of two of neighbouring hashes, concatenated."""
    while len(hashes) > HASH_BYTES:
        hashes = b"".join(
            [
                sha256(_INNER + hashes[at : at + _PAIR_BYTES]).digest()
                for at in range(0, len(hashes), _PAIR_BYTES)
            ]
        )
    return hashes
