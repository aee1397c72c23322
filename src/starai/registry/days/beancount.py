"""The books in beancount's plain text, so that `bean-check` and other tools can look at them.

One transaction an event. Accounts are named by whose they are: customers by number, nodes by their
key. Knows nothing of blocks or days.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import groupby
from typing import Final

from starai.ledger.accounts import NANO_PER_USD, Account, Kind
from starai.ledger.transfers import Transfer
from starai.registry.log.blocks import transfers_after
from starai.registry.storage.base import Connection

#: What beancount calls each kind. The pool is an asset: the money outside that backs the rest.
_NAMES: Final = {
    Kind.AVAILABLE: "Liabilities:Customer:{}:Available",
    Kind.HELD: "Liabilities:Customer:{}:Held",
    Kind.PENDING: "Liabilities:Node:{}:Pending",
    Kind.PAYABLE: "Liabilities:Node:{}:Payable",
    Kind.STAKE: "Liabilities:Node:{}:Stake",
    Kind.FEE: "Income:Fee",
    Kind.INSURANCE: "Equity:Insurance",
    Kind.POOL: "Assets:Chain:Pool",
}


def beancount(connection: Connection) -> Iterator[str]:
    """The lines of the file; beancount's signs are the other way round: a debit is positive."""
    yield 'option "title" "StarAI"\noption "operating_currency" "USD"\n'
    opened: set[Account] = set()
    moved = (transfer for _, transfer in transfers_after(connection, 0))
    for _, group in groupby(moved, key=lambda transfer: transfer.event_id):
        transfers = list(group)
        day = _day(transfers[0])
        for one in transfers:
            for account in (one.debit, one.credit):
                if account not in opened:
                    opened.add(account)
                    yield f"1970-01-01 open {_name(account)} USD\n"
        yield f'\n{day} * "{transfers[0].code.value}" "{transfers[0].event_id.hex()}"\n'
        for one in transfers:
            amount = _amount(one.amount)
            yield f"  {_name(one.debit)}  {amount} USD\n  {_name(one.credit)}  -{amount} USD\n"


def _day(transfer: Transfer) -> str:
    return datetime.fromtimestamp(transfer.at_ms / 1000, UTC).date().isoformat()


def _name(account: Account) -> str:
    owner = account.owner.hex().upper()
    if account.kind in (Kind.AVAILABLE, Kind.HELD):
        owner = str(int.from_bytes(account.owner, "big"))
    return _NAMES[account.kind].format(owner)


def _amount(nano: int) -> str:
    whole, rest = divmod(nano, NANO_PER_USD)
    return f"{whole}.{rest:09d}"
