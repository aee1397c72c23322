"""Customers, deposits, credit, budgets and prices; on every database."""

from __future__ import annotations

import pytest

from starai.core.clock import SystemClock
from starai.core.errors import BalanceTooLow, Conflict, InvalidRequest, NotFound
from starai.core.limits import FRAME_BYTES_MAX
from starai.core.randomness import SeededRandomness
from starai.ledger.events import Withdrawn
from starai.protocol.frames import encode
from starai.registry.keys import Keys
from starai.registry.money.books import apply_event, verify_books
from starai.registry.money.customers import Customers
from starai.registry.money.prices import MODEL_BYTES_MAX, ROWS_MAX, PriceList
from starai.registry.storage import open_store

pytestmark = pytest.mark.anyio

HERE = b"\x11" * 20


class SetClock(SystemClock):
    """A clock that stands still."""

    def __init__(self, unix_ms: int) -> None:
        self.unix_ms = unix_ms

    def now_ms(self) -> int:
        return self.unix_ms


class Office:
    """The parts, and what they told gateways."""

    def __init__(self, store) -> None:
        self.store, self.told = store, []
        self.clock = SetClock(1_800_000_000_000)
        self.customers = Customers(store, self.clock, self._tell)
        self.keys = Keys(store, self.clock, SeededRandomness(1), self._tell)
        self.prices = PriceList(store, self.clock, self._tell)

    async def _tell(self, change) -> None:
        self.told.append(change)

    async def balance(self, customer="acme"):
        (one,) = await self.customers.balances(customer)
        return (
            int(one.available_nano_usd),
            int(one.credit_nano_usd),
            int(one.credit_used_nano_usd),
        )


@pytest.fixture
async def office(database):
    async with open_store(database, inline=True) as store:
        made = Office(store)
        yield made
        assert (await store.read(verify_books)).problems == ()


async def test_a_deposit_counts_once(office: Office) -> None:
    """The same again after a lost answer is the same deposit; another with its id is a conflict."""
    assert await office.customers.create("acme") == 1
    for _ in range(2):
        await office.customers.deposit("acme", 500, b"1" * 16, "invoice 1")
    assert await office.balance() == (500, 0, 0)
    assert [change.owner for change in office.told] == [1, 1]
    with pytest.raises(Conflict):
        await office.customers.deposit("1", 501, b"1" * 16)
    for amount in (0, -1, True, 1.5):
        with pytest.raises(InvalidRequest):
            await office.customers.deposit("acme", amount, b"2" * 16)
    with pytest.raises(NotFound):
        await office.customers.deposit("nobody", 1, b"3" * 16)


async def test_an_address_is_one_customers(office) -> None:
    """Who is made with a chain address keeps it, and nobody else gets it."""
    assert await office.customers.create("acme", HERE) == 1
    with pytest.raises(Conflict, match="customer 1"):
        await office.customers.create("other", HERE)
    assert await office.customers.create("other") == 2
    assert await office.customers.create("third") == 3
    found = await office.store.read(
        lambda connection: list(
            connection.execute("SELECT name, address FROM customer ORDER BY id")
        )
    )
    assert found == [("acme", HERE), ("other", None), ("third", None)]


async def test_names(office: Office) -> None:
    """A name is there once, is no number, and is found as the number is."""
    assert await office.customers.create("acme") == 1
    for wrong in ("", "12", "\0", "x" * 65):
        with pytest.raises(InvalidRequest):
            await office.customers.create(wrong)
    with pytest.raises(Conflict):
        await office.customers.create("acme")
    await office.keys.create("k", key_hash=b"k" * 32)
    await office.keys.create("k", key_hash=b"l" * 32)
    with pytest.raises(Conflict, match="number"):
        await office.balance("k")
    assert await office.balance("3") == (0, 0, 0)
    assert [one.name for one in await office.customers.balances()] == ["acme", "k", "k"]


async def test_credit_is_lent_and_taken_back(office: Office) -> None:
    """It is spent like money paid in; what is used of it cannot be taken back."""
    await office.customers.create("acme")
    await office.customers.set_credit("acme", 300)
    assert await office.balance() == (300, 300, 0)
    await office.customers.set_credit("acme", 300)
    await office.customers.set_credit("acme", 100)
    await office.customers.set_credit("acme", 300)
    assert await office.balance() == (300, 300, 0)
    await office.customers.deposit("acme", 50, b"1" * 16)
    await office.customers.set_credit("acme", 0)
    assert await office.balance() == (50, 0, 0)
    with pytest.raises(InvalidRequest):
        await office.customers.set_credit("acme", -1)


async def test_used_credit_is_exposure(office: Office) -> None:
    """What neither is there nor held of a credit line is what the customer owes."""
    await office.customers.create("acme")
    await office.customers.set_credit("acme", 300)

    def withdraw(connection) -> None:
        apply_event(connection, Withdrawn(event_id=b"w" * 16, at_ms=1, customer=1, amount=200))

    await office.store.write(withdraw)
    assert await office.balance() == (100, 300, 200)
    with pytest.raises(BalanceTooLow, match="lowest line"):
        await office.customers.set_credit("acme", 100)
    await office.customers.set_credit("acme", 200)
    assert await office.balance() == (0, 200, 200)


async def test_keys_of_a_customer(office: Office) -> None:
    """A key has an owner and may have a budget; both are listed, and told to gateways."""
    await office.customers.create("acme")
    entry = await office.keys.create("k", key_hash=b"k" * 32, owner="acme", budget_nano_usd=7)
    assert (entry.customer, entry.owner) == (1, 1)
    own = await office.keys.create("l", key_hash=b"l" * 32)
    assert (own.customer, own.owner) == (2, 2)
    with pytest.raises(NotFound):
        await office.keys.create("m", key_hash=b"m" * 32, owner="nobody")
    second, first = await office.keys.rows()
    assert (first.budget_nano_usd, first.spent_nano_usd) == ("7", "0")
    assert second.budget_nano_usd is None
    await office.customers.set_budget(first.key_id, 9)
    assert office.told[-1].owner == 1
    assert (await office.keys.rows())[1].budget_nano_usd == "9"
    with pytest.raises(NotFound):
        await office.customers.set_budget("key_none", 9)


async def test_prices_are_only_added(office: Office) -> None:
    """A new price is a new row; what holds already adds none; gateways hear of what is to come."""
    first = await office.prices.add("*", 100, 400)
    assert (await office.prices.add("*", 100, 400)) == first
    later = await office.prices.add("*", 200, 400, valid_from_ms=office.clock.now_ms() + 1000)
    own = await office.prices.add("m", 1, 1, node_share_bps=5_000)
    table = await office.prices.table()
    assert table.version == 3
    assert {entry.price_id for entry in table.entries} == {1, 2, 3}
    office.clock.unix_ms += 2000
    assert {entry.price_id for entry in (await office.prices.table()).entries} == {2, 3}
    assert await office.prices.rows() == [own, later, first]
    assert office.told[-1] == table
    for wrong in (("", 1, 1), ("m", -1, 1), ("m", 1, 1 << 40), ("\0", 1, 1), ("x" * 300, 1, 1)):
        with pytest.raises(InvalidRequest):
            await office.prices.add(*wrong)


async def test_the_largest_price_table_fits_a_frame(tmp_path) -> None:
    """As many prices as may be, with the longest names, fit one frame."""
    async with open_store(tmp_path / "registry.db", inline=True) as store:

        async def ignore(_) -> None:
            """Nobody listens."""

        def fill(connection) -> None:
            connection.executemany(
                "INSERT INTO price (model, input_nano, output_nano, node_bps, valid_from_ms)"
                " VALUES (?, 1000000000, 1000000000, 10000, 1800000000000)",
                ((f"{n:0{MODEL_BYTES_MAX}}",) for n in range(ROWS_MAX)),
            )

        await store.write(fill)
        table = await PriceList(store, SystemClock(), ignore).table()
        assert len(table.entries) == ROWS_MAX
        assert len(encode(table)) < FRAME_BYTES_MAX
