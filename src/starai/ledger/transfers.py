"""Transfers: one debit and one credit of the same amount, so that the sum of all is always zero.

A transfer is never changed and never removed; what was wrong is reversed by another. Its canonical
bytes are what blocks commit to. Knows nothing of why money moves: `starai.ledger.rules` does.
"""

from __future__ import annotations

import enum
import struct
from functools import cache
from typing import Final

import msgspec

from starai.ledger.accounts import Account, Kind

ID_BYTES: Final = 16
#: Of a transfer's id, the bytes that say which of its event's it is.
_PLACE_BYTES: Final = 2
#: Transfers of one event.
MOVES_MAX: Final = 1 << (8 * _PLACE_BYTES)
_FIXED: Final = struct.Struct("<4sB3x16s16sQQ")
_PART: Final = struct.Struct("<H")
_MAGIC: Final = b"SAIT"
_VERSION: Final = 1


class Code(enum.StrEnum):
    """Why money moved."""

    DEPOSIT = "deposit"
    HOLD = "hold"
    CAPTURE = "capture"
    FEE = "fee"
    RELEASE = "release"
    MATURE = "mature"
    STAKE = "stake"
    UNSTAKE = "unstake"
    REFUND = "refund"
    SLASH = "slash"
    CLAIMED = "claimed"
    WITHDRAW = "withdraw"
    CORRECT = "correct"


class Transfer(msgspec.Struct, frozen=True):
    """``amount`` nano-USD from ``debit`` to ``credit``.

    ``ref`` says what for. Where the money leaves or enters a customer's held account, ``ref``
    begins with the 16 bytes of the hold (and of a `Code.HOLD`, the payer's 8 bytes follow), so
    that open holds too can be found again from transfers alone. ``reverses`` is the id of the
    transfer that a correction undoes, else empty.
    """

    transfer_id: bytes
    event_id: bytes
    code: Code
    debit: Account
    credit: Account
    amount: int
    ref: bytes
    reverses: bytes
    at_ms: int

    def canonical(self) -> bytes:
        """Bytes that no other transfer has: fixed fields, then the others with their lengths."""
        (debit_kind, debit_owner), (credit_kind, credit_owner) = self.debit, self.credit
        length = _PART.pack
        parts = (
            _FIXED.pack(_MAGIC, _VERSION, self.transfer_id, self.event_id, self.amount, self.at_ms),
            _word(self.code),
            _word(debit_kind),
            *(length(len(debit_owner)), debit_owner),
            _word(credit_kind),
            *(length(len(credit_owner)), credit_owner),
            *(length(len(self.ref)), self.ref),
            *(length(len(self.reverses)), self.reverses),
        )
        return b"".join(parts)


@cache
def _word(word: Code | Kind) -> bytes:
    """A word with its length before it; there are as many as kinds and codes."""
    return _PART.pack(len(word)) + word.encode()


def transfer_id(event_id: bytes, index: int) -> bytes:
    """The id of an event's transfer number ``index``, from 0 and below `MOVES_MAX`.

    It is the event's without its first bytes, then the number: so all that an event moved lies
    together in an index. Event ids, being hashes, differ in more than their first bytes.
    """
    return event_id[_PLACE_BYTES:] + index.to_bytes(_PLACE_BYTES, "big")
