"""The books in the database: payments for records, and a replay that finds what was changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.stateful import run_state_machine_as_test
from tests.unit.ledger.books_machine import BooksMachine

from starai.core.errors import BalanceTooLow, ConfigurationRefused, Conflict
from starai.ledger import Deposited, HoldPlaced, HoldReleased, state
from starai.ledger.accounts import FEE, MONEY_MAX, POOL, available, held, pending
from starai.ledger.prices import PRICE_NANO_MAX
from starai.protocol.records import leaf_hash, set_root
from starai.registry.money.books import (
    Invoice,
    Owed,
    Paid,
    apply_event,
    books_hash,
    capture,
    total_debits,
    verify_books,
)
from starai.registry.money.shelf import StoredShelf, refuse_old_ids
from starai.registry.storage.sqlite import SqliteSession, connect, migrate
from starai.testing.money import CUSTOMER as INSURER, insure

NODE = b"n" * 32
CUSTOMER = 5
#: Two keys of one customer: payers 1 and 2; payer 3 is another customer's.
PAYERS = {1: CUSTOMER, 2: CUSTOMER, 3: 6}
PRICE, NIGHT_PRICE, LARGEST = 1, 2, 3


@pytest.fixture
def connection() -> Iterable[SqliteSession]:
    """A database with three keys of two customers, three prices, and 100 tasks."""
    session = connect(":memory:")
    migrate(session)
    session.begin(writing=True)
    for customer in set(PAYERS.values()):
        session.execute("INSERT INTO customer VALUES (?, 'c', 0, 0, NULL)", (customer,))
    for payer, owner in PAYERS.items():
        session.execute(
            "INSERT INTO key (key_id, key_hash, customer, version, owner, name, rpm, tpm,"
            " created_ms) VALUES (?, ?, ?, ?, ?, 'k', 0, 0, 0)",
            (f"k{payer}", bytes([payer]), payer, payer, owner),
        )
    for row in (
        (PRICE, 20, 60, 9_000),
        (NIGHT_PRICE, 2, 6, 5_000),
        (LARGEST, PRICE_NANO_MAX, PRICE_NANO_MAX, 10_000),
    ):
        session.execute("INSERT INTO price VALUES (?, '*', ?, ?, ?, 0)", row)
    for seq in range(1, 101):
        add_task(session, seq, 100)
    yield session
    session.rollback()
    session.close()


def add_task(session: SqliteSession, seq: int, charge: int) -> None:
    """A row of a record; only what payments look at is what it would be."""
    session.execute(
        "INSERT INTO task (seq, task_id, attempt, leaf, sides, state, block, node, dist, cust,"
        " model, in_tok, out_tok, price_id, charge, closed_ms, rec)"
        " VALUES (?, ?, 0, ?, 3, 3, 0, ?, x'', 1, x'', 1, 1, 1, ?, 0, x'')",
        (seq, seq.to_bytes(16, "big"), leaf(seq), NODE, charge),
    )


def leaf(seq: int) -> bytes:
    """The leaf of record ``seq``."""
    return leaf_hash(seq.to_bytes(16, "big"))


def owed(seq: int, **changes: object) -> Owed:
    """A record of 100 nano-USD: two tokens in and one out."""
    one = Owed(seq, leaf(seq), 1, PRICE, 2, 1, 100)
    return one._replace(**changes)


def pay(connection: SqliteSession, records: list[Owed], now_ms: int) -> Paid:
    """Pay `NODE` for records."""
    return capture(connection, [Invoice(NODE, records, now_ms, 1)])


def deposit(session: SqliteSession, amount: int, customer: int = CUSTOMER) -> None:
    """Pay in, once for each customer."""
    number = customer.to_bytes(16, "big")
    apply_event(session, Deposited(event_id=number, at_ms=1, customer=customer, amount=amount))


def hold(session: SqliteSession, number: int, amount: int, payer: int = 1) -> bytes:
    """A hold for a payer."""
    hold_id = bytes([number]) * 16
    apply_event(
        session,
        HoldPlaced(
            event_id=hold_id,
            at_ms=number,
            hold_id=hold_id,
            customer=PAYERS[payer],
            payer=payer,
            amount=amount,
            expires_ms=1_000,
            gateway=b"g",
        ),
    )
    return hold_id


def balance(session: SqliteSession, account: object) -> int:
    """What is in an account, as the database has it."""
    return StoredShelf(session).totals(account).balance


def paid_by(session: SqliteSession, seqs: Sequence[int]) -> set[bytes | None]:
    """The events that paid these records."""
    places = ", ".join("?" * len(seqs))
    return {
        e for (e,) in session.execute(f"SELECT event_id FROM task WHERE seq IN ({places})", seqs)
    }


def test_a_day_of_a_customer(connection: SqliteSession) -> None:
    """Paid in, held, captured, released: every balance and the replay are right."""
    deposit(connection, 10_000)
    hold_id = hold(connection, 1, 1_000)
    paid = pay(connection, [owed(seq) for seq in range(1, 8)], 50)
    assert (paid.node_nano, paid.fee_nano) == (630, 70)
    assert (paid.overcharged, paid.uncovered) == ((), ())
    apply_event(connection, HoldReleased(event_id=b"r" * 16, at_ms=60, hold_id=hold_id))
    assert balance(connection, available(CUSTOMER)) == 9_300
    assert balance(connection, held(CUSTOMER)) == 0
    assert balance(connection, pending(NODE)) == 630
    assert balance(connection, FEE) == 70
    assert balance(connection, POOL) == -10_000
    assert total_debits(connection) == 10_000 + 1_000 + 700 + 300
    ((closed_ms, gateway),) = connection.execute("SELECT closed_ms, gateway FROM hold")
    assert (closed_ms, gateway) == (60, b"g")
    checked = verify_books(connection)
    assert checked.problems == ()
    assert checked.books_hash == books_hash(connection)
    assert (checked.transfers, checked.accounts, checked.open_holds) == (5, 5, 0)
    spent = dict(connection.execute("SELECT customer, spent_nano FROM key"))
    assert spent == {1: 700, 2: 0, 3: 0}


def test_one_event_for_each_payer_names_its_records(connection: SqliteSession) -> None:
    """Records are grouped by payer; what an event paid for can be told from its reason."""
    deposit(connection, 10_000)
    deposit(connection, 10_000, customer=6)
    records = [owed(seq, payer=1 + seq % 3) for seq in range(1, 31)]
    pay(connection, records, 50)
    for payer in PAYERS:
        seqs = [one.seq for one in records if one.payer == payer]
        (event,) = paid_by(connection, seqs)
        moved = StoredShelf(connection).transfers_of(event)
        assert {one.ref for one in moved} == {set_root(map(leaf, seqs))}
        assert sum(one.amount for one in moved) == 100 * len(seqs)
    assert verify_books(connection).problems == ()


@pytest.mark.parametrize("count", [1, 15, 16, 17, 90])
def test_any_number_of_records_is_marked(connection: SqliteSession, count: int) -> None:
    """All of them and no others, however many fit one statement."""
    deposit(connection, 10_000)
    pay(connection, [owed(seq) for seq in range(1, count + 1)], 50)
    assert None not in paid_by(connection, range(1, count + 1))
    assert paid_by(connection, range(count + 1, 101)) == {None}


def test_the_same_again_pays_nothing_again(connection: SqliteSession) -> None:
    """Not in the same order, nor in another."""
    deposit(connection, 10_000)
    records = [owed(seq) for seq in range(1, 8)]
    pay(connection, records, 50)
    before = books_hash(connection)
    assert pay(connection, records[::-1], 60) == pay(connection, [], 60)
    assert books_hash(connection) == before


def test_a_record_is_paid_once(connection: SqliteSession) -> None:
    """A record among others is not paid by a second event."""
    deposit(connection, 10_000)
    pay(connection, [owed(1), owed(2)], 50)
    with pytest.raises(Conflict):
        pay(connection, [owed(2), owed(3)], 60)


def test_never_more_than_the_price_row_says(connection: SqliteSession) -> None:
    """A record that asks for more gets what the row says, one without a row nothing."""
    deposit(connection, 10_000)
    paid = pay(
        connection,
        [
            owed(1, charge=101),
            owed(2, price_id=NIGHT_PRICE),
            owed(3, price_id=9),
            owed(4, price_id=0),
            owed(5, charge=99),
            owed(6, charge=0),
            owed(7, prompt_tokens=0, answer_tokens=0),
        ],
        50,
    )
    assert paid.overcharged == (1, 2, 3, 4, 7)
    # 100 and 99 at nine tenths, rounded down; 10 at one half.
    assert (paid.node_nano, paid.fee_nano) == (90 + 89 + 5, 10 + 10 + 5)
    assert paid_by(connection, [3, 4, 6, 7]) == {None}


def test_a_free_network_moves_nothing(connection: SqliteSession) -> None:
    """Without prices nothing is charged, and the books are sound."""
    before = books_hash(connection)
    paid = pay(connection, [owed(1, price_id=0, charge=0, payer=99)], 50)
    assert (paid.node_nano, paid.uncovered, paid.overcharged) == (0, (), ())
    assert books_hash(connection) == before == state.state_hash(0)
    assert verify_books(connection).problems == ()


_BILLS = st.lists(
    st.tuples(
        st.integers(1, 4),  # the payer; nobody let 4 in
        st.sampled_from([PRICE, NIGHT_PRICE]),
        st.integers(0, 100),
    ),
    min_size=1,
    max_size=4,
)


def _moved(session: SqliteSession, lots: Sequence[Sequence[Invoice]]) -> tuple[object, ...]:
    """What is there and what was told once these lots were paid, which is then undone."""
    session.execute("SAVEPOINT paying")
    told = [capture(session, lot) for lot in lots]
    problems = verify_books(session).problems
    there = [
        sorted(session.execute(f"SELECT {columns} FROM {table}"))
        for table, columns in (
            ("transfer", "*"),
            ("account", "*"),
            ("hold", "hold_id, remaining, closed_ms IS NULL"),
            ("key", "customer, spent_nano"),
            ("books", "state, debits"),
        )
    ]
    marked = list(session.execute("SELECT seq, event_id FROM task ORDER BY seq"))
    session.execute("ROLLBACK TO paying")
    session.execute("RELEASE paying")
    sums = sum(one.node_nano for one in told), sum(one.fee_nano for one in told)
    overcharged = sorted(seq for one in told for seq in one.overcharged)
    uncovered = sorted(lack for one in told for lack in one.uncovered)
    return problems, there, marked, sums, overcharged, uncovered


@given(
    st.lists(_BILLS, min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 150)), max_size=4),
    st.integers(0, 300),
    st.integers(0, 200),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_many_invoices_move_what_they_move_one_by_one(
    connection: SqliteSession,
    bills: list[list[tuple[int, int, int]]],
    holds: list[tuple[int, int]],
    left: int,
    insured: int,
) -> None:
    """Holds, balance and insurance that suffice for some only go to the same in the same order."""
    connection.execute("SAVEPOINT given")
    for customer in sorted(set(PAYERS.values())):
        deposit(connection, left + 1 + sum(n for p, n in holds if PAYERS[p] == customer), customer)
    if insured:
        deposit(connection, insured, INSURER)
        insure(connection, insured)
    for number, (payer, amount) in enumerate(holds, 1):
        hold(connection, number, amount, payer)
    seqs = iter(range(1, 101))
    invoices = [
        Invoice(
            NODE,
            [
                owed(next(seqs), payer=payer, price_id=price, charge=charge)
                for payer, price, charge in records
            ],
            10 + number,
            1,
        )
        for number, records in enumerate(bills)
    ]
    together = _moved(connection, [invoices])
    one_by_one = _moved(connection, [[invoice] for invoice in invoices])
    connection.execute("ROLLBACK TO given")
    connection.execute("RELEASE given")
    assert together == one_by_one
    assert together[0] == ()


def test_what_nobody_can_pay_is_told(connection: SqliteSession) -> None:
    """Half paid, not at all, and by a payer whom nobody knows."""
    deposit(connection, 150)
    paid = pay(
        connection,
        [owed(1), owed(2), owed(3, payer=3), owed(4, payer=99)],
        50,
    )
    assert paid.uncovered == ((1, 50), (3, 100), (99, 100))
    assert (paid.node_nano, paid.fee_nano) == (150, 0)
    assert paid_by(connection, [3, 4]) == {None}
    deposit(connection, 500, customer=6)
    assert pay(connection, [owed(3, payer=3)], 60).node_nano == 90
    assert verify_books(connection).problems == ()


def test_more_than_all_money_is_no_overflow(connection: SqliteSession) -> None:
    """Charges that together go beyond 63 bits pay what there is."""
    deposit(connection, 1_000)
    huge = {"price_id": LARGEST, "prompt_tokens": 1 << 32, "answer_tokens": 1 << 32}
    records = [owed(seq, charge=MONEY_MAX // 2, **huge) for seq in range(1, 4)]
    paid = pay(connection, records, 50)
    assert paid.node_nano == 1_000
    assert paid.uncovered == ((1, 3 * (MONEY_MAX // 2) - 1_000),)


def test_a_refused_event_writes_nothing(connection: SqliteSession) -> None:
    """An allotment beyond the balance is refused, and the books are as before."""
    deposit(connection, 100)
    before = connection.execute("SELECT total_changes()").fetchone()
    with pytest.raises(BalanceTooLow):
        hold(connection, 1, 101)
    assert connection.execute("SELECT total_changes()").fetchone() == before


def test_two_gateways_cannot_spend_one_balance(connection: SqliteSession) -> None:
    """Each allotment is a transfer, so the second finds what the first left."""
    deposit(connection, 100)
    hold(connection, 1, 60, payer=1)
    with pytest.raises(BalanceTooLow):
        hold(connection, 2, 60, payer=2)
    hold(connection, 3, 40, payer=2)
    assert balance(connection, held(CUSTOMER)) == 100


_TAMPERINGS = {
    "UPDATE account SET credits = credits + 1 WHERE kind = 'fee'": "is kept as",
    "DELETE FROM account WHERE kind = 'fee'": "is kept as",
    "INSERT INTO account VALUES ('fee', x'01', 0, 5)": "is kept as",
    "UPDATE account SET kind = 'mine' WHERE kind = 'fee'": "no known kind",
    "UPDATE transfer SET amount = amount + 1 WHERE code = 'fee'": "is kept as",
    "UPDATE transfer SET amount = amount + 1 WHERE code = 'hold'": "hold",
    "UPDATE transfer SET code = 'gift' WHERE code = 'fee'": "no known code",
    "UPDATE transfer SET ref = x'' WHERE code = 'fee'": "draws on no hold",
    "DELETE FROM transfer WHERE code = 'capture'": "its id",
    "UPDATE transfer SET credit_owner = x'00' WHERE code = 'capture'": "exactly the records",
    "UPDATE hold SET remaining = remaining + 1": "not what its transfers say",
    "UPDATE hold SET payer = 2": "not what its transfers say",
    "UPDATE hold SET closed_ms = 5": "not what its transfers say",
    "DELETE FROM hold": "is missing",
    "UPDATE books SET debits = '1'": "kept state",
    "DELETE FROM books": "kept state",
    "UPDATE task SET event_id = NULL WHERE seq = 2": "exactly the records",
    "UPDATE task SET event_id = (SELECT event_id FROM task WHERE seq = 1) WHERE seq = 9": "exactly",
    "UPDATE task SET charge = 5": "more than its records charge",
    "UPDATE task SET event_id = x'00' WHERE seq = 9": "exactly the records",
}


@pytest.mark.parametrize("sql", _TAMPERINGS)
def test_a_helpful_hand_is_found(connection: SqliteSession, sql: str) -> None:
    """Whatever is changed by hand in any table of money, the replay says so."""
    deposit(connection, 10_000)
    hold(connection, 1, 1_000)
    pay(connection, [owed(seq) for seq in range(1, 8)], 50)
    assert verify_books(connection).problems == ()
    connection.execute(sql)
    assert connection.changes()
    assert any(_TAMPERINGS[sql] in problem for problem in verify_books(connection).problems)


class StoredBooksMachine(BooksMachine):
    """The same machine, with the database as its shelf."""

    def make_shelf(self) -> StoredShelf:
        """A database of its own."""
        self.session = connect(":memory:")
        migrate(self.session)
        self.session.begin(writing=True)
        return StoredShelf(self.session)

    def kept(self):
        """All that the database has."""
        holds = {hold.hold_id: hold for hold, _ in self.shelf.all_holds()}
        return dict(self.shelf.all_accounts()), holds

    def teardown(self) -> None:
        """What is in the database can be made again from its transfers."""
        self.keep()
        checked = verify_books(self.session)
        assert checked.problems == ()
        assert checked.books_hash == books_hash(self.session) == state.state_hash(self.kept_sum)
        self.session.rollback()
        self.session.close()


def test_any_order_of_events_in_the_database() -> None:
    """Books in the database are the model's after every step."""
    run_state_machine_as_test(
        StoredBooksMachine, settings=settings(max_examples=15, stateful_step_count=25)
    )


def test_books_of_an_older_version_are_refused(connection: SqliteSession) -> None:
    """Where transfers are named otherwise, what was paid would not be found and paid again."""
    refuse_old_ids(connection)
    deposit(connection, 100)
    refuse_old_ids(connection)
    # A numbering may begin elsewhere: PostgreSQL skips the numbers of what was undone.
    connection.execute("UPDATE transfer SET id = randomblob(16), seq = seq + 7")
    with pytest.raises(ConfigurationRefused, match="older StarAI"):
        refuse_old_ids(connection)
