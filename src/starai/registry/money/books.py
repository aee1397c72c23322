"""The books in the database: applies events, pays for what was done, and checks it all by replay.

Everything happens inside the caller's transaction: an event is applied wholly, or the transaction
ends without it. Knows nothing of who may cause an event, nor of when work counts as done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgspec

from starai.core.errors import Conflict, StoreFailed
from starai.ledger import state
from starai.ledger.accounts import (
    INSURANCE,
    MONEY_MAX,
    UNUSED,
    Account,
    Kind,
    customer_owner,
    pending,
)
from starai.ledger.books import Books
from starai.ledger.events import Captured, Event, event_id
from starai.ledger.prices import Price, node_share
from starai.ledger.replaying import Replay
from starai.ledger.shelves import Hold
from starai.ledger.transfers import ID_BYTES, Code, Transfer
from starai.protocol.records import set_root
from starai.registry.money.shelf import StoredShelf
from starai.registry.schema import rows, rows_in
from starai.registry.storage import Connection

#: Problems listed before giving up: a few already say that the books are wrong.
PROBLEMS_MAX: Final = 100


def apply_event(connection: Connection, event: Event) -> tuple[Transfer, ...]:
    """Apply one event and write what it moved; nothing if that was done before.

    Raises:
        BalanceTooLow, Conflict, NotFound, InvalidRequest: see `Books.apply`; nothing is written.
    """
    shelf = StoredShelf(connection)
    books = Books(shelf)
    transfers = books.apply(event)
    shelf.keep(books.changes())
    return transfers


def books_hash(connection: Connection) -> bytes:
    """The hash of all books as they are now: 32 bytes, at the cost of reading one row."""
    return state.state_hash(StoredShelf(connection).books()[0])


def total_debits(connection: Connection) -> int:
    """All that was ever transferred, in nano-USD: grows beyond 64 bits."""
    return StoredShelf(connection).books()[1]


class Owed(NamedTuple):
    """A record that is to be paid, as its row of `task` has it; ``charge`` in nano-USD."""

    seq: int
    leaf: bytes
    payer: int
    price_id: int
    prompt_tokens: int
    answer_tokens: int
    charge: int


class Paid(msgspec.Struct, frozen=True):
    """What came of paying some records, in nano-USD.

    ``overcharged`` are the records (their ``seq``) that asked for more than their price row says,
    of which only that was charged. ``uncovered`` says, for each payer that could not pay all of an
    invoice, how much nobody could pay.
    """

    node_nano: int = 0
    fee_nano: int = 0
    overcharged: tuple[int, ...] = ()
    uncovered: tuple[tuple[int, int], ...] = ()


class Invoice(NamedTuple):
    """What a node (its raw key) is owed for records of one ``block`` that became due together.

    ``now_ms`` is when (Unix milliseconds).
    """

    node: bytes
    records: Sequence[Owed]
    now_ms: int
    block: int


class _Bill:
    """What one payer, and so its customer ``owner``, owes by one invoice."""

    __slots__ = ("charge", "invoice", "leaves", "node_share", "owner", "payer", "seqs")

    def __init__(self, invoice: Invoice, payer: int) -> None:
        self.invoice = invoice
        self.payer = payer
        self.owner: int | None = None
        self.charge = 0
        self.node_share = 0
        self.seqs: list[int] = []
        self.leaves: list[bytes] = []

    def event(self) -> Captured:
        """The payment of this bill, known by its records."""
        root = set_root(self.leaves)
        # More than all money there is cannot be paid, so it need not be asked for.
        charge = min(self.charge, MONEY_MAX)
        return Captured(
            event_id=event_id(
                b"captured", customer_owner(self.payer), root, slot=self.invoice.block
            ),
            at_ms=self.invoice.now_ms,
            customer=self.owner or 0,
            payer=self.payer,
            node=self.invoice.node,
            charge=charge,
            node_share=min(self.node_share, charge),
            ref=root,
        )


def capture(connection: Connection, invoices: Sequence[Invoice]) -> Paid:
    """Pay invoices: one event for each and each of its payers, named in its records' rows.

    A record is charged at most what its price row says, and nothing without one. Records that cost
    nothing move nothing. An event is known by its records, so the same again pays nothing again.
    Many invoices together move what they move one after another, with as few statements as one.

    Raises:
        Conflict: a record was paid before, by another event.
    """
    bills, overcharged = _bills(connection, invoices)
    missing = [(bill.payer, bill.charge) for bill in bills if bill.owner is None]
    # Nobody let those in, so nobody, the insurance least of all, pays for them.
    due = [(bill, bill.event()) for bill in bills if bill.owner is not None]
    shelf = StoredShelf(connection)
    shelf.expect([event for _, event in due])
    books = Books(shelf)
    nano = {Code.CAPTURE: 0, Code.FEE: 0}
    paid: list[tuple[_Bill, tuple[Transfer, ...]]] = []
    for bill, event in due:
        transfers = books.apply(event)
        if not transfers and books.is_applied(event.event_id):
            continue
        if transfers:
            paid.append((bill, transfers))
        for one in transfers:
            nano[one.code] += one.amount
        if short := bill.charge - sum(one.amount for one in transfers):
            missing.append((bill.payer, short))
    _mark(connection, paid)
    shelf.keep(books.changes())
    return Paid(nano[Code.CAPTURE], nano[Code.FEE], tuple(overcharged), tuple(sorted(missing)))


def _bills(connection: Connection, invoices: Sequence[Invoice]) -> tuple[list[_Bill], list[int]]:
    """What each payer owes by each invoice, and the records that asked for too much."""
    prices = _prices(connection, {one.price_id for invoice in invoices for one in invoice.records})
    found: list[_Bill] = []
    overcharged: list[int] = []
    for invoice in invoices:
        bills: dict[int, _Bill] = {}
        for seq, leaf, payer, price_id, prompt_tokens, answer_tokens, asked in invoice.records:
            price = prices.get(price_id)
            charge = min(asked, price.charge(prompt_tokens, answer_tokens)) if price else 0
            if charge < asked:
                overcharged.append(seq)
            if not charge or price is None:
                continue
            bill = bills.get(payer)
            if bill is None:
                bill = bills[payer] = _Bill(invoice, payer)
            bill.charge += charge
            bill.node_share += node_share(charge, price.node_share_bps)
            bill.seqs.append(seq)
            bill.leaves.append(leaf)
        found += bills.values()
    owners = "SELECT customer, owner FROM key WHERE customer IN ({})"
    owner_of = dict(rows_in(connection, owners, list({bill.payer for bill in found})))
    for bill in found:
        bill.owner = owner_of.get(bill.payer)
    return found, overcharged


def _prices(connection: Connection, price_ids: set[int]) -> dict[int, Price]:
    sql = (
        "SELECT id, model, input_nano, output_nano, node_bps, valid_from_ms FROM price"
        " WHERE id IN ({})"
    )
    return {row[0]: Price(*row) for row in rows_in(connection, sql, list(price_ids))}


def _mark(connection: Connection, paid: Sequence[tuple[_Bill, tuple[Transfer, ...]]]) -> None:
    """Name the events in the rows of the records that they paid, and count what keys spent."""
    seqs = [seq for bill, _ in paid for seq in bill.seqs]
    unpaid = "SELECT count(*) FROM task WHERE seq IN ({}) AND event_id IS NULL"
    if sum(count for (count,) in rows_in(connection, unpaid, seqs)) != len(seqs):
        raise Conflict("a record of these was paid before")
    connection.executemany(
        "UPDATE task SET event_id = ? WHERE seq = ?",
        [(transfers[0].event_id, seq) for bill, transfers in paid for seq in bill.seqs],
    )
    spent = [
        (sum(one.amount for one in transfers if one.debit != INSURANCE), bill.payer)
        for bill, transfers in paid
    ]
    connection.executemany("UPDATE key SET spent_nano = spent_nano + ? WHERE customer = ?", spent)


class BooksCheck(msgspec.Struct, frozen=True):
    """What was replayed, and each thing found wrong, in words; no ``problems`` is sound books."""

    transfers: int
    accounts: int
    open_holds: int
    books_hash: bytes
    problems: tuple[str, ...]


def verify_books(connection: Connection) -> BooksCheck:
    """Make all books again from their transfers, and compare everything that is kept with that.

    Also holds what was paid for records beside the records themselves. Memory grows with accounts
    and open holds, not with transfers.
    """
    shelf, replay = StoredShelf(connection), Replay()
    problems: list[str] = []
    try:
        for problem in _problems(connection, shelf, replay):
            problems.append(problem)
            if len(problems) == PROBLEMS_MAX:
                break
    except StoreFailed as error:
        problems.append(error.message)
    except connection.errors as error:
        problems.append(f"the database cannot be read: {error}")
    total = state.sum_of(replay.accounts, replay.holds.values())
    return BooksCheck(
        transfers=replay.num_transfers,
        accounts=len(replay.accounts),
        open_holds=len(replay.holds),
        books_hash=state.state_hash(total),
        problems=tuple(problems),
    )


def _problems(connection: Connection, shelf: StoredShelf, replay: Replay) -> Iterator[str]:
    debits = 0
    for transfer in shelf.all_transfers():
        debits += transfer.amount
        for problem in replay.add(transfer):
            yield f"transfer {transfer.transfer_id.hex()}: {problem}"
    yield from state.check(replay.accounts, replay.holds.values())
    kept = dict(shelf.all_accounts())
    for account in sorted(kept.keys() | replay.accounts.keys()):
        there, due = kept.get(account, UNUSED), replay.accounts.get(account, UNUSED)
        if there != due:
            yield f"{account} is kept as {there}, its transfers say {due}"
    yield from _hold_problems(shelf, replay.holds)
    total = state.sum_of(replay.accounts, replay.holds.values())
    if shelf.books() != (total, debits):
        yield "the kept state of the books is not that of their transfers"
    yield from _payment_problems(connection, shelf)


def _hold_problems(shelf: StoredShelf, replayed: dict[bytes, Hold]) -> Iterator[str]:
    missing = set(replayed)
    for hold, is_open in shelf.all_holds():
        missing.discard(hold.hold_id)
        due = replayed.get(hold.hold_id)
        there = (hold.customer, hold.payer, hold.amount, hold.remaining)
        if is_open != (due is not None) or (
            due is not None and there != (due.customer, due.payer, due.amount, due.remaining)
        ):
            yield f"hold {hold.hold_id.hex()} is not what its transfers say"
    for hold_id in missing:
        yield f"hold {hold_id.hex()} is missing"


def _payment_problems(connection: Connection, shelf: StoredShelf) -> Iterator[str]:
    """Each payment against the records that name it: these, no others, and no more than asked."""
    paid = rows(
        connection,
        "SELECT event_id, node, leaf, charge FROM task WHERE event_id IS NOT NULL"
        " ORDER BY event_id",
    )
    for event, group in groupby(paid, key=itemgetter(0)):
        records: list[tuple[Any, ...]] = list(group)
        moved = shelf.transfers_of(event)
        root = set_root(leaf for _, _, leaf, _ in records)
        accounts = {pending(node) for _, node, _, _ in records} | {Account(Kind.FEE)}
        named = all(
            one.ref[ID_BYTES if one.debit.kind is Kind.HELD else 0 :] == root for one in moved
        )
        if not moved or not named or {one.credit for one in moved} - accounts:
            yield f"event {event.hex()} did not pay for exactly the records that name it"
        if sum(one.amount for one in moved) > sum(charge for *_, charge in records):
            yield f"event {event.hex()} paid more than its records charge"
