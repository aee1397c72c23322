"""Double entry, once more: each transfer, every balance, every open hold, and their one hash.

Balances follow from transfers alone. Nothing but the money outside is ever below zero, money is
drawn only on holds that are there, and what is held is the sum of what is open.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Set as AbstractSet
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from starai.verifier.hashing import BooksSum
from starai.verifier.reading import Findings, Unreadable

_FIXED: Final = struct.Struct("<4sB3x16s16sQQ")
_MAGIC: Final = b"SAIT"
_HELD: Final = "customer.held"
_AVAILABLE: Final = "customer.available"
_OUTSIDE: Final = "chain.pool"

_NUM_PARTS: Final = 7
_ID_BYTES: Final = 16
_CORRECT: Final = b"\x07\x00correct"
#: Accounts that are kept once, however many transfers name them.
_ACCOUNTS_KEPT: Final = 1 << 18
#: Between which kinds of account each kind of transfer moves money.
_WAYS: Final[dict[str, frozenset[tuple[str, str]]]] = {
    "deposit": frozenset({(_OUTSIDE, _AVAILABLE)}),
    "withdraw": frozenset({(_AVAILABLE, _OUTSIDE)}),
    "hold": frozenset({(_AVAILABLE, _HELD)}),
    "release": frozenset({(_HELD, _AVAILABLE)}),
    "capture": frozenset((kind, "node.pending") for kind in (_HELD, _AVAILABLE, "insurance")),
    "fee": frozenset((kind, "fee") for kind in (_HELD, _AVAILABLE, "insurance")),
    "mature": frozenset({("node.pending", "node.payable")}),
    "stake": frozenset({("node.payable", "node.stake")}),
    "unstake": frozenset({("node.stake", "node.payable")}),
    "slash": frozenset({("node.stake", "insurance")}),
    "refund": frozenset((kind, _AVAILABLE) for kind in ("node.pending", "fee", "insurance")),
    "claimed": frozenset({("node.payable", _OUTSIDE)}),
}
#: Kinds of transfer that stay with one customer or node.
_WITHIN_ONE: Final = frozenset({"hold", "release", "mature", "stake", "unstake"})

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
        for _ in range(_NUM_PARTS):
            start = at + 2
            at = start + data[at] + (data[at + 1] << 8)
            parts.append(data[start:at])
        code, debit_kind, debit_owner, credit_kind, credit_owner, ref, reverses = parts
        debit, credit = _account(debit_kind, debit_owner), _account(credit_kind, credit_owner)
        word = _word(code)
    except (IndexError, struct.error, ValueError) as error:
        raise Unreadable("transfers.bin has something that is no transfer") from error
    if magic != _MAGIC or version != 1 or at != len(data):
        raise Unreadable("transfers.bin has something that is no transfer")
    return Transfer(transfer_id, event_id, amount, at_ms, word, debit, credit, ref, reverses)


@lru_cache(_ACCOUNTS_KEPT)
def _account(kind: bytes, owner: bytes) -> Account:
    return _word(kind), owner


@lru_cache(256)
def _word(data: bytes) -> str:
    return data.decode()


def corrections(bodies: Iterable[bytes]) -> Iterator[bytes]:
    """The ids of the transfers that corrections among these canonical bytes take back."""
    return (data[-_ID_BYTES:] for data in bodies if data.startswith(_CORRECT, _FIXED.size))


class OlderCorrected(Exception):
    """A correction takes back what is older than where the check began: only all of it can tell."""


class BooksKept(msgspec.Struct, frozen=True, kw_only=True):
    """Books between two checks: accounts with their debits and credits, open holds, counts."""

    accounts: list[tuple[str, bytes, int, int]] = []
    holds: list[tuple[bytes, bytes, bytes, int]] = []
    sum: int = 0
    event: bytes = b""
    index: int = 0
    num_transfers: int = 0
    total_debits: int = 0


class Books:
    """Balances and open holds after the transfers so far."""

    def __init__(self, findings: Findings, corrected: AbstractSet[bytes], kept: BooksKept) -> None:
        """Start where an earlier check ended.

        Args:
            findings: hears what is wrong.
            corrected: the ids of all transfers that will be taken back: no other is remembered.
            kept: where the earlier check ended.
        """
        self._findings = findings
        self._corrected = corrected
        self._has_older = kept.num_transfers > 0
        self._totals: dict[Account, list[int]] = {
            (kind, owner): [debits, credits_] for kind, owner, debits, credits_ in kept.accounts
        }
        self._holds = {
            hold_id: _Hold(customer, payer, remaining)
            for hold_id, customer, payer, remaining in kept.holds
        }
        self._sum = BooksSum(kept.sum)
        self._changed: dict[Account, tuple[int, int]] = {}
        self._changed_holds: dict[bytes, _Hold | None] = {}
        self._event = kept.event
        self._index = kept.index
        self._correctable: dict[bytes, tuple[int, Account | None, Account | None]] = {}
        self.num_transfers = kept.num_transfers
        self.total_debits = kept.total_debits

    def kept(self) -> BooksKept:
        """What the next check begins with; after `close`."""
        return BooksKept(
            accounts=[(*account, totals[0], totals[1]) for account, totals in self._totals.items()],
            holds=[(hold_id, *hold) for hold_id, hold in self._holds.items()],
            sum=self._sum.total,
            event=self._event,
            index=self._index,
            num_transfers=self.num_transfers,
            total_debits=self.total_debits,
        )

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
        """Take the next transfer.

        Raises:
            OlderCorrected: it takes back one from before where the check began.
        """
        for problem in self._faults(transfer):
            self._findings.complain(f"transfer {transfer.id.hex()} {problem}")
        self.num_transfers += 1
        self.total_debits += transfer.amount
        if transfer.id in self._corrected:
            self._correctable[transfer.id] = (transfer.amount, transfer.debit, transfer.credit)

    def _faults(self, transfer: Transfer) -> Iterator[str]:
        """Post the transfer; what is wrong with it."""
        transfer_id, event_id, amount, _, code, debit, credit, *_ = transfer
        self._index = self._index + 1 if event_id == self._event else 0
        self._event = event_id
        if transfer_id != event_id[2:] + self._index.to_bytes(4, "big")[-2:]:
            yield "has not the id of its event"
        if amount <= 0:
            yield "moves nothing"
        if (debit[0], credit[0]) not in _WAYS.get(code, ()):
            if code != "correct":
                yield "moves money a way that its kind never goes"
            elif not self._corrects(transfer):
                yield "corrects no transfer"
        elif debit[1] != credit[1] and code in _WITHIN_ONE:
            yield "moves money to another owner"
        if debit == credit:
            yield "moves money to where it was"
        self._post(credit, 1, amount)
        if self._post(debit, 0, amount) < 0 and debit[0] != _OUTSIDE:
            yield f"overdraws {_name(debit)}"
        if _HELD in (debit[0], credit[0]) and not self._hold(transfer):
            yield "does not fit its hold"

    def _post(self, account: Account, side: int, amount: int) -> int:
        """Add to an account's debits (side 0) or credits (1); its balance."""
        totals = self._totals.get(account)
        if totals is None:
            totals = self._totals[account] = [0, 0]
        if account not in self._changed:
            self._changed[account] = (totals[0], totals[1])
        totals[side] += amount
        return totals[1] - totals[0]

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

    def _corrects(self, transfer: Transfer) -> bool:
        """Whether a correction takes back a transfer that nothing took back before."""
        if self._has_older and transfer.reverses not in self._correctable:
            raise OlderCorrected
        amount, debit, credit = self._correctable.pop(transfer.reverses, (0, None, None))
        if debit is not None and debit[0] == _HELD:
            debit = (_AVAILABLE, debit[1])
        return (amount, credit, debit) == (transfer.amount, transfer.debit, transfer.credit)

    def digest(self) -> bytes:
        """The hash of the state after the transfers so far."""
        for account, before in self._changed.items():
            after = (self._totals[account][0], self._totals[account][1])
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
            if kind == _HELD and credits_ - debits != held[owner]:
                self._findings.complain(f"{_name((kind, owner))} is not the sum of its open holds")
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
