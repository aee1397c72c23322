"""The canonical record of a task: what node and distributor each derive, sign and agree on.

Fixed width, no JSON under a signature. Agreement between two sides is equality of leaves. The
layout is ledger design section 4.3; hashing is that of RFC 9162 (leaf prefix 0x00).
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Iterable
from typing import Final

import msgspec

from starai.core.errors import MalformedFrame

_RECORD: Final = struct.Struct("<4sBB2x16sI32s32sQ32sIIIQQQ32s32s32s")
RECORD_BYTES: Final = _RECORD.size
_MAGIC: Final = b"SAIR"
_VERSION: Final = 1
_TYPE_TASK: Final = 1
#: What every record begins with, padding included.
_HEAD: Final = _MAGIC + bytes((_VERSION, _TYPE_TASK, 0, 0))


class Side(enum.IntEnum):
    """Which side of a task a word about it comes from."""

    NODE = 1
    DISTRIBUTOR = 2


class TaskRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One attempt of one task. Keys are raw 32-byte public keys; times Unix milliseconds.

    ``charge_nano_usd`` is what the customer owes for it by the prices in the task's header.
    ``request_hash`` commits to the sealed request, ``answer_hash`` to the accepted token ids (or
    the embedding), ``proof_hash`` to the code chain's end.
    """

    task_id: bytes
    attempt: int
    node: bytes
    distributor: bytes
    customer: int
    model_root: bytes
    prompt_tokens: int
    answer_tokens: int
    price_id: int
    charge_nano_usd: int
    offered_ms: int
    closed_ms: int
    request_hash: bytes
    answer_hash: bytes
    proof_hash: bytes

    def canonical(self) -> bytes:
        """`RECORD_BYTES` bytes.

        Raises:
            MalformedFrame: a field is outside its range.
        """
        fixed = (
            (self.task_id, 16),
            (self.node, 32),
            (self.distributor, 32),
            (self.model_root, 32),
            (self.request_hash, 32),
            (self.answer_hash, 32),
            (self.proof_hash, 32),
        )
        if any(len(value) != width for value, width in fixed):
            raise MalformedFrame("a record has a field of the wrong length")
        try:
            return _RECORD.pack(
                _MAGIC,
                _VERSION,
                _TYPE_TASK,
                self.task_id,
                self.attempt,
                self.node,
                self.distributor,
                self.customer,
                self.model_root,
                self.prompt_tokens,
                self.answer_tokens,
                self.price_id,
                self.charge_nano_usd,
                self.offered_ms,
                self.closed_ms,
                self.request_hash,
                self.answer_hash,
                self.proof_hash,
            )
        except struct.error as error:
            raise MalformedFrame("a record has a number out of range") from error

    @classmethod
    def parse(cls, data: bytes) -> TaskRecord:
        """The record in exactly `RECORD_BYTES` bytes.

        Raises:
            MalformedFrame: wrong length, magic, version, type, or non-zero padding.
        """
        if len(data) != RECORD_BYTES:
            raise MalformedFrame(f"a record has {RECORD_BYTES} bytes")
        if not data.startswith(_HEAD):  # the padding too: other bytes would be another leaf
            raise MalformedFrame("not a task record of this version, or its padding is not zero")
        return cls(*_RECORD.unpack(data)[3:])

    def block(self, block_ms: int) -> int:
        """The confirmation block this record falls into: both sides derive it from the record."""
        return self.closed_ms // block_ms


def leaf_hash(record: bytes) -> bytes:
    """The leaf of a canonical record (RFC 9162, section 2.1.1)."""
    return hashlib.sha256(b"\x00" + record).digest()


def set_root(leaves: Iterable[bytes]) -> bytes:
    """One hash for a set of leaves, whatever their order: what a confirmation signs."""
    return hashlib.sha256(b"starai/v1/set" + b"".join(sorted(leaves))).digest()


def answer_hash(ids: bytes) -> bytes:
    """The commitment to the accepted token ids (packed), or to the embedding."""
    return hashlib.sha256(b"starai/v1/answer" + ids).digest()
