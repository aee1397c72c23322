"""Books made again from transfers alone, to be held beside the books that were kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from starai.ledger.accounts import UNUSED, Account, Kind, Totals, customer_owner, held
from starai.ledger.shelves import Hold
from starai.ledger.transfers import ID_BYTES, Code, Transfer, transfer_id

_OWNER_BYTES: Final = len(customer_owner(0))


class Replay:
    """Takes transfers one after the other, in their order. It knows open holds, without expiry."""

    def __init__(self) -> None:
        """Start with empty books."""
        self.accounts: dict[Account, Totals] = {}
        self.holds: dict[bytes, Hold] = {}
        self.num_transfers = 0
        self._event = b""
        self._index = 0

    def add(self, transfer: Transfer) -> list[str]:
        """Take the next transfer; returns what is wrong with it, in words."""
        problems = [*self._form_faults(transfer)]
        debit, credit, amount = transfer.debit, transfer.credit, transfer.amount
        self.num_transfers += 1
        debits, credits_ = self.accounts.get(debit, UNUSED)
        self.accounts[debit] = Totals(debits + amount, credits_)
        if debits + amount > credits_ and debit.kind is not Kind.POOL:
            problems.append(f"it overdraws {debit}")
        debits, credits_ = self.accounts.get(credit, UNUSED)
        self.accounts[credit] = Totals(debits, credits_ + amount)
        if transfer.code is Code.HOLD:
            problems += self._place(transfer)
        elif Kind.HELD in {debit.kind, credit.kind}:
            problems += self._draw(transfer)
        return problems

    def _form_faults(self, transfer: Transfer) -> Iterator[str]:
        self._index = self._index + 1 if transfer.event_id == self._event else 0
        self._event = transfer.event_id
        if transfer.transfer_id != transfer_id(transfer.event_id, self._index):
            yield "its id is not that of its event and place"
        if transfer.amount <= 0:
            yield "its amount is not positive"
        if transfer.debit == transfer.credit:
            yield "it moves nothing"

    def _place(self, transfer: Transfer) -> Iterator[str]:
        hold_id, payer = transfer.ref[:ID_BYTES], transfer.ref[ID_BYTES:]
        kind, owner = transfer.credit
        if hold_id in self.holds or (kind, len(owner), len(payer)) != (
            Kind.HELD,
            _OWNER_BYTES,
            _OWNER_BYTES,
        ):
            yield "it places no new hold"
            return
        self.holds[hold_id] = Hold(
            hold_id=hold_id,
            customer=int.from_bytes(owner, "big"),
            payer=int.from_bytes(payer, "big"),
            amount=transfer.amount,
            remaining=transfer.amount,
            placed_ms=transfer.at_ms,
            expires_ms=0,
        )

    def _draw(self, transfer: Transfer) -> Iterator[str]:
        hold = self.holds.get(transfer.ref[:ID_BYTES])
        if hold is None or held(hold.customer) != transfer.debit:
            yield "it draws on no hold of this customer"
            return
        remaining = hold.remaining - transfer.amount
        if remaining:
            self.holds[hold.hold_id] = replace(hold, remaining=remaining)
        else:
            del self.holds[hold.hold_id]
        if remaining < 0:
            yield "it draws more than its hold has"
