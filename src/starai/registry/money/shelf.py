"""The books' rows: how accounts, holds and transfers are read from the database and written to it.

Knows nothing of what moves money; `starai.registry.money.books` applies events through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from starai.core.errors import ConfigurationRefused, StoreFailed
from starai.ledger import state
from starai.ledger.accounts import FEE, UNUSED, Account, Kind, Totals, held, pending
from starai.ledger.events import Captured
from starai.ledger.shelves import Changes, Hold
from starai.ledger.transfers import MOVES_MAX, Code, Transfer, transfer_id
from starai.registry.schema import rows, rows_in
from starai.registry.storage import Connection

_HOLD: Final = (
    "SELECT hold_id, customer, payer, amount, remaining, placed_ms, expires_ms, gateway FROM hold"
)
_TRANSFER: Final = (
    "SELECT id, event_id, code, debit_kind, debit_owner, credit_kind, credit_owner, amount, ref,"
    " reverses, at_ms FROM transfer"
)
_ADD_TRANSFER: Final = """
INSERT INTO transfer (
  id, event_id, code, debit_kind, debit_owner, credit_kind, credit_owner, amount, ref, reverses,
  at_ms
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
# Differences, not totals: whatever else has been written since, nothing of it is lost.
_ADD_TO_ACCOUNT: Final = """
INSERT INTO account (kind, owner, debits, credits) VALUES (?, ?, ?, ?)
ON CONFLICT (kind, owner) DO UPDATE
SET debits = account.debits + excluded.debits, credits = account.credits + excluded.credits
"""
_ADD_HOLD: Final = """
INSERT INTO hold (
  hold_id, customer, payer, amount, remaining, placed_ms, expires_ms, gateway, closed_ms
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_CHANGE_HOLD: Final = "UPDATE hold SET remaining = ?, closed_ms = ? WHERE hold_id = ?"
_SET_BOOKS: Final = """
INSERT INTO books (name, state, debits) VALUES ('all', ?, ?)
ON CONFLICT (name) DO UPDATE SET state = excluded.state, debits = excluded.debits
"""


#: Which transfers are an event's; the bindings are those of `of_event`. By their ids, so that
#: events need no index of their own.
OF_EVENT: Final = "WHERE id BETWEEN ? AND ? AND event_id = ?"

_KINDS: Final = {kind.value: kind for kind in Kind}
_CODES: Final = {code.value: code for code in Code}


def of_event(event_id: bytes) -> tuple[bytes, bytes, bytes]:
    """The bindings of `OF_EVENT`."""
    return transfer_id(event_id, 0), transfer_id(event_id, MOVES_MAX - 1), event_id


def refuse_old_ids(connection: Connection) -> None:
    """Look at the oldest transfer: are ids made as they are now? What was paid must be found again.

    Raises:
        ConfigurationRefused: they are made otherwise, as before 21 November 2026.
    """
    sql = "SELECT id, event_id FROM transfer ORDER BY seq LIMIT 1"
    for first, event_id in rows(connection, sql):
        if first != transfer_id(event_id, 0):
            raise ConfigurationRefused(
                "the registry's books were begun by an older StarAI, which named transfers"
                " otherwise: settle its last day with that one, and begin in another home"
            )


class StoredShelf:
    """The database as a `starai.ledger.Shelf`; used inside one transaction."""

    def __init__(self, connection: Connection) -> None:
        """Take the transaction's connection."""
        self._connection = connection
        # What `expect` looked up.
        self._totals: dict[Account, Totals] = {}
        self._open: dict[tuple[int, int], list[Hold]] = {}
        self._unmoved: set[bytes] = set()

    def expect(self, captures: Sequence[Captured]) -> None:
        """Look up together what these will ask for one by one; nothing is written until then."""
        events = [one.event_id for one in captures]
        sql = "SELECT event_id FROM transfer WHERE id IN ({})"
        firsts = [transfer_id(one, 0) for one in events]
        self._unmoved = set(events) - {one for (one,) in rows_in(self._connection, sql, firsts)}
        accounts = dict.fromkeys(map(held, {one.customer for one in captures}), UNUSED)
        accounts |= dict.fromkeys(map(pending, {one.node for one in captures}), UNUSED)
        accounts[FEE] = UNUSED
        sql = "SELECT kind, owner, debits, credits FROM account WHERE (kind, owner) IN (VALUES {})"
        wanted = [(account.kind.value, account.owner) for account in accounts]
        for kind, owner, *totals in rows_in(self._connection, sql, wanted):
            accounts[_account(kind, owner)] = Totals(*totals)
        self._totals = accounts
        self._open = {(one.customer, one.payer): [] for one in captures}
        sql = f"{_HOLD} WHERE payer IN ({{}}) AND closed_ms IS NULL ORDER BY placed_ms, hold_id"
        for row in rows_in(self._connection, sql, list({one.payer for one in captures})):
            hold = Hold(*row)
            self._open.setdefault((hold.customer, hold.payer), []).append(hold)

    def totals(self, account: Account) -> Totals:
        """An account's totals."""
        known = self._totals.get(account)
        if known is not None:
            return known
        sql = "SELECT debits, credits FROM account WHERE kind = ? AND owner = ?"
        for row in rows(self._connection, sql, account.kind.value, account.owner):
            return Totals(*row)
        return UNUSED

    def hold(self, hold_id: bytes) -> Hold | None:
        """A hold, open or closed."""
        found = rows(self._connection, f"{_HOLD} WHERE hold_id = ?", hold_id)
        return next((Hold(*row) for row in found), None)

    def open_holds(self, customer: int, payer: int) -> Sequence[Hold]:
        """The holds of which something remains, oldest first."""
        known = self._open.get((customer, payer))
        if known is not None:
            return known
        found = rows(
            self._connection,
            f"{_HOLD} WHERE payer = ? AND closed_ms IS NULL AND customer = ?"
            " ORDER BY placed_ms, hold_id",
            payer,
            customer,
        )
        return [Hold(*row) for row in found]

    def transfer(self, transfer_id: bytes) -> Transfer | None:
        """One transfer."""
        found = rows(self._connection, f"{_TRANSFER} WHERE id = ?", transfer_id)
        return next((_transfer(row) for row in found), None)

    def transfers_of(self, event_id: bytes) -> Sequence[Transfer]:
        """What an event moved, in order."""
        if event_id in self._unmoved:
            return ()
        found = rows(self._connection, f"{_TRANSFER} {OF_EVENT} ORDER BY id", *of_event(event_id))
        return [_transfer(row) for row in found]

    def all_transfers(self) -> Iterator[Transfer]:
        """Everything that ever moved, in order.

        Raises:
            StoreFailed: a row is no transfer.
        """
        return (transfer for _, transfer in self.transfers_after(0))

    def transfers_after(self, seq: int, last: int | None = None) -> Iterator[tuple[int, Transfer]]:
        """Transfers numbered above ``seq``, up to ``last`` or all, each with its number.

        Raises:
            StoreFailed: a row is no transfer.
        """
        sql = _TRANSFER.replace("SELECT id", "SELECT seq, id")
        bound, bindings = ("", (seq,)) if last is None else (" AND seq <= ?", (seq, last))
        for number, *cells in rows(
            self._connection, f"{sql} WHERE seq > ?{bound} ORDER BY seq", *bindings
        ):
            yield number, _transfer(tuple(cells))

    def all_accounts(self) -> Iterator[tuple[Account, Totals]]:
        """All accounts that were ever used.

        Raises:
            StoreFailed: a row is no account.
        """
        for kind, owner, *totals in rows(
            self._connection, "SELECT kind, owner, debits, credits FROM account"
        ):
            yield _account(kind, owner), Totals(*totals)

    def all_holds(self) -> Iterator[tuple[Hold, bool]]:
        """All holds there ever were, and whether each counts as open."""
        sql = _HOLD.replace("gateway", "gateway, closed_ms IS NULL")
        for *hold, is_open in rows(self._connection, sql):
            yield Hold(*hold), bool(is_open)

    def books(self) -> tuple[int, int]:
        """The sum that the state hash is made of, and all that was ever transferred (nano-USD)."""
        for total, debits in rows(self._connection, "SELECT state, debits FROM books"):
            return int.from_bytes(total, "big"), int(debits)
        return 0, 0

    def keep(self, changes: Changes) -> None:
        """Write what `starai.ledger.Books.changes` says."""
        if not changes.transfers:
            return
        self._totals, self._open, self._unmoved = {}, {}, set()
        execute_many = self._connection.executemany
        execute_many(_ADD_TRANSFER, (_transfer_row(one) for one in changes.transfers))
        execute_many(
            _ADD_TO_ACCOUNT,
            [
                (account.kind.value, account.owner, new[0] - old[0], new[1] - old[1])
                for account, old, new in changes.accounts
            ],
        )
        at_ms = changes.transfers[-1].at_ms
        fresh, drawn = [], []
        for before, hold in changes.holds:
            closed_ms = None if hold.remaining else at_ms
            if before is None:
                fresh.append((*_hold_row(hold), closed_ms))
            else:
                drawn.append((hold.remaining, closed_ms, hold.hold_id))
        execute_many(_ADD_HOLD, fresh)
        execute_many(_CHANGE_HOLD, drawn)
        total, debits = self.books()
        debits += sum(one.amount for one in changes.transfers)
        after = state.add(total, changes).to_bytes(state.SUM_BYTES, "big")
        self._connection.execute(_SET_BOOKS, (after, str(debits)))


def _account(kind: str, owner: bytes) -> Account:
    try:
        return Account(_KINDS[kind], owner)
    except KeyError as error:
        raise StoreFailed(f"the database has an account of no known kind: {kind!r}") from error


def _transfer(row: tuple[Any, ...]) -> Transfer:
    transfer_id, event_id, code, debit_kind, debit_owner, credit_kind, credit_owner, *rest = row
    try:
        known = _CODES[code]
    except KeyError as error:
        raise StoreFailed(f"the database has a transfer of no known code: {code!r}") from error
    debit, credit = _account(debit_kind, debit_owner), _account(credit_kind, credit_owner)
    return Transfer(transfer_id, event_id, known, debit, credit, *rest)


def _transfer_row(one: Transfer) -> tuple[Any, ...]:
    return (
        one.transfer_id,
        one.event_id,
        one.code.value,
        one.debit.kind.value,
        one.debit.owner,
        one.credit.kind.value,
        one.credit.owner,
        one.amount,
        one.ref,
        one.reverses,
        one.at_ms,
    )


def _hold_row(hold: Hold) -> tuple[Any, ...]:
    return (
        hold.hold_id,
        hold.customer,
        hold.payer,
        hold.amount,
        hold.remaining,
        hold.placed_ms,
        hold.expires_ms,
        hold.gateway,
    )
