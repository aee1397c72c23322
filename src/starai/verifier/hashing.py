"""Hashes and trees: RFC 9162's log, OpenZeppelin's tree, the sum over all books.

Knows nothing of what is hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec
from Crypto.Hash import keccak

_WIDTH: Final = 256
_MODULUS: Final = 1 << (8 * _WIDTH)


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf (RFC 9162, section 2.1.1)."""
    return hashlib.sha256(b"\x00" + data).digest()


class LogKept(msgspec.Struct, frozen=True):
    """A log between two checks: its size, and the roots of its full parts, the largest first."""

    size: int = 0
    peaks: tuple[bytes, ...] = ()


class Log:
    """A growing RFC 9162 tree, of which only the peaks of its full parts are kept."""

    def __init__(self, kept: LogKept | None = None) -> None:
        """Start without leaves, or with those of an earlier check.

        Raises:
            ValueError: a tree of that size has another number of peaks.
        """
        kept = kept or LogKept()
        if kept.size < 0 or len(kept.peaks) != kept.size.bit_count():
            raise ValueError("a log of this size has another number of peaks")
        self.size = kept.size
        self._peaks = list(kept.peaks)

    def kept(self) -> LogKept:
        """What the next check begins with."""
        return LogKept(self.size, tuple(self._peaks))

    def append(self, leaf: bytes) -> None:
        """Append one leaf's hash."""
        rest = self.size
        while rest & 1:
            leaf = hashlib.sha256(b"\x01" + self._peaks.pop() + leaf).digest()
            rest >>= 1
        self._peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The root over all leaves so far."""
        if not self._peaks:
            return hashlib.sha256(b"").digest()
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = hashlib.sha256(b"\x01" + peak + root).digest()
        return root


def _keccak(data: bytes) -> bytes:
    return keccak.new(digest_bits=256, data=data).digest()


def payout_root(leaves: Iterable[tuple[int, bytes, int]]) -> bytes:
    """The root that a contract would check claims against: (kind, address, units) each.

    Leaves are hashed twice and stand in descending order of their hashes at the end of a heap;
    a node hashes its children, the smaller first. Without leaves it is 32 zero bytes.
    """
    hashed = sorted(
        (
            _keccak(
                _keccak(
                    kind.to_bytes(32, "big") + address.rjust(32, b"\0") + units.to_bytes(32, "big")
                )
            )
            for kind, address, units in leaves
        ),
        reverse=True,
    )
    if not hashed:
        return bytes(32)
    heap = [b""] * (len(hashed) - 1) + hashed
    for index in reversed(range(len(hashed) - 1)):
        left, right = heap[2 * index + 1], heap[2 * index + 2]
        heap[index] = _keccak(min(left, right) + max(left, right))
    return heap[0]


class BooksSum:
    """The sum, modulo 2^2048, of a hash for each account and open hold; changed as they change."""

    def __init__(self, total: int = 0) -> None:
        """Start with empty books, or with the ``total`` of others."""
        self._total = total

    @property
    def total(self) -> int:
        """The sum of all that is there."""
        return self._total % _MODULUS

    def change(self, before: bytes, after: bytes) -> None:
        """Put ``after`` in the place of ``before``; either may be empty, for nothing there."""
        for sign, data in ((-1, before), (1, after)):
            if data:
                value = hashlib.shake_256(data).digest(_WIDTH)
                self._total += sign * int.from_bytes(value, "big")

    def digest(self) -> bytes:
        """What a block says of the books."""
        self._total = self.total
        whole = self._total.to_bytes(_WIDTH, "big")
        return hashlib.sha256(b"starai/v1/books" + whole).digest()
