"""One hash for all books, kept up to date at the cost of what changed; and whether they add up.

The hash is a sum, modulo 2^2048, of one 256-byte SHAKE256 value for each used account and each open
hold, so a change adds the new value and takes away the old (AdHash: Bellare and Micciancio, "A new
paradigm for collision-free hashing", 1997; so wide because of Wagner, "A generalized birthday
problem", 2002). Accounts and holds follow from transfers, so who replays those finds the same hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from starai.ledger.accounts import UNUSED, Account, Kind, Totals, held
from starai.ledger.shelves import Changes, Hold

#: The width of the sum.
SUM_BYTES: Final = 256
_MODULUS: Final = 1 << (8 * SUM_BYTES)
#: Values that are remembered: what a change adds is what the next change takes away. 5 MB.
_REMEMBERED: Final = 8_192


@lru_cache(_REMEMBERED)
def _value(text: str) -> int:
    return int.from_bytes(hashlib.shake_256(text.encode()).digest(SUM_BYTES), "big")


def _account_value(account: Account, totals: Totals) -> int:
    if totals == UNUSED:
        return 0
    kind, owner = account
    debits, credits_ = totals
    return _value(f"account {kind} {owner.hex()} {debits} {credits_}")


def _hold_value(hold: Hold | None) -> int:
    if hold is None or not hold.remaining:
        return 0
    return _value(f"hold {hold.hold_id.hex()} {hold.customer} {hold.payer} {hold.remaining}")


def add(total: int, changes: Changes) -> int:
    """The sum after ``changes``, given the sum before; of empty books it is 0."""
    for account, before, after in changes.accounts:
        total += _account_value(account, after) - _account_value(account, before)
    for before_hold, after_hold in changes.holds:
        total += _hold_value(after_hold) - _hold_value(before_hold)
    return total % _MODULUS


def sum_of(accounts: Mapping[Account, Totals], holds: Iterable[Hold]) -> int:
    """The sum of whole books, from nothing."""
    total = sum(_account_value(account, totals) for account, totals in accounts.items())
    return (total + sum(map(_hold_value, holds))) % _MODULUS


def state_hash(total: int) -> bytes:
    """The 32 bytes that stand for books with this sum."""
    return hashlib.sha256(b"starai/v1/books" + total.to_bytes(SUM_BYTES, "big")).digest()


def check(accounts: Mapping[Account, Totals], holds: Iterable[Hold]) -> list[str]:
    """What is wrong with books, in words; nothing in sound ones, after any event.

    Debits and credits add up to the same; no balance but the pool's is below zero; what is held of
    each customer is the sum of its open holds.
    """
    problems = []
    debits = sum(totals.debits for totals in accounts.values())
    credits_ = sum(totals.credits for totals in accounts.values())
    if debits != credits_:
        problems.append(f"all debits are {debits}, all credits {credits_}")
    for account, totals in accounts.items():
        if totals.balance < 0 and account.kind is not Kind.POOL:
            problems.append(f"{account} stands at {totals.balance}")
    due = {account: 0 for account in accounts if account.kind is Kind.HELD}
    for hold in holds:
        account = held(hold.customer)
        due[account] = due.get(account, 0) + hold.remaining
        if not 0 <= hold.remaining <= hold.amount:
            problems.append(f"hold {hold.hold_id.hex()} has {hold.remaining} of {hold.amount}")
    for account, amount in due.items():
        there = accounts.get(account, UNUSED).balance
        if there != amount:
            problems.append(f"{account} stands at {there}, its holds at {amount}")
    return problems
