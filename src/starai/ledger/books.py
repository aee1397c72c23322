"""Books: applies events to what a shelf keeps, and says what then must be written.

`Books` reads what it needs from its shelf once and remembers what changed, so that many events
cost one look at each account. It writes nothing: whoever owns the shelf writes `Books.changes`,
all of it at once, and then makes new books.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

from starai.core.errors import BalanceTooLow, Conflict, InvalidRequest
from starai.ledger.accounts import MONEY_MAX, Account, Kind, Totals, usd
from starai.ledger.events import Event
from starai.ledger.rules import Move, Plan, agrees, plan
from starai.ledger.shelves import (
    OLDEST_FIRST,
    AccountChange,
    Changes,
    Hold,
    HoldChange,
    Shelf,
)
from starai.ledger.transfers import MOVES_MAX, Transfer, transfer_id


class Books:
    """A shelf as it would be after some events. Not for several threads."""

    def __init__(self, shelf: Shelf) -> None:
        """Take what is kept so far; it must not change while these books are used."""
        self._shelf = shelf
        # What the shelf says, as far as it was asked, and what holds now.
        self._totals_before: dict[Account, Totals] = {}
        self._totals: dict[Account, Totals] = {}
        self._holds_before: dict[bytes, Hold | None] = {}
        self._holds: dict[bytes, Hold | None] = {}
        self._open: dict[tuple[int, int], list[Hold]] = {}
        self._transfers: dict[bytes, Transfer] = {}
        self._events: dict[bytes, tuple[Transfer, ...]] = {}

    def apply(self, event: Event) -> tuple[Transfer, ...]:
        """Move what ``event`` moves, all or nothing; nothing if that was done before.

        An event that moved nothing leaves no trace, so applied again it is looked at again. What
        an event could not cover, `starai.ledger.rules.uncovered` says.

        Raises:
            BalanceTooLow: an account has too little; nothing changed.
            Conflict: another event had this id, or this hold's id.
            NotFound: it names a hold or a transfer that is not there.
            InvalidRequest: it releases more than remains of a hold, corrects one, or would bring
                an account beyond `MONEY_MAX`.
        """
        before = self._moved_by(event.event_id)
        if before:
            if not agrees(event, before):
                raise Conflict("this event's id was used before, for something else")
            return ()
        return self._post(event, plan(event, self))

    def is_applied(self, event_id: bytes) -> bool:
        """Whether an event of this id moved money before."""
        return bool(self._moved_by(event_id))

    def changes(self) -> Changes:
        """All that differs from the shelf."""
        before = self._totals_before
        return Changes(
            tuple(self._transfers.values()),
            tuple(
                AccountChange(account, before[account], after)
                for account, after in sorted(self._totals.items())
                if after != before[account]
            ),
            tuple(
                HoldChange(self._holds_before[hold_id], hold)
                for hold_id, hold in self._holds.items()
                if hold is not None and hold != self._holds_before[hold_id]
            ),
        )

    def totals(self, account: Account) -> Totals:
        """An account's totals."""
        known = self._totals.get(account)
        if known is None:
            known = self._shelf.totals(account)
            self._totals_before[account] = self._totals[account] = known
        return known

    def balance(self, account: Account) -> int:
        """What is in an account, in nano-USD."""
        debits, credits_ = self.totals(account)
        return credits_ - debits

    def hold(self, hold_id: bytes) -> Hold | None:
        """A hold, open or closed."""
        if hold_id not in self._holds:
            self._holds_before[hold_id] = self._holds[hold_id] = self._shelf.hold(hold_id)
        return self._holds[hold_id]

    def open_holds(self, customer: int, payer: int) -> Sequence[Hold]:
        """A payer's holds of which something remains, oldest first; not to be changed."""
        return self._open_holds(customer, payer)

    def transfer(self, transfer_id: bytes) -> Transfer | None:
        """One transfer."""
        return self._transfers.get(transfer_id) or self._shelf.transfer(transfer_id)

    def _moved_by(self, event_id: bytes) -> Sequence[Transfer]:
        return self._events.get(event_id) or self._shelf.transfers_of(event_id)

    def _open_holds(self, customer: int, payer: int) -> list[Hold]:
        """Asked before a hold of this payer changes, so the shelf is right the first time."""
        found = self._open.get((customer, payer))
        if found is None:
            found = self._open[customer, payer] = list(self._shelf.open_holds(customer, payer))
            for hold in found:
                self._holds_before[hold.hold_id] = self._holds[hold.hold_id] = hold
        return found

    def _post(self, event: Event, planned: Plan) -> tuple[Transfer, ...]:
        after: dict[Account, Totals] = {}
        if len(planned.moves) > MOVES_MAX:
            raise InvalidRequest(f"an event moves money at most {MOVES_MAX} times")
        for move in planned.moves:
            self._move(move, after)
        event_id, at_ms = event.event_id, event.at_ms
        transfers = tuple(
            Transfer(transfer_id(event_id, index), event_id, *move, at_ms)
            for index, move in enumerate(planned.moves)
        )
        # Nothing was refused: from here on everything changes.
        self._totals.update(after)
        for hold in planned.holds:
            self._put(hold)
        if transfers:
            self._events[event_id] = transfers
            self._transfers.update((one.transfer_id, one) for one in transfers)
        return transfers

    def _move(self, move: Move, after: dict[Account, Totals]) -> None:
        """Note in ``after`` what one move does, or refuse it."""
        debit, credit, amount = move.debit, move.credit, move.amount
        debits, credits_ = after.get(debit) or self.totals(debit)
        if debits + amount > credits_ and debit.kind is not Kind.POOL:
            there = usd(credits_ - debits)
            raise BalanceTooLow(f"{debit.kind} has {there}, and {usd(amount)} are needed")
        after[debit] = Totals(debits + amount, credits_)
        into_debits, into_credits = after.get(credit) or self.totals(credit)
        if max(debits, into_credits) + amount > MONEY_MAX:
            raise InvalidRequest("more would go through an account than books can count")
        after[credit] = Totals(into_debits, into_credits + amount)

    def _put(self, hold: Hold) -> None:
        listed = self._open_holds(hold.customer, hold.payer)
        before = self.hold(hold.hold_id)
        self._holds[hold.hold_id] = hold
        if before in listed:
            listed.remove(before)
        if hold.remaining:
            insort(listed, hold, key=OLDEST_FIRST)
