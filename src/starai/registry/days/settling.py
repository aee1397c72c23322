"""What settlement keeps in the registry's database: signed transactions, and what the chain said.

`Settlement` is both ports of `starai.settlement` over one connection, inside the transaction of
whoever made it: the settler's journal and the watcher's bookkeeper. An address is a customer's by
its row, and a node's by what was placed there; chain money becomes events of the ledger here.
Knows nothing of chains: whoever asks has looked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from starai.core.errors import Conflict, InvalidRequest, NotFound
from starai.ledger.events import Claimed, Deposited, event_id
from starai.protocol.registry import FundsChanged
from starai.registry.days.epochs import Epoch, EpochState, days_before_vault, get_epoch
from starai.registry.money import withdrawals
from starai.registry.money.books import apply_event
from starai.registry.money.customers import insert
from starai.registry.money.shelf import StoredShelf
from starai.registry.money.withdrawals import Withdrawal
from starai.registry.schema import rows
from starai.registry.storage import Connection
from starai.settlement.leaves import NANO_PER_UNIT, LeafKind
from starai.settlement.manifest import FIRST_HEAD
from starai.settlement.rollup.base import Fee, Happening, Post, Signed, What
from starai.settlement.settler import Attempt, AttemptState
from starai.settlement.watching import Cursor, happening_id

#: What a day must have reached to be posted; a day that was posted may have to be posted again.
_POSTABLE: Final = frozenset(
    {EpochState.SIGNED, EpochState.SENT, EpochState.MINED, EpochState.FINAL}
)
_UP_TO_MINED: Final = (EpochState.SIGNED, EpochState.SENT, EpochState.MINED)


class Settlement:
    """The journal and the bookkeeper of one vault, in one transaction."""

    def __init__(
        self,
        connection: Connection,
        chain_id: int,
        contract: bytes,
        tell: Callable[[FundsChanged], None] = lambda _: None,
    ) -> None:
        """Take the transaction's connection, and which vault it is about.

        ``tell`` hears what gateways should, once the transaction is done.
        """
        self._connection = connection
        self._chain_id = chain_id
        self._contract = contract
        self._tell = tell

    # The settler's journal.

    def next_post(self, epoch: int) -> Post | None:
        """What is to be posted as ``epoch``; None if it is not signed.

        Raises:
            Conflict: it was closed for another vault.
        """
        found = self._known(self._day(epoch))
        if found is None or found.state not in _POSTABLE:
            return None
        facts = found.parsed()
        if (facts.chain_id, facts.contract) != (self._chain_id, self._contract):
            raise Conflict(f"epoch {epoch} was closed for another contract: see its manifest")
        return Post(
            epoch,
            facts.previous_head if epoch > 1 else FIRST_HEAD,
            facts.head(),
            facts.root,
            facts.earned_units,
            facts.spent_units,
        )

    def attempts(self, epoch: int) -> Sequence[Attempt]:
        """All transactions signed for an epoch, oldest first."""
        found = rows(
            self._connection,
            "SELECT attempt, nonce, raw, tx_hash, fee, state FROM outbox"
            " WHERE epoch = ? ORDER BY attempt",
            epoch,
        )
        return [
            Attempt(epoch, number, Signed(raw, tx_hash, nonce, _fee(fee)), AttemptState(state))
            for number, nonce, raw, tx_hash, fee, state in found
        ]

    def keep(self, attempt: Attempt) -> None:
        """Keep a transaction that is about to be sent."""
        signed = attempt.signed
        self._connection.execute(
            "INSERT INTO outbox (epoch, attempt, nonce, raw, tx_hash, fee, state)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                attempt.epoch,
                attempt.number,
                signed.nonce,
                signed.raw,
                signed.tx_hash,
                f"{signed.fee.most}/{signed.fee.tip}",
                attempt.state.value,
            ),
        )

    def mark(self, epoch: int, number: int, state: AttemptState) -> None:
        """Note what became of a transaction."""
        self._connection.execute(
            "UPDATE outbox SET state = ? WHERE epoch = ? AND attempt = ?",
            (state.value, epoch, number),
        )

    def sent(self, epoch: int) -> None:
        """A transaction for this epoch is out."""
        self._to(EpochState.SENT, epoch, EpochState.SIGNED)

    def mined(self, epoch: int, head: bytes) -> None:
        """The chain is at this epoch with this head.

        Raises:
            Conflict: the books know another head for it, or none.
        """
        self._check_head(epoch, head)
        self._to(EpochState.MINED, epoch, EpochState.SIGNED, EpochState.SENT)

    def final(self, epoch: int, head: bytes) -> None:
        """This epoch and those before are past confirmations and delay.

        Raises:
            Conflict: the books know another head for it, or none.
        """
        self._check_head(epoch, head)
        self._to(EpochState.FINAL, epoch, *_UP_TO_MINED)

    def vetoed(self, epoch: int, root: bytes = b"") -> None:
        """The guardian took this epoch's root back: ``root``, if that is known.

        A veto that is heard of late, after the day was closed again, is of another root.
        """
        found = self._known(self._day(epoch))
        if root and found is not None and found.manifest and found.parsed().root != root:
            return
        self._connection.execute(
            "UPDATE epoch SET state = ? WHERE epoch = ? AND state IN (?, ?, ?)",
            (EpochState.VETOED.value, self._day(epoch), *(one.value for one in _UP_TO_MINED)),
        )

    def _day(self, epoch: int) -> int:
        """The day that the vault counts as ``epoch``; those before it was there are not counted."""
        return epoch + days_before_vault(self._connection)

    def _known(self, day: int) -> Epoch | None:
        try:
            return get_epoch(self._connection, day)
        except NotFound:
            return None

    def _check_head(self, epoch: int, head: bytes) -> None:
        found = self._known(self._day(epoch))
        if found is None or not found.manifest or found.parsed().head() != head:
            raise Conflict(
                f"the chain has a root for epoch {epoch} that this registry did not close: veto it"
                " while it is inside its delay, and find out who posted it"
            )

    def _to(self, after: EpochState, epoch: int, *before: EpochState) -> None:
        """Take all days up to ``epoch`` that are in one of the states ``before`` to ``after``."""
        marks = ", ".join("?" * len(before))
        self._connection.execute(
            f"UPDATE epoch SET state = ? WHERE epoch <= ? AND state IN ({marks})",  # noqa: S608 - only marks
            (after.value, self._day(epoch), *(one.value for one in before)),
        )

    # The watcher's bookkeeper.

    def cursor(self) -> Cursor | None:
        """Up to where the vault's reports are booked."""
        found = rows(
            self._connection,
            "SELECT block, block_hash FROM chain_cursor WHERE contract = ?",
            self._contract,
        )
        return next((Cursor(block, block_hash) for block, block_hash in found), None)

    def book(self, happenings: Sequence[Happening], cursor: Cursor) -> None:
        """Book these, and move the cursor.

        A withdrawal is booked whatever the books say: it was paid.

        Raises:
            Conflict: they contradict the books.
        """
        for one in happenings:
            self._book(one)
        self._connection.execute(
            "INSERT INTO chain_cursor (contract, block, block_hash) VALUES (?, ?, ?)"
            " ON CONFLICT (contract) DO UPDATE SET block = excluded.block,"
            " block_hash = excluded.block_hash",
            (self._contract, cursor.block, cursor.block_hash),
        )

    def owed(self) -> int:
        """What customers took out of the vault and did not have, in nano-USD."""
        return withdrawals.total_owed(self._connection)

    def _book(self, one: Happening) -> None:
        """Book what a report means, unless that was done."""
        name = happening_id(self._chain_id, self._contract, one)
        nano = one.units * NANO_PER_UNIT
        at_ms = one.block.time_s * 1000
        if self._is_booked(name):
            return
        match one.what:
            case What.VETOED:
                self.vetoed(one.epoch, one.root)
            case What.CLAIMED:
                for event in self._claims(name, nano, one):
                    apply_event(self._connection, event)
            case What.DEPOSITED:
                customer = self._customer_at(one)
                paid = Deposited(
                    event_id=name, at_ms=at_ms, customer=customer, amount=nano, ref=one.tx_hash
                )
                apply_event(self._connection, paid)
                self._tell(FundsChanged(customer))
            case What.WITHDRAWAL_REQUESTED:
                asked = Withdrawal(name, self._customer_at(one), nano, one.tx_hash, at_ms)
                withdrawals.request(self._connection, asked)
                self._tell(FundsChanged(asked.customer, recall=True))
            case What.WITHDRAWN:
                taken = Withdrawal(name, self._customer_at(one), nano, one.tx_hash, at_ms)
                withdrawals.withdraw(self._connection, taken)
                self._tell(FundsChanged(taken.customer))

    def _is_booked(self, event: bytes) -> bool:
        """Whether an event was applied: after a restored cursor things are read again."""
        moved = StoredShelf(self._connection).transfers_of(event)
        return bool(moved) or withdrawals.is_heard(self._connection, event)

    def _customer_at(self, one: Happening) -> int:
        """The customer with this address; who deposits without being known becomes one."""
        found = rows(
            self._connection, "SELECT id FROM customer WHERE address = ? ORDER BY id", one.account
        )
        for (number,) in found:
            return int(number)
        name, now_ms = f"0x{one.account.hex()}", one.block.time_s * 1000
        return insert(self._connection, name, now_ms, one.account)

    def _claims(self, name: bytes, nano: int, one: Happening) -> Iterator[Claimed]:
        """Whose money an address was paid: of its nodes in order, what is placed there for each."""
        nodes = list(self._placed_at(one.account))
        if any(self._is_booked(event_id(b"claimed", name, node)) for node, _ in nodes):
            return
        left = nano
        for node, placed in nodes:
            amount = min(left, placed - self._claimed(node, one.account))
            if amount > 0:
                left -= amount
                yield Claimed(
                    event_id=event_id(b"claimed", name, node),
                    at_ms=one.block.time_s * 1000,
                    node=node,
                    amount=amount,
                    ref=one.tx_hash + one.account,
                )
        if left:
            raise Conflict(f"an address claimed {left} nano-USD more than was placed there")

    def _placed_at(self, address: bytes) -> Iterator[tuple[bytes, int]]:
        """The nodes that ever named this address, and what was placed there for each."""
        nodes = rows(
            self._connection,
            "SELECT DISTINCT node FROM payout WHERE address = ? ORDER BY node",
            address,
        )
        for (node,) in list(nodes):
            sums = rows(
                self._connection,
                "SELECT cum FROM leaf WHERE kind = ? AND payee = ? ORDER BY epoch DESC LIMIT 1",
                int(LeafKind.EARNED),
                node + address,
            )
            for (placed,) in sums:
                yield node, int(placed)

    def _claimed(self, node: bytes, address: bytes) -> int:
        """What of a node's money was paid at an address before."""
        found = rows(
            self._connection,
            "SELECT COALESCE(SUM(amount), 0) FROM transfer"
            " WHERE code = 'claimed' AND debit_owner = ? AND substr(ref, 33) = ?",
            node,
            address,
        )
        ((total,),) = found
        return int(total)


def _fee(text: str) -> Fee:
    most, _, tip = text.partition("/")
    return Fee(int(most), int(tip))


class SettlementCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call of one of `Settlement`'s methods from afar; ``contract`` is hexadecimal."""

    chain_id: int
    contract: str
    method: str
    arguments: tuple[Any, ...] = ()


_METHODS: Final[dict[str, tuple[Any, ...]]] = {
    "next_post": (int,),
    "attempts": (int,),
    "keep": (Attempt,),
    "mark": (int, int, AttemptState),
    "sent": (int,),
    "mined": (int, bytes),
    "final": (int, bytes),
    "vetoed": (int,),
    "cursor": (),
    "book": (list[Happening], Cursor),
    "owed": (),
}


def call(
    connection: Connection,
    asked: SettlementCall,
    tell: Callable[[FundsChanged], None] = lambda _: None,
) -> object:
    """Do what was called for; the result as a value that JSON can say. ``tell``: see `Settlement`.

    Raises:
        InvalidRequest: there is no such method, or its arguments are others.
        Conflict: see the method.
    """
    kinds = _METHODS.get(asked.method)
    if kinds is None or len(kinds) != len(asked.arguments):
        raise InvalidRequest(f"settlement has no {asked.method!r} with such arguments")
    try:
        pairs = zip(asked.arguments, kinds, strict=True)
        arguments = [msgspec.convert(value, kind) for value, kind in pairs]
        contract = bytes.fromhex(asked.contract)
    except (msgspec.ValidationError, ValueError) as error:
        raise InvalidRequest(f"settlement's {asked.method!r}: {error}") from error
    settlement = Settlement(connection, asked.chain_id, contract, tell)
    return {"result": getattr(settlement, asked.method)(*arguments)}
