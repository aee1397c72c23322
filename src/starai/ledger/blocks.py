"""The chain of blocks: each says what it covers, in canonical bytes, and names the one before.

A block covers the rows of tasks and transfers between two numbers, the log's root after those
tasks, the root over those transfers, and the state of the books after them. Its bytes are fields
of 4 bytes of length and the field, integers big-endian, so that no two blocks share them. Knows
nothing of where rows are kept, and signs nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, Final

import msgspec

from starai.core.errors import Conflict, MalformedFrame

#: What the first block names as the one before.
NO_BLOCK: Final = bytes(32)
_MAGIC: Final = b"starai/v1/block"
_SIGNED: Final = b"starai/v1/block/signed"
_LENGTH: Final = struct.Struct(">I")
#: A header's hashes, each of this many bytes.
_HASHES: Final = frozenset({"prev", "log_root", "transfers_root", "books_hash"})
_HASH_BYTES: Final = 32
_INTEGER_BYTES: Final = 8
#: A sum of many amounts outgrows 8 bytes.
_SUM_BYTES: Final = 16


class Block(msgspec.Struct, frozen=True):
    """A block's header.

    ``first_task`` to ``last_task`` hold the ``num_tasks`` rows that it adds to the log, which then
    has ``tree_size`` leaves under ``log_root``; without rows, it ends before it begins. In the
    same way ``first_transfer`` to ``last_transfer``, with ``transfers_root`` over them alone.
    ``books_hash`` is the books' state after them, ``total_debits`` the sum of all transfers since
    the beginning in nano-USD, ``closed_ms`` when it was closed (Unix ms, never before the last).
    """

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

    def canonical(self) -> bytes:
        """The header's bytes.

        Raises:
            MalformedFrame: a field is out of range.
        """
        fields = [_MAGIC, self.network.encode(), *(self._field(name) for name in _NAMES)]
        return b"".join(_LENGTH.pack(len(field)) + field for field in fields)

    def _field(self, name: str) -> bytes:
        value, width = getattr(self, name), _width(name)
        if name in _HASHES:
            if len(value) != width:
                raise MalformedFrame(f"a block's {name} has not {width} bytes")
            return bytes(value)
        if not 0 <= value < 1 << (8 * width - 1):
            raise MalformedFrame(f"a block's {name} is out of range")
        return int(value).to_bytes(width, "big")

    @classmethod
    def parse(cls, data: bytes) -> Block:
        """The header in canonical bytes.

        Raises:
            MalformedFrame: they are no block's.
        """
        magic, network, *fields = (*_fields(data), b"", b"")
        if magic != _MAGIC or len(fields) != len(_NAMES) + 2:
            raise MalformedFrame("not a block of this version")
        try:
            values: dict[str, Any] = {"network": network.decode()}
        except UnicodeDecodeError as error:
            raise MalformedFrame("not a block: its network has no name") from error
        for name, field in zip(_NAMES, fields, strict=False):
            values[name] = field if name in _HASHES else int.from_bytes(field, "big")
        block = cls(**values)
        if block.canonical() != data:
            raise MalformedFrame("not a block: it is not canonical")
        return block

    def hash(self) -> bytes:
        """The block's name: SHA-256 of its bytes."""
        return sha256(self.canonical()).digest()


_NAMES: Final = Block.__struct_fields__[1:]


def signed_bytes(block_hash: bytes) -> bytes:
    """What the registry signs of a block."""
    return _SIGNED + block_hash


def check_follows(block: Block, before: Block | None) -> None:
    """Check that ``block`` continues the chain after ``before``, or begins it.

    Raises:
        Conflict: it does not; the message says in what.
    """
    if before is None:
        expected = (0, NO_BLOCK, 1, 1, block.num_tasks)
        least = (block.network, 0, 0)
    else:
        size = before.tree_size + block.num_tasks
        expected = (
            *(before.height + 1, before.hash(), before.last_task + 1),
            *(before.last_transfer + 1, size),
        )
        least = (before.network, before.total_debits, before.closed_ms)
    found = (block.height, block.prev, block.first_task, block.first_transfer, block.tree_size)
    names = ("height", "previous hash", "first task", "first transfer", "tree size")
    wrong = [name for name, a, b in zip(names, found, expected, strict=True) if a != b]
    if block.network != least[0]:
        wrong.append("network")
    if block.total_debits < least[1] or block.closed_ms < least[2]:
        wrong.append("sum or time")
    if not 0 <= block.num_tasks <= block.last_task - block.first_task + 1:
        wrong.append("number of tasks")
    if block.last_transfer < block.first_transfer - 1:
        wrong.append("transfers")
    if wrong:
        raise Conflict(f"block {block.height} does not follow: {', '.join(wrong)}")


def _width(name: str) -> int:
    if name in _HASHES:
        return _HASH_BYTES
    return _SUM_BYTES if name == "total_debits" else _INTEGER_BYTES


def _fields(data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        head = data[start : start + _LENGTH.size]
        if len(head) < _LENGTH.size:
            raise MalformedFrame("not a block: it is cut off")
        end = start + _LENGTH.size + _LENGTH.unpack(head)[0]
        if end > len(data):
            raise MalformedFrame("not a block: it is cut off")
        yield data[start + _LENGTH.size : end]
        start = end
