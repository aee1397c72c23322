"""The watcher: what happens at the vault is booked once, and never what may still be undone."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.settlement.labs import (
    CUSTOMER,
    DAY_S,
    DEPOSIT,
    GUARDIAN,
    NODE,
    RELAYER,
    Days,
    Lab,
)

from starai.core.errors import Conflict
from starai.ledger.accounts import Kind, available, held, payable
from starai.ledger.events import Captured, Matured, event_id
from starai.registry.money.books import apply_event, verify_books
from starai.registry.money.shelf import StoredShelf
from starai.settlement.leaves import LeafKind
from starai.settlement.rollup.ground import DELAY_S, address_of, checksummed
from starai.settlement.watching import Watcher

NODE_AT, CUSTOMER_AT = address_of(NODE), address_of(CUSTOMER)
USD = 10**6
NANO = 1000
DEPTH = 3
NODE_KEY = b"\5" * 32


class Watch:
    """A watcher, and the books that it keeps."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.chain = lab.staged.chain(RELAYER)
        self.days = Days(self.chain.chain_id, self.chain.contract)
        self.watcher = Watcher(self.chain, self.days.settlement, confirmations=DEPTH)

    def look(self) -> None:
        """Let what happened become certain, and book it."""
        self.lab.mine(DEPTH)
        self.watcher.step()
        assert verify_books(self.days.connection).problems == ()

    def balance(self, account: Any) -> int:
        return StoredShelf(self.days.connection).totals(account).balance

    @property
    def customer(self) -> int:
        rows = self.days.connection.execute(
            "SELECT id FROM customer WHERE address = ?", (CUSTOMER_AT,)
        )
        return int(next(iter(rows))[0])

    def earn(self, units: int) -> None:
        """Let the node have earned so much for good, and placed at its address."""
        nano, name = units * NANO, event_id(b"test", str(units).encode())
        apply_event(
            self.days.connection,
            Captured(
                event_id=name,
                at_ms=1,
                customer=self.customer,
                payer=9,
                node=NODE_KEY,
                charge=nano,
                node_share=nano,
                ref=b"",
            ),
        )
        matured = event_id(b"matured", name)
        apply_event(
            self.days.connection, Matured(event_id=matured, at_ms=1, node=NODE_KEY, amount=nano)
        )

    def place(self, epoch: int, units: int) -> None:
        self.days.connection.execute(
            "INSERT INTO payout (node, address, bound_ms, sig) VALUES (?, ?, 1, ?)",
            (NODE_KEY, NODE_AT, b""),
        )
        self.days.connection.execute(
            "INSERT INTO leaf (epoch, kind, payee, cum) VALUES (?, ?, ?, ?)",
            (epoch, int(LeafKind.EARNED), NODE_KEY + NODE_AT, str(units * NANO)),
        )


@pytest.fixture
def watch(lab: Lab) -> Watch:
    return Watch(lab)


def test_a_deposit_becomes_a_customers_balance(watch: Watch) -> None:
    """Who deposits and is not known becomes a customer; looking again books nothing twice."""
    watch.look()
    assert watch.balance(available(watch.customer)) == DEPOSIT * NANO
    watch.look()
    watch.lab.staged.deposit(CUSTOMER, USD)
    watch.look()
    assert watch.balance(available(watch.customer)) == (DEPOSIT + USD) * NANO


def test_what_is_not_deep_enough_is_not_booked(watch: Watch) -> None:
    """A deposit that a reorganisation takes back was never there."""
    watch.look()
    before = watch.lab.snapshot()
    watch.lab.staged.deposit(CUSTOMER, USD)
    watch.watcher.step()
    watch.lab.go_back(before)
    watch.look()
    assert watch.balance(available(watch.customer)) == DEPOSIT * NANO


def test_a_chain_that_goes_back_too_far_stops_the_watch(lab: Lab) -> None:
    """What was booked is gone from the chain: nothing more is booked until a person looked."""
    before = lab.snapshot()
    watch = Watch(lab)
    lab.mine(10)
    watch.look()
    lab.go_back(before)
    lab.travel(5)
    lab.mine(20)
    with pytest.raises(Conflict, match="went back"):
        watch.watcher.step()


def test_a_claim_is_paid_out_in_the_books(watch: Watch) -> None:
    """The node's payable falls by what its address claimed."""
    watch.look()
    watch.earn(5 * USD)
    tree = watch.days.close(1, {NODE_AT: 5 * USD})
    watch.place(1, 5 * USD)
    watch.lab.post(tree)
    watch.lab.travel(DELAY_S)
    call = watch.lab.staged.vault.functions.claim(
        checksummed(NODE_AT), 5 * USD, tree.proof(NODE_AT)
    )
    watch.lab.send(RELAYER, call)
    watch.look()
    assert watch.balance(payable(NODE_KEY)) == 0
    claimed = watch.days.connection.execute(
        "SELECT amount, credit_kind FROM transfer WHERE code = 'claimed'"
    )
    assert [*claimed] == [(5 * USD * NANO, Kind.POOL.value)]


def test_a_claim_beyond_what_was_placed_stops(watch: Watch) -> None:
    """Money left the vault that the books never promised: an alarm, and nothing is booked."""
    watch.look()
    tree = watch.days.close(1, {NODE_AT: 5 * USD})
    watch.lab.post(tree)
    watch.lab.travel(DELAY_S)
    call = watch.lab.staged.vault.functions.claim(
        checksummed(NODE_AT), 5 * USD, tree.proof(NODE_AT)
    )
    watch.lab.send(RELAYER, call)
    cursor = watch.days.settlement.cursor()
    with pytest.raises(Conflict, match="more than was placed"):
        watch.look()
    assert watch.days.settlement.cursor() == cursor


def test_a_withdrawal_is_set_aside_when_it_is_asked_for(watch: Watch) -> None:
    """From the request on the money cannot be spent; when it is taken it leaves the books."""
    watch.look()
    watch.lab.send(CUSTOMER, watch.lab.staged.vault.functions.request_withdrawal(5 * USD))
    watch.look()
    assert watch.balance(held(watch.customer)) == 5 * USD * NANO
    watch.lab.send(CUSTOMER, watch.lab.staged.vault.functions.request_withdrawal(8 * USD))
    watch.look()
    assert watch.balance(held(watch.customer)) == 8 * USD * NANO
    watch.lab.travel(30 * DAY_S)
    watch.lab.send(CUSTOMER, watch.lab.staged.vault.functions.withdraw(8 * USD, 0, []))
    watch.look()
    assert watch.balance(held(watch.customer)) == 0
    assert watch.balance(available(watch.customer)) == (DEPOSIT - 8 * USD) * NANO


def test_a_veto_is_noted(watch: Watch) -> None:
    """The day whose root the guardian took back waits to be closed again."""
    tree = watch.days.close(1, {NODE_AT: USD})
    watch.days.settlement.sent(1)
    watch.lab.post(tree)
    watch.lab.send(GUARDIAN, watch.lab.staged.vault.functions.veto(1))
    watch.look()
    assert watch.days.state(1) == "vetoed"


def test_a_long_way_is_read_in_spans(watch: Watch) -> None:
    """Public nodes answer for so many blocks at once; the rest is left for the next step."""
    watch.lab.mine(10)
    watcher = Watcher(watch.chain, watch.days.settlement, confirmations=DEPTH, span_blocks=7)
    tip, left = watch.chain.tip().number - DEPTH, []
    while not left or left[-1]:
        left.append(watcher.step())
    assert left == [*range(tip - 6, 0, -7), 0] or left == [*range(tip - 6, -1, -7)]
    assert watch.balance(available(watch.customer)) == DEPOSIT * NANO
