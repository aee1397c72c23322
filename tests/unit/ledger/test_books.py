"""What books refuse, in what order money is drawn, and what may race."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from starai.core.errors import BalanceTooLow, Conflict, InvalidRequest, NotFound, StarAIError
from starai.ledger import (
    Account,
    Books,
    Captured,
    Changes,
    Code,
    Corrected,
    Deposited,
    Event,
    HoldPlaced,
    HoldReleased,
    Kind,
    Matured,
    MemoryShelf,
    Refunded,
    Slashed,
    Staked,
    Transfer,
    Withdrawn,
    event_id,
    uncovered,
)
from starai.ledger.accounts import FEE, INSURANCE, MONEY_MAX, available, held, pending, stake, usd
from starai.ledger.transfers import transfer_id

NODE = b"n" * 32


def who(number: int) -> dict[str, object]:
    """What every event has."""
    return {"event_id": number.to_bytes(16, "big"), "at_ms": number}


def deposit(number: int, amount: int, customer: int = 7) -> Deposited:
    """A payment in."""
    return Deposited(**who(number), customer=customer, amount=amount)


def hold(number: int, amount: int, payer: int = 1) -> HoldPlaced:
    """A hold whose id is its number."""
    hold_id = number.to_bytes(16, "big")
    return HoldPlaced(
        **who(number), hold_id=hold_id, customer=7, payer=payer, amount=amount, expires_ms=99
    )


def release(number: int, of: int, amount: int | None = None) -> HoldReleased:
    """What is left of hold ``of``, or a part."""
    return HoldReleased(**who(number), hold_id=of.to_bytes(16, "big"), amount=amount)


def captured(number: int, charge: int, share: int, payer: int = 1) -> Captured:
    """Work done for a payer of customer 7."""
    return Captured(
        **who(number),
        customer=7,
        payer=payer,
        node=NODE,
        charge=charge,
        node_share=share,
        ref=b"task",
    )


def books_after(*events: Event) -> Books:
    """Books in which these happened."""
    books = Books(MemoryShelf())
    for event in events:
        assert books.apply(event)
    return books


def moves(transfers: tuple[Transfer, ...]) -> list[tuple[Code, Account, Account, int, bytes]]:
    """Transfers without what is the same in all."""
    return [(t.code, t.debit, t.credit, t.amount, t.ref) for t in transfers]


def test_a_capture_draws_on_the_oldest_hold_first_and_serves_the_node_first() -> None:
    """Holds in order, then what is available, then the insurance; the fee is what waits."""
    books = books_after(
        deposit(1, 100),
        captured(2, 60, 60),
        Matured(**who(3), node=NODE, amount=60),
        Staked(**who(4), node=NODE, amount=60),
        Slashed(**who(5), node=NODE, amount=8, ref=b"lied"),
        hold(6, 10),
        hold(7, 10),
        hold(8, 15, payer=2),
    )
    first, second = (n.to_bytes(16, "big") for n in (6, 7))
    event = captured(9, 40, 25)
    moved = books.apply(event)
    assert moves(moved) == [
        (Code.CAPTURE, held(7), pending(NODE), 10, first + b"task"),
        (Code.CAPTURE, held(7), pending(NODE), 10, second + b"task"),
        (Code.CAPTURE, available(7), pending(NODE), 5, b"task"),
        (Code.FEE, INSURANCE, FEE, 8, b"task"),
    ]
    assert uncovered(event, moved) == 7
    assert books.balance(held(7)) == 15  # another key's allotment is not this one's to spend


def test_a_capture_may_be_more_than_its_hold() -> None:
    """The rest comes from what is available, in the same event."""
    books = books_after(deposit(1, 100), hold(2, 30))
    books.apply(captured(3, 50, 40))
    assert (books.balance(held(7)), books.balance(available(7))) == (0, 50)
    assert books.open_holds(7, 1) == []


@pytest.mark.parametrize("expired_first", [True, False])
def test_expiry_and_capture_may_race(expired_first: bool) -> None:
    """Whichever comes first, the node is paid once and the customer has the rest."""
    events = [release(3, of=2), captured(4, 20, 15)]
    books = books_after(deposit(1, 50), hold(2, 30))
    for event in events if expired_first else events[::-1]:
        books.apply(event)
    assert books.balance(pending(NODE)) == 15
    assert (books.balance(available(7)), books.balance(held(7))) == (30, 0)


@given(
    balance=st.integers(1, 1000),
    wishes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 400)), max_size=30),
)
def test_allotments_never_exceed_the_balance(balance: int, wishes: list[tuple[int, int]]) -> None:
    """However many gateways ask for however many keys, what is granted is there."""
    books = books_after(deposit(1, balance))
    granted = 0
    for number, (payer, amount) in enumerate(wishes, 2):
        if granted + amount > balance:
            with pytest.raises(BalanceTooLow):
                books.apply(hold(number, amount, payer))
        else:
            books.apply(hold(number, amount, payer))
            granted += amount
    assert books.balance(held(7)) == granted <= balance


def test_an_event_is_applied_once() -> None:
    """The same again moves nothing, whether the first is kept already or not."""
    shelf = MemoryShelf()
    books = Books(shelf)
    events = [
        deposit(1, 100),
        hold(2, 50),
        captured(3, 20, 18),
        release(4, of=2, amount=10),
        release(5, of=2),
        Withdrawn(**who(6), customer=7, amount=1),
    ]
    for event in events:
        assert books.apply(event)
    for event in events:
        assert books.apply(event) == ()
    shelf.keep(books.changes())
    books = Books(shelf)
    for event in events:
        assert books.apply(event) == ()
    assert books.changes() == Changes()


@pytest.mark.parametrize(
    ("event", "other"),
    [
        (deposit(5, 10), deposit(5, 11)),
        (deposit(5, 10), deposit(5, 10, customer=8)),
        (deposit(5, 10), hold(5, 10)),
        (hold(5, 10), hold(5, 10, payer=2)),
        (hold(5, 10), hold(5, 11)),
        (captured(5, 10, 9), captured(5, 9, 9)),
        (captured(5, 10, 9), captured(5, 10, 8)),
        (release(5, of=2, amount=3), release(5, of=2, amount=4)),
        (release(5, of=2, amount=3), release(5, of=3, amount=3)),
    ],
)
def test_an_id_is_not_used_for_something_else(event: Event, other: Event) -> None:
    """A known id with another body is a mistake that must be seen."""
    books = books_after(deposit(1, 100), hold(2, 30), hold(3, 30))
    books.apply(event)
    before = books.changes()
    with pytest.raises(Conflict):
        books.apply(other)
    assert books.changes() == before


def test_what_moved_nothing_leaves_no_trace() -> None:
    """A capture that nobody could pay is tried again when there is money."""
    books = Books(MemoryShelf())
    assert books.apply(captured(2, 10, 9)) == ()
    books.apply(deposit(1, 100))
    assert len(books.apply(captured(2, 10, 9))) == 2


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (Withdrawn(**who(9), customer=7, amount=101), BalanceTooLow),
        (Withdrawn(**who(9), customer=8, amount=1), BalanceTooLow),
        (hold(9, 71), BalanceTooLow),
        (release(9, of=2, amount=31), InvalidRequest),
        (release(9, of=4), NotFound),
        (Matured(**who(9), node=NODE, amount=10), BalanceTooLow),
        (Corrected.of(b"?" * 16, 9), NotFound),
        (Corrected.of(transfer_id((2).to_bytes(16, "big"), 0), 9), InvalidRequest),
        (deposit(9, MONEY_MAX), InvalidRequest),
        (
            Refunded(**who(9), customer=7, node=NODE, from_pending=9, from_fee=2, ref=b"task"),
            BalanceTooLow,
        ),
    ],
)
def test_what_is_refused_changes_nothing(event: Event, error: type[StarAIError]) -> None:
    """All of an event or nothing: a refund whose second part fails moves no first part."""
    books = books_after(deposit(1, 110), hold(2, 30), captured(3, 10, 9, payer=5))
    before = books.changes()
    with pytest.raises(error):
        books.apply(event)
    assert books.changes() == before


def test_a_hold_id_is_used_once() -> None:
    """Another event may not place the same hold, even when it is closed."""
    books = books_after(deposit(1, 100), hold(2, 30), release(3, of=2))
    again = HoldPlaced(
        **who(4), hold_id=(2).to_bytes(16, "big"), customer=7, payer=1, amount=1, expires_ms=9
    )
    with pytest.raises(Conflict):
        books.apply(again)


def test_a_correction_undoes_one_transfer_once() -> None:
    """What came from a hold goes to what is available; a correction can itself be corrected."""
    books = books_after(deposit(1, 100), hold(2, 30))
    (node_part, _) = books.apply(captured(3, 20, 18))
    correction = Corrected.of(node_part.transfer_id, 4, b"wrong node")
    (undone,) = books.apply(correction)
    assert undone.reverses == node_part.transfer_id
    assert moves((undone,)) == [(Code.CORRECT, pending(NODE), available(7), 18, b"wrong node")]
    assert books.apply(correction) == ()
    assert books.balance(available(7)) == 88
    books.apply(Corrected.of(undone.transfer_id, 5))
    assert books.balance(pending(NODE)) == 18
    with pytest.raises(InvalidRequest):
        Corrected(**who(6), reverses=node_part.transfer_id)


def test_slashing_takes_no_more_than_is_at_stake() -> None:
    """What was not there is told."""
    books = books_after(
        deposit(1, 100),
        captured(2, 50, 50),
        Matured(**who(3), node=NODE, amount=50),
        Staked(**who(4), node=NODE, amount=20),
    )
    event = Slashed(**who(5), node=NODE, amount=30, ref=b"lied")
    assert uncovered(event, books.apply(event)) == 10
    assert (books.balance(stake(NODE)), books.balance(INSURANCE)) == (0, 20)


_NO_AMOUNTS = [True, "7", 7.0, None, -1, MONEY_MAX + 1, 1 << 64]


@pytest.mark.parametrize("amount", [0, *_NO_AMOUNTS])
def test_only_whole_numbers_are_money(amount: object) -> None:
    """No amount is a truth value, a text, a float, negative, nothing, or beyond 63 bits."""
    with pytest.raises(InvalidRequest):
        deposit(1, amount)
    with pytest.raises(InvalidRequest):
        hold(1, amount)


@pytest.mark.parametrize("amount", _NO_AMOUNTS)
def test_only_whole_numbers_are_charged(amount: object) -> None:
    """Nor is a charge, a share or a customer's number; nothing may be charged."""
    for charge, share in ((amount, 0), (5, amount)):
        with pytest.raises(InvalidRequest):
            captured(1, charge, share)
    with pytest.raises(InvalidRequest):
        deposit(1, 1, customer=amount)
    assert Books(MemoryShelf()).apply(captured(1, 0, 0)) == ()


def test_other_nonsense_is_no_event() -> None:
    """Ids and keys have their length, reasons an end, and a node gets at most the charge."""
    for change in ({"event_id": b"short"}, {"at_ms": "1"}, {"ref": b"r" * 65}, {"ref": "text"}):
        with pytest.raises(InvalidRequest):
            Deposited(**{**who(1), "customer": 7, "amount": 1, **change})
    with pytest.raises(InvalidRequest):
        Matured(**who(1), node=b"n" * 31, amount=1)
    with pytest.raises(InvalidRequest):
        captured(1, 5, 6)


def test_ids_tell_their_parts_apart() -> None:
    """Where one part ends and the next begins is part of an id."""
    assert event_id(b"ab", b"c") != event_id(b"a", b"bc") != event_id(b"a", b"b", b"c")


def test_canonical_bytes_tell_transfers_apart() -> None:
    """Moving a byte from one field to the next changes them."""
    one = Transfer(
        b"i" * 16,
        b"e" * 16,
        Code.DEPOSIT,
        Account(Kind.POOL),
        Account(Kind.AVAILABLE, b"ab"),
        5,
        b"c",
        b"",
        9,
    )
    other = Transfer(
        *(b"i" * 16, b"e" * 16, Code.DEPOSIT, Account(Kind.POOL)),
        Account(Kind.AVAILABLE, b"a"),
        *(5, b"bc", b"", 9),
    )
    assert one.canonical() != other.canonical()
    assert len(one.canonical()) == len(other.canonical())


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "0.00 USD"),
        (1, "0.000000001 USD"),
        (1_250_000_000, "1.25 USD"),
        (-20, "-0.00000002 USD"),
        (12_000_000_000, "12.00 USD"),
    ],
)
def test_amounts_are_read_exactly(nano: int, text: str) -> None:
    """No digit is lost and none is made up."""
    assert usd(nano) == text
