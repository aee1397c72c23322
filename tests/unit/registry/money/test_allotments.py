"""Allotments in the books: granted, drawn on, given back, expired; on every database."""

from __future__ import annotations

import pytest

from starai.core.clock import SystemClock
from starai.core.errors import Conflict
from starai.core.randomness import SeededRandomness
from starai.ledger.accounts import available, held
from starai.ledger.events import Captured
from starai.protocol.identity import Identity
from starai.protocol.registry import AllotmentRequest, Shortage, SpentAllotment
from starai.registry.keys import Keys
from starai.registry.money.allotments import GRACE_MS, LIFETIME_MS, SETTLE_MS, SHARE, expire, grant
from starai.registry.money.books import apply_event, verify_books
from starai.registry.money.customers import Customers
from starai.registry.money.shelf import StoredShelf
from starai.registry.storage import open_store

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000_000
PARTY = Identity.create(SeededRandomness(3)).party
ONE, OTHER = b"a" * 32, b"b" * 32


async def _ignore(_) -> None:
    """Nobody listens."""


class Bank:
    """Two keys, 1 and 2, of one customer, and what gateways ask for them."""

    def __init__(self, store) -> None:
        self.store = store
        self.customers = Customers(store, SystemClock(), _ignore)
        self.keys = Keys(store, SystemClock(), SeededRandomness(1), _ignore)

    async def ask(self, number, wanted, least=1, *, key=1, gateway=ONE, spent=(), now_ms=NOW):
        request = AllotmentRequest(PARTY, key, bytes([number]) * 16, wanted, least, spent)
        answer, _ = await self.store.write(lambda c: grant(c, gateway, request, now_ms))
        return answer

    async def back(self, number, used, **how):
        spent = (SpentAllotment(bytes([number]) * 16, used),)
        return await self.ask(200 + number, 0, spent=spent, **how)

    async def capture(self, number, charge, key=1):
        captured = Captured(
            event_id=bytes([number]) * 16,
            at_ms=NOW,
            customer=1,
            payer=key,
            node=b"n" * 32,
            charge=charge,
            node_share=charge,
            ref=b"",
        )
        await self.store.write(lambda c: apply_event(c, captured))

    async def expire(self, now_ms):
        return await self.store.write(lambda c: expire(c, now_ms))

    async def money(self):
        def read(connection):
            assert verify_books(connection).problems == ()
            shelf = StoredShelf(connection)
            return shelf.totals(available(1)).balance, shelf.totals(held(1)).balance

        return await self.store.read(read)


@pytest.fixture
async def bank(database):
    async with open_store(database, inline=True) as store:
        made = Bank(store)
        await made.customers.create("acme")
        for number in (1, 2):
            await made.keys.create(f"k{number}", key_hash=bytes([number]) * 32, owner="acme")
        await made.customers.deposit("acme", 1000, b"d" * 16)
        yield made


async def test_one_gateway_gets_a_share_and_what_it_needs(bank: Bank) -> None:
    """Never more than wanted; a part of what there is, unless a request needs more."""
    first = await bank.ask(1, 100)
    assert (first.amount_nano_usd, first.expires_ms) == (100, NOW + LIFETIME_MS)
    assert (await bank.ask(2, 10_000)).amount_nano_usd == 900 // SHARE
    assert (await bank.ask(3, 10_000, 600)).amount_nano_usd == 600
    refused = await bank.ask(4, 10_000, 100)
    assert (refused.amount_nano_usd, refused.available_nano_usd) == (0, 75)
    assert refused.shortage is Shortage.BALANCE
    assert await bank.money() == (75, 925)


async def test_asking_again_sets_aside_once(bank: Bank) -> None:
    """After a lost answer the same name gets the same; nobody else can use it, nor a closed one."""
    first = await bank.ask(1, 100)
    again = await bank.ask(1, 70)
    assert (again.amount_nano_usd, again.expires_ms) == (100, first.expires_ms)
    for foreign in ({"key": 2}, {"gateway": OTHER}):
        with pytest.raises(Conflict):
            await bank.ask(1, 100, **foreign)
    await bank.back(1, 0)
    assert (await bank.ask(1, 100)).amount_nano_usd == 0
    assert await bank.money() == (1000, 0)


async def test_what_was_used_stays_held_until_it_is_captured(bank: Bank) -> None:
    """Captures before and after the return both count; the same return again changes nothing."""
    await bank.ask(1, 100)
    await bank.capture(1, 30)
    await bank.back(1, 50, gateway=OTHER)
    assert await bank.money() == (900, 70)
    await bank.back(1, 50)
    await bank.back(1, 0)
    assert await bank.money() == (950, 20)
    await bank.capture(2, 15)
    assert await bank.expire(NOW + SETTLE_MS - 1) == {}
    assert await bank.expire(NOW + SETTLE_MS + 1) == {1: 5}
    assert await bank.money() == (955, 0)


async def test_more_than_it_was_cannot_be_used(bank: Bank) -> None:
    """A gateway that says it used more than it had keeps what it had, and no more."""
    await bank.ask(1, 100)
    await bank.back(1, 10**6)
    assert await bank.money() == (900, 100)


async def test_what_nobody_gives_back_expires(bank: Bank) -> None:
    """A request may begin in an allotment's last moment, and run for its whole deadline."""
    await bank.ask(1, 100)
    await bank.ask(2, 100)
    await bank.capture(1, 10)
    assert await bank.expire(NOW + LIFETIME_MS + GRACE_MS) == {}
    assert await bank.expire(NOW + LIFETIME_MS + GRACE_MS + 1) == {1: 190}
    assert await bank.money() == (990, 0)
    await bank.back(1, 100)
    assert await bank.money() == (990, 0)


async def test_a_budget_counts_what_is_spent_and_what_is_open(bank: Bank) -> None:
    """The one key's budget is the one key's; none is as much as the owner has."""
    key = next(row for row in await bank.keys.rows() if row.customer == 1)
    await bank.customers.set_budget(key.key_id, 100)
    assert (await bank.ask(1, 500, 60)).amount_nano_usd == 60
    refused = await bank.ask(2, 500, 60)
    assert (refused.shortage, refused.available_nano_usd) == (Shortage.BUDGET, 40)
    assert (await bank.ask(3, 60, 60, key=2)).amount_nano_usd == 60
    await bank.customers.set_budget(key.key_id, None)
    assert (await bank.ask(4, 60, 60)).amount_nano_usd == 60


async def test_what_is_set_aside_elsewhere_is_called_back(bank: Bank) -> None:
    """A shortage that others' idle allotments explain is told apart from an empty balance."""
    await bank.ask(1, 900, 900, gateway=OTHER)
    assert (await bank.ask(2, 500, 500)).shortage is Shortage.ELSEWHERE
    await bank.back(1, 900, gateway=OTHER)
    assert (await bank.ask(3, 500, 500)).shortage is Shortage.BALANCE


async def test_a_revoked_key_gets_nothing_and_can_give_back(bank: Bank) -> None:
    """What was set aside for it is not lost with it."""
    await bank.ask(1, 100)
    key = next(row for row in await bank.keys.rows() if row.customer == 1)
    await bank.keys.revoke(key.key_id)
    assert (await bank.ask(2, 100)).shortage is Shortage.NO_KEY
    assert (await bank.ask(3, 100, key=77)).shortage is Shortage.NO_KEY
    await bank.back(1, 0)
    assert await bank.money() == (1000, 0)
