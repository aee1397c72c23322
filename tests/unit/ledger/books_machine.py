"""All events in any order against a model that is written otherwise, over any shelf.

The model knows balances by name and holds by number; it was not derived from the rules. After
every step the books must be the model's, sum to zero, have nothing below zero, and their hash must
be that of a replay.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from starai.core.errors import BalanceTooLow, Conflict, InvalidRequest, StarAIError
from starai.ledger import state
from starai.ledger.accounts import MONEY_MAX, Account, Kind, Totals
from starai.ledger.books import Books
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
from starai.ledger.replaying import Replay
from starai.ledger.rules import uncovered
from starai.ledger.shelves import Changes, Hold, MemoryShelf
from starai.ledger.transfers import Code, Transfer

CUSTOMERS = st.integers(1, 2)
PAYERS = st.integers(1, 2)
NODES = st.sampled_from([b"n" * 32, b"o" * 32])
SMALL = st.integers(1, 40)
HUGE = st.sampled_from([MONEY_MAX, MONEY_MAX - 1000])
PICKS = st.integers(0, 30)


@dataclass
class Model:
    """Balances and totals by name; holds in the order of placing: [payer, remaining]."""

    balances: dict[str, int] = field(default_factory=dict)
    debits: dict[str, int] = field(default_factory=dict)
    credits: dict[str, int] = field(default_factory=dict)
    holds: dict[bytes, list[int]] = field(default_factory=dict)

    def can(self, source: str, to: str, amount: int) -> type[StarAIError] | None:
        """What stands against a move."""
        if source != "pool" and self.balances.get(source, 0) < amount:
            return BalanceTooLow
        if max(self.debits.get(source, 0), self.credits.get(to, 0)) + amount > MONEY_MAX:
            return InvalidRequest
        return None

    def move(self, source: str, to: str, amount: int) -> None:
        """Do a move."""
        self.balances[source] = self.balances.get(source, 0) - amount
        self.balances[to] = self.balances.get(to, 0) + amount
        self.debits[source] = self.debits.get(source, 0) + amount
        self.credits[to] = self.credits.get(to, 0) + amount

    def capture(self, customer: int, payer: int, node: str, shares: tuple[int, int]) -> int:
        """Pay node and fee one after the other, each from all sources; returns what is missing."""
        missing = 0
        for to, due in zip((node, "fee"), shares, strict=True):
            left = due
            for hold in self.holds.values():
                if hold[:2] == [customer, payer]:
                    part = min(left, hold[2])
                    hold[2] -= part
                    left -= part
                    self.move(f"held {customer}", to, part)
            for source in (f"available {customer}", "insurance"):
                part = min(left, self.balances.get(source, 0))
                left -= part
                self.move(source, to, part)
            missing += left
        return missing


_NAMES = {
    Kind.AVAILABLE: "available",
    Kind.HELD: "held",
    Kind.PENDING: "pending",
    Kind.PAYABLE: "payable",
    Kind.STAKE: "stake",
    Kind.FEE: "fee",
    Kind.INSURANCE: "insurance",
    Kind.POOL: "pool",
}


def name_of(account: Account) -> str:
    """What the model calls an account."""
    kind, owner = account
    if kind in {Kind.AVAILABLE, Kind.HELD}:
        return f"{_NAMES[kind]} {int.from_bytes(owner, 'big')}"
    return f"{_NAMES[kind]} {owner[:1].decode()}".rstrip()


class BooksMachine(RuleBasedStateMachine):
    """Books over a shelf in memory, kept now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = self.make_shelf()
        self.books = Books(self.shelf)
        self.model = Model()
        self.replay = Replay()
        self.kept_sum = 0
        self.done: list[tuple[Event, tuple[Transfer, ...]]] = []
        self.count = 0

    def make_shelf(self):
        """Where the books are kept."""
        return MemoryShelf()

    def kept(self) -> tuple[dict[Account, Totals], dict[bytes, Hold]]:
        """All that the shelf has."""
        return dict(self.shelf.accounts), dict(self.shelf.holds)

    def who(self) -> dict[str, object]:
        """What every new event has."""
        self.count += 1
        return {"event_id": self.count.to_bytes(16, "big"), "at_ms": self.count}

    def attempt(self, event: Event, refusal: type[StarAIError] | None) -> tuple[Transfer, ...]:
        """Apply an event that the model would do, or refuse with ``refusal``."""
        before = self.books.changes()
        try:
            moved = self.books.apply(event)
        except StarAIError as error:
            refused_as, moved = type(error), ()
        else:
            refused_as = None
        assert refused_as is refusal, event
        if refused_as:
            assert self.books.changes() == before
        for one in moved:
            assert self.replay.add(one) == []
        if moved:
            assert all(one.event_id == event.event_id for one in moved)
            self.done.append((event, moved))
        return moved

    def simple(self, event: Event, *moves: tuple[str, str, int]) -> None:
        """An event of fixed moves from different accounts to one."""
        refusal = next(filter(None, (self.model.can(*move) for move in moves)), None)
        self.attempt(event, refusal)
        if refusal is None:
            for move in moves:
                self.model.move(*move)

    @initialize()
    def begin(self) -> None:
        """Some money everywhere, so that most of what follows can be done."""
        for customer, amount in ((1, 160), (2, 60)):
            self.deposit(customer=customer, amount=amount)
        for node, charge in ((b"n" * 32, 70), (b"o" * 32, 30)):
            self.capture(customer=1, payer=1, node=node, charge=charge, share=charge - 10)
            self.mature(node=node, pick=19)
            self.put_at_stake(node=node, pick=9)
        self.slash(node=b"n" * 32, amount=5)
        for customer, payer, amount in ((1, 1, 6), (1, 1, 9), (1, 2, 5), (1, 1, 9), (2, 1, 30)):
            self.place(customer=customer, payer=payer, amount=amount)

    def some(self, name: str, pick: int) -> int:
        """An amount from 1 to one more than an account has."""
        return 1 + pick % (self.model.balances.get(name, 0) + 1)

    @rule(customer=CUSTOMERS, amount=SMALL)
    def deposit(self, customer: int, amount: int) -> None:
        event = Deposited(**self.who(), customer=customer, amount=amount, ref=b"x")
        self.simple(event, ("pool", f"available {customer}", amount))

    @rule(customer=CUSTOMERS, amount=HUGE, back=st.booleans())
    def overflow(self, customer: int, amount: int, back: bool) -> None:
        """All money there can be, or more; else too few examples would be about anything else."""
        self.deposit(customer=customer, amount=amount)
        if back:
            self.withdraw(customer=customer, pick=amount - 1)

    @rule(customer=CUSTOMERS, pick=PICKS)
    def withdraw(self, customer: int, pick: int) -> None:
        amount = self.some(f"available {customer}", pick)
        event = Withdrawn(**self.who(), customer=customer, amount=amount)
        self.simple(event, (f"available {customer}", "pool", amount))

    @rule(customer=CUSTOMERS, payer=PAYERS, amount=SMALL)
    def place(self, customer: int, payer: int, amount: int) -> None:
        who = self.who()
        hold_id = self.count.to_bytes(16, "little")
        source, to = f"available {customer}", f"held {customer}"
        if self.model.can(source, to, amount) is None:
            self.model.holds[hold_id] = [customer, payer, amount]
        event = HoldPlaced(
            **who, hold_id=hold_id, customer=customer, payer=payer, amount=amount, expires_ms=9
        )
        self.simple(event, (source, to, amount))

    @rule(pick=PICKS, part=st.one_of(st.none(), PICKS))
    def release(self, pick: int, part: int | None) -> None:
        hold_id = list(self.model.holds)[-1 - pick % len(self.model.holds)]
        customer, _, remaining = self.model.holds[hold_id]
        amount = None if part is None else 1 + part % (remaining + 1)
        event = HoldReleased(**self.who(), hold_id=hold_id, amount=amount)
        if amount is not None and amount > remaining:
            self.attempt(event, InvalidRequest)
            return
        part = remaining if amount is None else amount
        moves = [(f"held {customer}", f"available {customer}", part)] if part else []
        if all(self.model.can(*move) is None for move in moves):
            self.model.holds[hold_id][2] -= part
        self.simple(event, *moves)

    @rule(customer=CUSTOMERS, payer=PAYERS, node=NODES, charge=SMALL, share=st.integers(0, 40))
    def capture(self, customer: int, payer: int, node: bytes, charge: int, share: int) -> None:
        share = min(share, charge)
        event = Captured(
            **self.who(),
            customer=customer,
            payer=payer,
            node=node,
            charge=charge,
            node_share=share,
            ref=b"r" * 32,
        )
        if self.model.debits.get(f"available {customer}", 0) > MONEY_MAX // 2:
            return  # which part of it would overflow is another question
        to = name_of(Account(Kind.PENDING, node))
        missing = self.model.capture(customer, payer, to, (share, charge - share))
        moved = self.attempt(event, None)
        assert uncovered(event, moved) == missing

    @rule(node=NODES, pick=PICKS)
    def mature(self, node: bytes, pick: int) -> None:
        tag = node[:1].decode()
        amount = self.some(f"pending {tag}", pick)
        event = Matured(**self.who(), node=node, amount=amount)
        self.simple(event, (f"pending {tag}", f"payable {tag}", amount))

    @rule(node=NODES, pick=PICKS)
    def put_at_stake(self, node: bytes, pick: int) -> None:
        tag = node[:1].decode()
        amount = self.some(f"payable {tag}", pick)
        event = Staked(**self.who(), node=node, amount=amount)
        self.simple(event, (f"payable {tag}", f"stake {tag}", amount))

    @rule(node=NODES, pick=PICKS)
    def take_from_stake(self, node: bytes, pick: int) -> None:
        tag = node[:1].decode()
        amount = self.some(f"stake {tag}", pick)
        event = Unstaked(**self.who(), node=node, amount=amount)
        self.simple(event, (f"stake {tag}", f"payable {tag}", amount))

    @rule(node=NODES, pick=PICKS)
    def claim(self, node: bytes, pick: int) -> None:
        source = f"payable {node[:1].decode()}"
        amount = self.some(source, pick)
        event = Claimed(**self.who(), node=node, amount=amount, ref=b"tx")
        self.simple(event, (source, "pool", amount))

    @rule(node=NODES, amount=SMALL)
    def slash(self, node: bytes, amount: int) -> None:
        source = f"stake {node[:1].decode()}"
        part = min(amount, self.model.balances.get(source, 0))
        event = Slashed(**self.who(), node=node, amount=amount, ref=b"why")
        self.simple(event, *([(source, "insurance", part)] if part else []))

    @rule(customer=CUSTOMERS, node=NODES, parts=st.tuples(*[st.integers(0, 3)] * 3))
    def refund(self, customer: int, node: bytes, parts: tuple[int, int, int]) -> None:
        event = Refunded(
            **self.who(),
            customer=customer,
            node=node,
            from_pending=parts[0],
            from_fee=parts[1],
            from_insurance=parts[2],
            ref=b"task",
        )
        sources = (f"pending {node[:1].decode()}", "fee", "insurance")
        to = f"available {customer}"
        if self.model.credits.get(to, 0) < MONEY_MAX // 2:
            self.simple(event, *[(s, to, p) for s, p in zip(sources, parts, strict=True) if p])

    @rule(pick=PICKS)
    def correct(self, pick: int) -> None:
        moved = [one for _, transfers in self.done for one in transfers]
        wrong = moved[-1 - pick % len(moved)]
        event = Corrected.of(wrong.transfer_id, self.count)
        if any(isinstance(e, Corrected) and e.reverses == wrong.transfer_id for e, _ in self.done):
            assert self.attempt(event, None) == ()
        elif wrong.code in {Code.HOLD, Code.RELEASE}:
            self.attempt(event, InvalidRequest)
        else:
            to = name_of(wrong.debit).replace("held", "available")
            self.simple(event, (name_of(wrong.credit), to, wrong.amount))

    @rule(pick=PICKS)
    def again(self, pick: int) -> None:
        """The same event once more changes nothing."""
        event, _ = self.done[pick % len(self.done)]
        before = self.books.changes()
        assert self.books.apply(event) == ()
        assert self.books.changes() == before

    @rule(pick=PICKS, other=PICKS)
    def same_id_other_body(self, pick: int, other: int) -> None:
        """An id that was used for another event is refused."""
        event, _ = self.done[pick % len(self.done)]
        stranger, _ = self.done[other % len(self.done)]
        if type(event) is type(stranger) or isinstance(stranger, Corrected):
            return
        fields = {name: getattr(stranger, name) for name in stranger.__struct_fields__}
        self.attempt(type(stranger)(**{**fields, "event_id": event.event_id}), Conflict)

    @rule()
    def keep(self) -> None:
        """Write what changed, and go on with new books."""
        changes = self.books.changes()
        self.kept_sum = state.add(self.kept_sum, changes)
        self.shelf.keep(changes)
        self.books = Books(self.shelf)
        assert self.books.changes() == Changes()

    @invariant()
    def the_books_are_the_model(self) -> None:
        """Every balance, every hold, the sum, the sign, and the hash."""
        changes = self.books.changes()
        accounts, holds = self.kept()
        accounts.update((account, after) for account, _, after in changes.accounts)
        holds.update((hold.hold_id, hold) for _, hold in changes.holds)
        balances = {name_of(account): totals.balance for account, totals in accounts.items()}
        assert {n: b for n, b in balances.items() if b} == {
            n: b for n, b in self.model.balances.items() if b
        }
        assert sum(balances.values()) == 0
        assert all(balance >= 0 for n, balance in balances.items() if n != "pool")
        remaining = {hold_id: hold.remaining for hold_id, hold in holds.items()}
        assert remaining == {hold_id: hold[2] for hold_id, hold in self.model.holds.items()}
        assert state.check(accounts, holds.values()) == []
        assert accounts == self.replay.accounts
        replayed = state.sum_of(self.replay.accounts, self.replay.holds.values())
        assert state.add(self.kept_sum, changes) == replayed
