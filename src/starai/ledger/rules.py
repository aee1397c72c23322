"""What each event does to accounts and holds: the rules of the money.

A rule reads through a `View` and says what would move; it changes nothing and checks no balance:
`starai.ledger.books` does, for all moves of an event together. Rules move no zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

from msgspec.structs import replace

from starai.core.errors import Conflict, InvalidRequest, NotFound
from starai.ledger.accounts import (
    FEE,
    INSURANCE,
    POOL,
    Account,
    Kind,
    available,
    customer_owner,
    held,
    payable,
    pending,
    stake,
)
from starai.ledger.events import (
    Captured,
    Claimed,
    Corrected,
    Deposited,
    Event,
    HoldPlaced,
    HoldReleased,
    Matured,
    Refunded,
    Slashed,
    Staked,
    Unstaked,
    Withdrawn,
)
from starai.ledger.shelves import Hold
from starai.ledger.transfers import ID_BYTES, Code, Transfer


class View(Protocol):
    """What a rule may look at."""

    def balance(self, account: Account) -> int:
        """What is in an account."""
        ...

    def hold(self, hold_id: bytes) -> Hold | None:
        """A hold, open or closed."""
        ...

    def open_holds(self, customer: int, payer: int) -> Sequence[Hold]:
        """The holds of which something remains, oldest first."""
        ...

    def transfer(self, transfer_id: bytes) -> Transfer | None:
        """One transfer."""
        ...


class Move(NamedTuple):
    """A transfer to be."""

    code: Code
    debit: Account
    credit: Account
    amount: int
    ref: bytes = b""
    reverses: bytes = b""


class Plan(NamedTuple):
    """What an event would move, and the holds as they then would be."""

    moves: list[Move]
    holds: tuple[Hold, ...] = ()


def _refunded(event: Refunded) -> list[Move]:
    sources = (
        (pending(event.node), event.from_pending),
        (FEE, event.from_fee),
        (INSURANCE, event.from_insurance),
    )
    to = available(event.customer)
    return [Move(Code.REFUND, source, to, part, event.ref) for source, part in sources if part]


def _hold_ref(event: HoldPlaced) -> bytes:
    return event.hold_id + customer_owner(event.payer)


#: What moves the same whatever is in the accounts.
_FIXED: Final[dict[type, Callable[[Any], list[Move]]]] = {
    Deposited: lambda e: [Move(Code.DEPOSIT, POOL, available(e.customer), e.amount, e.ref)],
    Withdrawn: lambda e: [Move(Code.WITHDRAW, available(e.customer), POOL, e.amount, e.ref)],
    HoldPlaced: lambda e: [
        Move(Code.HOLD, available(e.customer), held(e.customer), e.amount, _hold_ref(e))
    ],
    Matured: lambda e: [Move(Code.MATURE, pending(e.node), payable(e.node), e.amount, e.ref)],
    Staked: lambda e: [Move(Code.STAKE, payable(e.node), stake(e.node), e.amount, e.ref)],
    Unstaked: lambda e: [Move(Code.UNSTAKE, stake(e.node), payable(e.node), e.amount, e.ref)],
    Refunded: _refunded,
    Claimed: lambda e: [Move(Code.CLAIMED, payable(e.node), POOL, e.amount, e.ref)],
}


def plan(event: Event, view: View) -> Plan:
    """What ``event`` would do.

    Raises:
        NotFound: it names a hold or a transfer that is not there.
        Conflict: it places a hold that is there.
        InvalidRequest: it releases more than remains, or corrects a hold.
    """
    match event:
        case Captured():
            return _captured(event, view)
        case HoldPlaced():
            return Plan(_FIXED[HoldPlaced](event), (_placed(event, view),))
        case HoldReleased():
            return _released(event, view)
        case Slashed():
            account = stake(event.node)
            amount = min(event.amount, view.balance(account))
            return Plan([Move(Code.SLASH, account, INSURANCE, amount, event.ref)] * bool(amount))
        case Corrected():
            return Plan([_correction(event, view)])
        case _:
            return Plan(_FIXED[type(event)](event))


def _placed(event: HoldPlaced, view: View) -> Hold:
    if view.hold(event.hold_id) is not None:
        raise Conflict("this hold was placed before, by another event")
    return Hold(
        hold_id=event.hold_id,
        customer=event.customer,
        payer=event.payer,
        amount=event.amount,
        remaining=event.amount,
        placed_ms=event.at_ms,
        expires_ms=event.expires_ms,
        gateway=event.gateway,
    )


def _released(event: HoldReleased, view: View) -> Plan:
    hold = view.hold(event.hold_id)
    if hold is None:
        raise NotFound("there is no such hold")
    amount = hold.remaining if event.amount is None else event.amount
    if amount > hold.remaining:
        raise InvalidRequest(f"of this hold only {hold.remaining} remain", param="amount")
    if not amount:
        return Plan([])
    customer = hold.customer
    move = Move(Code.RELEASE, held(customer), available(customer), amount, hold.hold_id)
    return Plan([move], (replace(hold, remaining=hold.remaining - amount),))


def _captured(event: Captured, view: View) -> Plan:
    moves: list[Move] = []
    drawn: list[Hold] = []
    node, node_due = pending(event.node), event.node_share
    fee_due = event.charge - node_due
    for account, most, hold in _sources(event, view) if event.charge else ():
        ref = event.ref if hold is None else hold.hold_id + event.ref
        to_node = min(most, node_due)
        to_fee = min(most - to_node, fee_due)
        node_due -= to_node
        fee_due -= to_fee
        if to_node:
            moves.append(Move(Code.CAPTURE, account, node, to_node, ref))
        if to_fee:
            moves.append(Move(Code.FEE, account, FEE, to_fee, ref))
        if hold is not None:
            drawn.append(replace(hold, remaining=most - to_node - to_fee))
        if not node_due and not fee_due:
            break
    return Plan(moves, tuple(drawn))


def _sources(event: Captured, view: View) -> Iterator[tuple[Account, int, Hold | None]]:
    """What a capture may draw on, in order, how much is there, and the hold if it is one.

    Lazy: most captures end at the first hold, and need to look up nothing else.
    """
    account = held(event.customer)
    for hold in view.open_holds(event.customer, event.payer):
        yield account, hold.remaining, hold
    for account in (available(event.customer), INSURANCE):
        yield account, view.balance(account), None


def _correction(event: Corrected, view: View) -> Move:
    wrong = view.transfer(event.reverses)
    if wrong is None:
        raise NotFound("there is no such transfer")
    if wrong.code in {Code.HOLD, Code.RELEASE}:
        raise InvalidRequest("a hold is not corrected: release it", param="reverses")
    to = wrong.debit
    if to.kind is Kind.HELD:
        to = Account(Kind.AVAILABLE, to.owner)
    return Move(Code.CORRECT, wrong.credit, to, wrong.amount, event.ref, wrong.transfer_id)


def agrees(event: Event, moved: Sequence[Transfer]) -> bool:
    """Whether ``moved`` can be what this event did when it was applied before.

    What depends on how much there was is only held against its bounds. A known id with another
    body is a mistake that must be seen, never an answer (ledger design, section 8, point 6).
    """
    first = moved[0]
    match event:
        case Captured():
            return _captured_agrees(event, moved)
        case HoldReleased():
            named = (first.code, first.ref) == (Code.RELEASE, event.hold_id)
            return named and event.amount in {None, first.amount}
        case Slashed():
            said = (first.code, first.debit, first.ref)
            return said == (Code.SLASH, stake(event.node), event.ref) and (
                first.amount <= event.amount
            )
        case Corrected():
            return (first.reverses, first.ref) == (event.reverses, event.ref)
        case _:
            return [
                Move(one.code, one.debit, one.credit, one.amount, one.ref) for one in moved
            ] == _FIXED[type(event)](event)


def _captured_agrees(event: Captured, moved: Sequence[Transfer]) -> bool:
    node = pending(event.node)
    paying = {held(event.customer), available(event.customer), INSURANCE}
    to_node = sum(one.amount for one in moved if one.credit == node)
    total = sum(one.amount for one in moved)
    return (
        to_node <= event.node_share
        and total - to_node <= event.charge - event.node_share
        and all(one.debit in paying and one.credit in {node, FEE} for one in moved)
        and all(
            one.ref[ID_BYTES if one.debit.kind is Kind.HELD else 0 :] == event.ref for one in moved
        )
    )


def uncovered(event: Captured | Slashed, moved: Sequence[Transfer]) -> int:
    """How much of what was due nobody could pay, in nano-USD, given what the event moved."""
    due = event.charge if isinstance(event, Captured) else event.amount
    return due - sum(one.amount for one in moved)
