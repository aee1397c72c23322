"""Withdrawals: what customers asked back of a deposit outside, and what they then took.

What was asked for may be taken later whatever the books say then. So from the request on it is not
for spending: what is available is held at once, what gateways still have set aside is not granted
a second time (`reserved`). Who takes out more than is there owes the difference, and it is taken
from whatever becomes available next. Knows nothing of chains.
"""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

from starai.core.logging import event
from starai.ledger.accounts import available
from starai.ledger.events import HoldPlaced, HoldReleased, Withdrawn, event_id
from starai.registry.money.books import apply_event
from starai.registry.money.shelf import StoredShelf
from starai.registry.schema import INTEGER_MAX, rows
from starai.registry.storage import Connection

_LOG = logging.getLogger(__name__)

#: The payer of holds for withdrawals: no API key has this number.
NO_KEY: Final = 0


class Withdrawal(NamedTuple):
    """What was heard: ``name`` (16 bytes) is its own for ever; ``amount`` in nano-USD."""

    name: bytes
    customer: int
    amount: int
    ref: bytes
    at_ms: int


def is_heard(connection: Connection, name: bytes) -> bool:
    """Whether a request or a withdrawal of this name was booked before."""
    return next(rows(connection, "SELECT 1 FROM withdrawal WHERE name = ?", name), None) is not None


def request(connection: Connection, asked: Withdrawal) -> None:
    """Set aside what a customer asks back, instead of what it asked for before."""
    _release(connection, asked)
    _leave_asked(connection, asked.customer, 0)
    _keep(connection, asked, asked=asked.amount, owed=0)
    _set_aside(connection, asked)


def withdraw(connection: Connection, taken: Withdrawal) -> int:
    """Book what a customer has taken; returns what of it was not there, which it now owes.

    What is left of its request stays set aside: it may be taken as well.
    """
    _release(connection, taken)
    there = StoredShelf(connection).totals(available(taken.customer)).balance
    paid = min(there, taken.amount)
    if paid:
        out = Withdrawn(
            event_id=taken.name,
            at_ms=taken.at_ms,
            customer=taken.customer,
            amount=paid,
            ref=taken.ref,
        )
        apply_event(connection, out)
    asked, _ = _open(connection, taken.customer)
    _leave_asked(connection, taken.customer, max(0, asked - taken.amount))
    owed = taken.amount - paid
    _keep(connection, taken, asked=0, owed=owed)
    _set_aside(connection, taken)
    if owed:
        event(_LOG, "withdrawn_beyond_balance", logging.ERROR, customer=taken.customer, nano=owed)
    return owed


def reserved(connection: Connection, customer: int) -> int:
    """How much of what a customer has, or gets, is asked back or owed and not held yet."""
    asked, owed = _open(connection, customer)
    if asked:
        holds = StoredShelf(connection).open_holds(customer, NO_KEY)
        asked = max(0, asked - sum(hold.remaining for hold in holds))
    return asked + owed


def total_owed(connection: Connection) -> int:
    """What all customers together have taken out and did not have, in nano-USD."""
    found = rows(connection, "SELECT owed FROM withdrawal WHERE asked + owed > 0")
    return sum(owed for (owed,) in found)


def collect(connection: Connection, now_ms: int) -> None:
    """Take what is owed from what has become available since."""
    debts = rows(
        connection,
        "SELECT name, customer, owed FROM withdrawal WHERE asked + owed > 0 AND owed > 0"
        " ORDER BY at_ms, name",
    )
    for name, customer, owed in list(debts):
        there = StoredShelf(connection).totals(available(customer)).balance
        paid = min(there, owed)
        if not paid:
            continue
        out = Withdrawn(
            # What is owed only ever falls, so each payment has a name of its own.
            event_id=event_id(b"withdrawal owed", name, owed.to_bytes(8, "big")),
            at_ms=now_ms,
            customer=customer,
            amount=paid,
            ref=name,
        )
        apply_event(connection, out)
        connection.execute("UPDATE withdrawal SET owed = ? WHERE name = ?", (owed - paid, name))


def _open(connection: Connection, customer: int) -> tuple[int, int]:
    """What a customer has asked for and not taken, and what it owes."""
    asked = owed = 0
    for one in rows(
        connection,
        "SELECT asked, owed FROM withdrawal WHERE customer = ? AND asked + owed > 0",
        customer,
    ):
        asked += one[0]
        owed += one[1]
    return asked, owed


def _leave_asked(connection: Connection, customer: int, amount: int) -> None:
    """Only the newest request counts, so at most one row of a customer has something asked."""
    connection.execute(
        "UPDATE withdrawal SET asked = ? WHERE customer = ? AND asked + owed > 0 AND asked > 0",
        (amount, customer),
    )


def _keep(connection: Connection, heard: Withdrawal, *, asked: int, owed: int) -> None:
    connection.execute(
        "INSERT INTO withdrawal (name, customer, asked, owed, at_ms) VALUES (?, ?, ?, ?, ?)",
        (heard.name, heard.customer, asked, owed, heard.at_ms),
    )


def _set_aside(connection: Connection, heard: Withdrawal) -> None:
    """Hold what is asked for, as far as it is available and not owed."""
    asked, owed = _open(connection, heard.customer)
    there = StoredShelf(connection).totals(available(heard.customer)).balance - owed
    if min(asked, there) <= 0:
        return
    name = event_id(b"withdrawal", heard.name)
    placed = HoldPlaced(
        event_id=name,
        at_ms=heard.at_ms,
        hold_id=name,
        customer=heard.customer,
        payer=NO_KEY,
        amount=min(asked, there),
        expires_ms=INTEGER_MAX,
    )
    apply_event(connection, placed)


def _release(connection: Connection, heard: Withdrawal) -> None:
    """Give back what was set aside for a withdrawal before this."""
    for hold in StoredShelf(connection).open_holds(heard.customer, NO_KEY):
        released = HoldReleased(
            event_id=event_id(b"withdrawal over", heard.name, hold.hold_id),
            at_ms=heard.at_ms,
            hold_id=hold.hold_id,
        )
        apply_event(connection, released)
