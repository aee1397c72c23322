"""Double entry, once more: each transfer, every balance, every open hold, and their one hash.

Balances follow from transfers alone. Nothing but the money outside is ever below zero, money is
drawn only on holds that are there, and what is held is the sum of what is open.
"""

from __future__ import annotations

import hashlib
import struct
from collections import defaultdict
from typing import Final, NamedTuple

from starai.verifier.hashing import BooksSum
from starai.verifier.reading import Findings, Unreadable

_FIXED: Final = struct.Struct("<4sB3x16s16sQQ")
_MAGIC: Final = b"SAIT"
_HELD: Final = "customer.held"
_AVAILABLE: Final = "customer.available"
_OUTSIDE: Final = "chain.pool"

#: An account: its kind and its owner.
Account = tuple[str, bytes]


class Transfer(NamedTuple):
    """A transfer, as its canonical bytes say."""

    id: bytes
    event_id: bytes
    amount: int
    at_ms: int
    code: str
    debit: Account
    credit: Account
    ref: bytes
    reverses: bytes


class _Hold(NamedTuple):
    customer: bytes
    payer: bytes
    remaining: int


def parse_transfer(data: bytes) -> Transfer:
    """The transfer in canonical bytes.

    Raises:
        Unreadable: they are none.
    """
    try:
        magic, version, transfer_id, event_id, amount, at_ms = _FIXED.unpack_from(data)
        parts, at = [], _FIXED.size
        while at < len(data):
            end = at + 2 + int.from_bytes(data[at : at + 2], "little")
            parts.append(data[at + 2 : end])
            at = end
        code, debit_kind, debit_owner, credit_kind, credit_owner, ref, reverses = parts
        words = (code.decode(), debit_kind.decode(), credit_kind.decode())
    except (struct.error, ValueError) as error:
        raise Unreadable("transfers.bin has something that is no transfer") from error
    if (magic, version, at) != (_MAGIC, 1, len(data)):
        raise Unreadable("transfers.bin has something that is no transfer")
    debit, credit = (words[1], debit_owner), (words[2], credit_owner)
    return Transfer(transfer_id, event_id, amount, at_ms, words[0], debit, credit, ref, reverses)


class Books:
    """Balances and open holds after the transfers so far."""

    def __init__(self, findings: Findings) -> None:
        """Start with nothing in any account."""
        self._findings = findings
        self._totals: dict[Account, tuple[int, int]] = {}
        self._holds: dict[bytes, _Hold] = {}
        self._sum = BooksSum()
        self._changed: dict[Account, tuple[int, int]] = {}
        self._changed_holds: dict[bytes, _Hold | None] = {}
        self._event: tuple[bytes, int] = (b"", -1)
        self._correctable: dict[bytes, tuple[int, Account]] = {}
        self.total_debits = 0

    def balance(self, account: Account) -> int:
        """What is in an account."""
        debits, credits_ = self._totals.get(account, (0, 0))
        return credits_ - debits

    def payer_holds(self, payer: int) -> int:
        """What remains in the open holds of a payer."""
        key = payer.to_bytes(8, "big")
        return sum(hold.remaining for hold in self._holds.values() if hold.payer == key)

    def by_kind(self) -> dict[str, int]:
        """The trial balance."""
        found: defaultdict[str, int] = defaultdict(int)
        for (kind, _), (debits, credits_) in self._totals.items():
            found[kind] += credits_ - debits
        return dict(found)

    def add(self, transfer: Transfer) -> None:
        """Take the next transfer."""
        where = f"transfer {transfer.id.hex()}"
        check = self._findings.check
        event, index = self._event
        index = index + 1 if event == transfer.event_id else 0
        self._event = (transfer.event_id, index)
        named = hashlib.sha256(
            b"starai/v1/transfer" + transfer.event_id + index.to_bytes(4, "big")
        ).digest()[:16]
        check(transfer.id == named, f"{where} has not the id of its event")
        check(transfer.amount > 0, f"{where} moves nothing")
        check(transfer.debit != transfer.credit, f"{where} moves money to where it was")
        self._post(transfer.debit, transfer.amount, 0)
        self._post(transfer.credit, 0, transfer.amount)
        self.total_debits += transfer.amount
        if transfer.debit[0] != _OUTSIDE:
            check(self.balance(transfer.debit) >= 0, f"{where} overdraws {_name(transfer.debit)}")
        if _HELD in (transfer.debit[0], transfer.credit[0]):
            check(self._hold(transfer), f"{where} does not fit its hold")
        if transfer.code == "correct":
            self._correction(transfer, where)
        self._correctable[transfer.id] = (transfer.amount, transfer.credit)
        self._findings.count("transfers")

    def _post(self, account: Account, debit: int, credit: int) -> None:
        before = self._totals.get(account, (0, 0))
        self._changed.setdefault(account, before)
        self._totals[account] = (before[0] + debit, before[1] + credit)

    def _hold(self, transfer: Transfer) -> bool:
        hold_id, rest = transfer.ref[:16], transfer.ref[16:]
        known = self._holds.get(hold_id)
        self._changed_holds.setdefault(hold_id, known)
        if transfer.code == "hold":
            self._holds[hold_id] = _Hold(transfer.credit[1], rest, transfer.amount)
            same_customer = transfer.debit == (_AVAILABLE, transfer.credit[1])
            return known is None and len(rest) == 8 and same_customer
        if known is None or transfer.debit != (_HELD, known.customer):
            return False
        left = known.remaining - transfer.amount
        self._holds[hold_id] = known._replace(remaining=left)
        return left >= 0

    def _correction(self, transfer: Transfer, where: str) -> None:
        wrong = self._correctable.pop(transfer.reverses, None)
        fits = wrong == (transfer.amount, transfer.debit)
        self._findings.check(fits, f"{where} corrects no transfer of its amount")

    def digest(self) -> bytes:
        """The hash of the state after the transfers so far."""
        for account, before in self._changed.items():
            after = self._totals[account]
            self._sum.change(_account_line(account, before), _account_line(account, after))
        for hold_id, known in self._changed_holds.items():
            now = self._holds.get(hold_id)
            self._sum.change(_hold_line(hold_id, known), _hold_line(hold_id, now))
        self._changed.clear()
        self._changed_holds.clear()
        return self._sum.digest()

    def close(self) -> None:
        """Check what must hold at the end of a day, over all accounts."""
        held: defaultdict[bytes, int] = defaultdict(int)
        for hold in self._holds.values():
            held[hold.customer] += hold.remaining
        self._holds = {key: hold for key, hold in self._holds.items() if hold.remaining}
        for (kind, owner), (debits, credits_) in self._totals.items():
            fits = kind != _HELD or credits_ - debits == held[owner]
            self._findings.check(fits, f"{_name((kind, owner))} is not the sum of its open holds")
        self._findings.check(not sum(self.by_kind().values()), "balances do not add up to zero")


def _account_line(account: Account, totals: tuple[int, int]) -> bytes:
    if totals == (0, 0):
        return b""
    kind, owner = account
    return f"account {kind} {owner.hex()} {totals[0]} {totals[1]}".encode()


def _hold_line(hold_id: bytes, hold: _Hold | None) -> bytes:
    if hold is None or not hold.remaining:
        return b""
    customer, payer = (int.from_bytes(one, "big") for one in (hold.customer, hold.payer))
    return f"hold {hold_id.hex()} {customer} {payer} {hold.remaining}".encode()


def _name(account: Account) -> str:
    return f"{account[0]} {account[1].hex()}".rstrip()
