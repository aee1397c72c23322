"""Blocks: what a header says, and whether each follows the one before, signed by the network.

A header is fields of 4 bytes of length and the field, integers big-endian.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from starai.verifier.reading import Findings, Unreadable
from starai.verifier.signatures import is_signed

_MAGIC: Final = b"starai/v1/block"
_SIGNED: Final = b"starai/v1/block/signed"
_SIGNATURE_BYTES: Final = 64
_NUM_FIELDS: Final = 15
_HASHES: Final = (3, 8, 11, 12)
_WIDTHS: Final = (8, 32, 8, 8, 8, 8, 32, 8, 8, 32, 32, 16, 8)


@dataclass(frozen=True)
class Block:
    """A header's fields, its hash and its signature."""

    network: str
    height: int
    prev: bytes
    first_task: int
    last_task: int
    num_tasks: int
    tree_size: int
    log_root: bytes
    first_transfer: int
    last_transfer: int
    transfers_root: bytes
    books_hash: bytes
    total_debits: int
    closed_ms: int
    hash: bytes
    signature: bytes


def parse_block(frame: bytes) -> Block:
    """The block in a frame: its header, then its signature.

    Raises:
        Unreadable: it is none.
    """
    header, signature = frame[:-_SIGNATURE_BYTES], frame[-_SIGNATURE_BYTES:]
    fields, at = [], 0
    while at < len(header):
        length = int.from_bytes(header[at : at + 4], "big")
        fields.append(header[at + 4 : at + 4 + length])
        at += 4 + length
    widths = tuple(map(len, fields[2:]))
    if len(fields) != _NUM_FIELDS or fields[0] != _MAGIC or widths != _WIDTHS or at != len(header):
        raise Unreadable("blocks.bin has something that is no block")
    name: Any = fields[1].decode(errors="replace")
    values = [
        fields[place] if place in _HASHES else int.from_bytes(fields[place], "big")
        for place in range(2, _NUM_FIELDS)
    ]
    return Block(*(name, *values, hashlib.sha256(header).digest(), signature))


class Chain:
    """The blocks so far; complains about one that does not follow."""

    def __init__(
        self, network: str, key: bytes, findings: Findings, last: Block | None = None
    ) -> None:
        """Take the network's name, the public key that signs its blocks, and the one before."""
        self._network = network
        self._key = key
        self._findings = findings
        self.last = last

    def follow(self, block: Block) -> None:
        """Take the next block."""
        last, where = self.last, f"block {block.height}"
        expected: tuple[object, ...] = (0, bytes(32), 1, 1, block.num_tasks)
        if last is not None:
            size = last.tree_size + block.num_tasks
            expected = (
                last.height + 1,
                last.hash,
                last.last_task + 1,
                last.last_transfer + 1,
                size,
            )
        found = (block.height, block.prev, block.first_task, block.first_transfer, block.tree_size)
        check = self._findings.check
        check(expected == found, f"{where} does not follow the block before it")
        check(block.network == self._network, f"{where} is of another network")
        check(
            last is None or block.closed_ms >= last.closed_ms,
            f"{where} is older than the one before",
        )
        check(
            is_signed(self._key, _SIGNED + block.hash, block.signature),
            f"{where} is not signed by the network",
        )
        self._findings.count("blocks")
        self.last = block
