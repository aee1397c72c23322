"""Where books are kept: what `Books` reads, what it has to be written, and a shelf in memory.

A shelf is all that the kernel knows of storage. `starai.registry.money.shelf` has
one over a database.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Final, NamedTuple, Protocol

import msgspec

from starai.ledger.accounts import UNUSED, Account, Totals
from starai.ledger.transfers import Transfer


class Hold(msgspec.Struct, frozen=True):
    """Money of ``customer`` set aside for ``payer``: ``remaining`` of ``amount``; 0 is closed."""

    hold_id: bytes
    customer: int
    payer: int
    amount: int
    remaining: int
    placed_ms: int
    expires_ms: int
    gateway: bytes = b""


#: Holds are drawn on in this order.
OLDEST_FIRST: Final = attrgetter("placed_ms", "hold_id")


class AccountChange(NamedTuple):
    """An account's totals before and after."""

    account: Account
    before: Totals
    after: Totals


class HoldChange(NamedTuple):
    """A hold before, or None if it is new, and after."""

    before: Hold | None
    after: Hold


class Changes(NamedTuple):
    """What must be written, all of it at once, so that a shelf has what `Books` has.

    Accounts are sorted, so that several writers would lock them in one order.
    """

    transfers: tuple[Transfer, ...] = ()
    accounts: tuple[AccountChange, ...] = ()
    holds: tuple[HoldChange, ...] = ()


class Shelf(Protocol):
    """Where `Books` reads what it has not seen yet."""

    def totals(self, account: Account) -> Totals:
        """An account's totals; `UNUSED` if nothing ever touched it."""
        ...

    def hold(self, hold_id: bytes) -> Hold | None:
        """A hold, open or closed."""
        ...

    def open_holds(self, customer: int, payer: int) -> Sequence[Hold]:
        """The holds of which something remains, `OLDEST_FIRST`."""
        ...

    def transfer(self, transfer_id: bytes) -> Transfer | None:
        """One transfer."""
        ...

    def transfers_of(self, event_id: bytes) -> Sequence[Transfer]:
        """What an event moved, in order; nothing if it was not applied."""
        ...


class MemoryShelf:
    """Books kept in memory. Lists and dicts may be read, not written."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.transfers: list[Transfer] = []
        self.accounts: dict[Account, Totals] = {}
        self.holds: dict[bytes, Hold] = {}
        self._by_id: dict[bytes, Transfer] = {}
        self._by_event: dict[bytes, list[Transfer]] = {}
        self._open: dict[tuple[int, int], dict[bytes, Hold]] = {}

    def totals(self, account: Account) -> Totals:
        """An account's totals."""
        return self.accounts.get(account, UNUSED)

    def hold(self, hold_id: bytes) -> Hold | None:
        """A hold, open or closed."""
        return self.holds.get(hold_id)

    def open_holds(self, customer: int, payer: int) -> Sequence[Hold]:
        """The holds of which something remains, `OLDEST_FIRST`."""
        return sorted(self._open.get((customer, payer), {}).values(), key=OLDEST_FIRST)

    def transfer(self, transfer_id: bytes) -> Transfer | None:
        """One transfer."""
        return self._by_id.get(transfer_id)

    def transfers_of(self, event_id: bytes) -> Sequence[Transfer]:
        """What an event moved, in order."""
        return self._by_event.get(event_id, ())

    def keep(self, changes: Changes) -> None:
        """Write what `Books.changes` says."""
        self.transfers += changes.transfers
        for transfer in changes.transfers:
            self._by_id[transfer.transfer_id] = transfer
            self._by_event.setdefault(transfer.event_id, []).append(transfer)
        self.accounts.update((account, after) for account, _, after in changes.accounts)
        for _, hold in changes.holds:
            self.holds[hold.hold_id] = hold
            of_payer = self._open.setdefault((hold.customer, hold.payer), {})
            if hold.remaining:
                of_payer[hold.hold_id] = hold
            else:
                of_payer.pop(hold.hold_id, None)
