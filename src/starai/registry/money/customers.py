"""Customers: who pays for the keys that draw on their balance, by paying in ahead.

A credit line is money that the operator lends: it is paid into the balance like a deposit and
taken out again when it is lowered, so that no balance is ever below zero and nothing else has to
know of credit. Knows nothing of prices or requests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from starai.core.clock import Clock
from starai.core.errors import BalanceTooLow, Conflict, InvalidRequest, NotFound
from starai.ledger.accounts import MONEY_MAX, available, customer_owner, held, natural, usd
from starai.ledger.events import Deposited, Withdrawn, event_id
from starai.protocol.registry import FundsChanged
from starai.registry.admission import check_label
from starai.registry.money.books import apply_event
from starai.registry.money.shelf import StoredShelf
from starai.registry.schema import rows
from starai.registry.storage import Connection, Store

#: Customers of one report.
ROWS_MAX: Final = 500
#: What a transfer can say of itself.
NOTE_BYTES_MAX: Final = 64

Publish = Callable[[FundsChanged], Awaitable[None]]


class Balance(msgspec.Struct, frozen=True):
    """A customer and its money: nano-USD, as strings, for JavaScript cuts large numbers.

    ``available`` may be spent, as far as it is not asked back of a vault; ``held`` is set aside for
    requests or to be given back; ``spent`` was charged.
    ``credit`` is how much was lent; ``credit_used`` how much of that is neither available nor held.
    """

    customer: int
    name: str
    created_ms: int
    available_nano_usd: str
    held_nano_usd: str
    spent_nano_usd: str
    credit_nano_usd: str
    credit_used_nano_usd: str
    keys: int


class Customers:
    """The customer table, and what the operator does to balances."""

    def __init__(self, store: Store, clock: Clock, publish: Publish) -> None:
        """Take where a changed balance is told."""
        self._store = store
        self._clock = clock
        self._publish = publish

    async def create(self, name: str, address: bytes | None = None) -> int:
        """A new customer's number; what ``address`` deposits at a vault becomes its balance.

        It is named at the start or never: a leaf says what was *ever* spent, so who had spent
        before could not take its deposit back.

        Raises:
            InvalidRequest: the name is empty, a number, or unfit to be shown.
            Conflict: another customer has that name, or that address.
        """
        check_label(name)
        if not name or _is_number(name):
            raise InvalidRequest("a customer has a name, which is not a number", param="name")
        now_ms = self._clock.now_ms()
        return await self._store.write(
            lambda connection: _create(connection, name, now_ms, address)
        )

    async def deposit(
        self, customer: str, amount_nano_usd: int, event: bytes, note: str = ""
    ) -> Balance:
        """Pay in. ``event`` (16 bytes, made by who asks) makes one deposit of a repeated one.

        Raises:
            NotFound: there is no such customer.
            InvalidRequest: the amount is not above 0.
            Conflict: another deposit had that event.
        """
        if len(note.encode()) > NOTE_BYTES_MAX or not note.isprintable():
            raise InvalidRequest(f"a note has at most {NOTE_BYTES_MAX} bytes", param="note")
        now_ms = self._clock.now_ms()

        def pay_in(connection: Connection) -> Balance:
            number = find(connection, customer)
            paid = Deposited(
                event_id=event,
                at_ms=now_ms,
                customer=number,
                amount=amount_nano_usd,
                ref=note.encode(),
            )
            apply_event(connection, paid)
            return _balance(connection, number)

        return await self._told(pay_in)

    async def set_credit(self, customer: str, amount_nano_usd: int) -> Balance:
        """Lend up to so much from now on.

        Raises:
            NotFound: there is no such customer.
            BalanceTooLow: it would be lower, and what is to be taken back is not available.
        """
        natural(amount_nano_usd, "amount_nano_usd")
        now_ms = self._clock.now_ms()
        return await self._told(
            lambda connection: _set_credit(connection, customer, amount_nano_usd, now_ms)
        )

    async def set_budget(self, key_id: str, amount_nano_usd: int | None) -> None:
        """Let a key spend so much in its life and no more; None: as much as its owner has.

        Raises:
            NotFound: there is no such key.
        """
        if amount_nano_usd is not None:
            natural(amount_nano_usd, "amount_nano_usd")
        owner = await self._store.write(
            lambda connection: _set_budget(connection, key_id, amount_nano_usd)
        )
        await self._publish(FundsChanged(owner))

    async def balances(self, customer: str | None = None) -> list[Balance]:
        """One customer's balance, or everybody's.

        Raises:
            NotFound: there is no such customer.
        """
        return await self._store.read(lambda connection: _balances(connection, customer))

    async def _told(self, change: Callable[[Connection], Balance]) -> Balance:
        balance = await self._store.write(change)
        await self._publish(FundsChanged(balance.customer))
        return balance


def find(connection: Connection, customer: str) -> int:
    """The number of a customer that is named by it, or by its name.

    Raises:
        NotFound: there is none.
        Conflict: several have that name.
    """
    if _is_number(customer) and len(customer) < len(str(MONEY_MAX)):
        found = list(rows(connection, "SELECT id FROM customer WHERE id = ?", int(customer)))
    else:
        found = list(rows(connection, "SELECT id FROM customer WHERE name = ? LIMIT 2", customer))
    if not found:
        raise NotFound(f"no customer {customer!r}; `starai customers list` shows them")
    if len(found) > 1:
        raise Conflict(f"several customers are called {customer!r}: give the number")
    number: int = found[0][0]
    return number


def _is_number(text: str) -> bool:
    """Whether it is made of 0 to 9; Python counts many other signs among the digits."""
    return text.isascii() and text.isdecimal()


def _create(connection: Connection, name: str, now_ms: int, address: bytes | None) -> int:
    if next(rows(connection, "SELECT 1 FROM customer WHERE name = ? LIMIT 1", name), None):
        raise Conflict(f"there is a customer {name!r} already")
    for (number,) in rows(connection, "SELECT id FROM customer WHERE address = ?", address):
        raise Conflict(f"this address is that of customer {number} already")
    return insert(connection, name, now_ms, address)


def insert(connection: Connection, name: str, now_ms: int, address: bytes | None = None) -> int:
    """A new row; its number."""
    ((number,),) = rows(
        connection,
        "INSERT INTO customer (name, created_ms, credit_nano, address) VALUES (?, ?, 0, ?)"
        " RETURNING id",
        name,
        now_ms,
        address,
    )
    created: int = number
    return created


def _set_credit(connection: Connection, customer: str, amount: int, now_ms: int) -> Balance:
    number = find(connection, customer)
    ((before,),) = rows(connection, "SELECT credit_nano FROM customer WHERE id = ?", number)
    change = amount - before
    # A change is an event of its own, told apart by how many transfers there were before it.
    ((count,),) = rows(connection, "SELECT coalesce(max(seq), 0) FROM transfer")
    said: dict[str, Any] = {
        "event_id": event_id(b"credit", customer_owner(number), count.to_bytes(8, "big")),
        "at_ms": now_ms,
        "customer": number,
        "amount": abs(change),
        "ref": b"credit line",
    }
    try:
        if change > 0:
            apply_event(connection, Deposited(**said))
        elif change < 0:
            apply_event(connection, Withdrawn(**said))
    except BalanceTooLow as error:
        left = StoredShelf(connection).totals(available(number)).balance
        raise BalanceTooLow(
            f"{usd(-change)} of the credit line cannot be taken back: {usd(left)} are available. "
            f"The lowest line is {usd(before - left)} until something is paid in"
        ) from error
    connection.execute("UPDATE customer SET credit_nano = ? WHERE id = ?", (amount, number))
    return _balance(connection, number)


def _set_budget(connection: Connection, key_id: str, amount: int | None) -> int:
    changed = rows(
        connection,
        "UPDATE key SET budget_nano = ? WHERE key_id = ? RETURNING owner",
        amount,
        key_id,
    )
    for (owner,) in changed:
        number: int = owner
        return number
    raise NotFound(f"no API key {key_id!r}; `starai keys list` shows them")


def _balances(connection: Connection, customer: str | None) -> list[Balance]:
    if customer is not None:
        return [_balance(connection, find(connection, customer))]
    found = list(rows(connection, "SELECT id FROM customer ORDER BY id LIMIT ?", ROWS_MAX))
    return [_balance(connection, number) for (number,) in found]


def _balance(connection: Connection, number: int) -> Balance:
    ((name, created_ms, credit),) = rows(
        connection, "SELECT name, created_ms, credit_nano FROM customer WHERE id = ?", number
    )
    ((keys, spent),) = rows(
        connection,
        "SELECT count(*) FILTER (WHERE revoked_ms IS NULL),"
        " CAST(coalesce(sum(spent_nano), 0) AS BIGINT) FROM key WHERE owner = ?",
        number,
    )
    shelf = StoredShelf(connection)
    there, aside = shelf.totals(available(number)).balance, shelf.totals(held(number)).balance
    return Balance(
        customer=number,
        name=name,
        created_ms=created_ms,
        available_nano_usd=str(there),
        held_nano_usd=str(aside),
        spent_nano_usd=str(spent),
        credit_nano_usd=str(credit),
        credit_used_nano_usd=str(max(0, credit - there - aside)),
        keys=keys,
    )
