"""Funding against a real registry: several gateways, no money, lost answers; virtual time."""

from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from starai.core.errors import PartyRefused, Unavailable
from starai.core.randomness import SeededRandomness
from starai.gateway.errors import FundsMissing
from starai.gateway.following import follow_keys, follow_prices
from starai.gateway.paying.funding import QUIET_S, Funding
from starai.gateway.paying.keys import KeyRing
from starai.gateway.paying.pricing import PriceBook
from starai.ledger.accounts import available, held
from starai.protocol.api_keys import hash_api_key
from starai.protocol.frames import decode, encode
from starai.protocol.registry import AllotmentRequest, Prices, PricesRequest
from starai.protocol.subjects import Role, registry as asks
from starai.registry.money.allotments import GRACE_MS, LIFETIME_MS, SETTLE_MS
from starai.registry.money.books import verify_books
from starai.registry.money.shelf import StoredShelf
from starai.testing.parties import Parties
from starai.testing.registries import running_registry
from starai.wire.memory import Faults, MemoryNetwork

pytestmark = pytest.mark.anyio

BEARER = b"Bearer sk-one"
#: A token of either kind; the opening allotment is 8192 of them.
PRICE = 10
OPENING = 2 * 4096 * PRICE


class Gateway:
    """One gateway's keys, prices and funding."""

    def __init__(self, member):
        self.member = member
        self.keys, self.prices = KeyRing(), PriceBook()
        self.funding = Funding(member, self.keys, self.prices)

    @property
    def account(self):
        return self.keys.authenticate(BEARER)

    async def take(self, amount):
        await self.funding.take(self.account, amount)

    def settle(self, taken, spent):
        self.funding.settle(self.account, taken, spent)

    @asynccontextmanager
    async def running(self):
        async with (
            follow_keys(self.member, self.keys),
            follow_prices(self.member, self.prices),
            self.funding.running(),
        ):
            while not (self.keys.loaded and self.prices.loaded):
                await anyio.sleep(0.01)
            yield self


class House:
    """A registry with one priced model and one customer, and gateways to be run."""

    def __init__(self, network, parties, registry, members):
        self.network = network
        self.parties = parties
        self.registry = registry
        self.members = members
        self.deposits = 0

    async def deposit(self, amount):
        self.deposits += 1
        await self.registry.customers.deposit("acme", amount, bytes([self.deposits]) * 16)

    async def money(self):
        def read(connection):
            assert verify_books(connection).problems == ()
            shelf = StoredShelf(connection)
            return shelf.totals(available(1)).balance, shelf.totals(held(1)).balance

        return await self.registry._store.read(read)

    def gateway(self, number=0):
        return Gateway(self.members[number])


@pytest.fixture
async def house(tmp_path):
    async with MemoryNetwork() as network:
        parties = Parties(network)
        members = [parties.join(Role.GATEWAY) for _ in range(4)]
        known = {one.identity.party: Role.GATEWAY for one in members}
        node = parties.join(Role.NODE)
        known[node.identity.party] = Role.NODE
        async with running_registry(parties, known, tmp_path) as registry:
            await registry.customers.create("acme")
            await registry.keys.create("one", key_hash=hash_api_key("sk-one"), owner="acme")
            await registry.prices.add("*", PRICE, PRICE)
            made = House(network, parties, registry, members)
            made.node = node
            yield made


async def test_a_request_that_finds_its_money_does_not_wait(house):
    """The first allotment is there before the first request; taking from it takes no time."""
    await house.deposit(100 * OPENING)
    async with house.gateway().running() as gateway:
        await anyio.sleep(1)
        assert await house.money() == (99 * OPENING, OPENING)
        with anyio.fail_after(0):
            for _ in range(8):
                await gateway.take(OPENING // 16)
        for _ in range(8):
            gateway.settle(OPENING // 16, 0)
        await anyio.sleep(1)


async def test_more_is_fetched_before_it_runs_out(house):
    """A busy key's allotments grow, and no request after the first ever waits."""
    await house.deposit(10_000 * OPENING)
    async with house.gateway().running() as gateway:
        await anyio.sleep(1)
        for _ in range(200):
            with anyio.fail_after(0):
                await gateway.take(OPENING // 8)
            gateway.settle(OPENING // 8, OPENING // 10)
            await anyio.sleep(0.05)
        there, aside = await house.money()
        assert aside > 4 * OPENING
        assert there + aside == 10_000 * OPENING
    there, aside = await house.money()
    assert aside == 200 * (OPENING // 10)


async def test_a_dry_customer_is_refused_until_somebody_pays_in(house):
    """402 says how much is needed and how much there is; a deposit counts within milliseconds."""
    async with house.gateway().running() as gateway:
        with pytest.raises(FundsMissing) as refused:
            await gateway.take(1000)
        assert (refused.value.needed, refused.value.available) == (1000, 0)
        await house.deposit(1200)
        await anyio.sleep(0.01)
        await gateway.take(1000)
        with pytest.raises(FundsMissing) as refused:
            await gateway.take(300)
        assert refused.value.available == 200
        gateway.settle(1000, 900)
        await gateway.take(300)


async def test_a_budget_is_not_exceeded(house):
    """A key with a budget gets no more than that, whatever its owner has; a larger one counts."""
    await house.deposit(10**9)
    (key,) = await house.registry.keys.rows()
    await house.registry.customers.set_budget(key.key_id, 1000)
    async with house.gateway().running() as gateway:
        await gateway.take(600)
        with pytest.raises(FundsMissing, match="budget") as refused:
            await gateway.take(500)
        assert refused.value.available == 400
        await house.registry.customers.set_budget(key.key_id, None)
        await anyio.sleep(0.01)
        await gateway.take(500)


@pytest.mark.parametrize("faults", [Faults(latency_s=0.002), Faults(latency_s=0.01, loss=0.2)])
async def test_several_gateways_never_spend_more_than_there_is(house, faults):
    """Four gateways drain one balance at once, with messages lost: all of it goes, and no more."""
    balance, chance, spent = 50 * 1000, SeededRandomness(7), [0]
    await house.deposit(balance)
    house.network.faults = faults

    async def drain(gateway):
        for _ in range(60):
            most = 200 + int(800 * chance.fraction())
            used = int(most * chance.fraction())
            try:
                await gateway.take(most)
            except (FundsMissing, Unavailable):
                await anyio.sleep(0.3 * chance.fraction())
                continue
            await anyio.sleep(0.05 * chance.fraction())
            spent[0] += used
            gateway.settle(most, used)

    async with AsyncExitStack() as stack:
        gateways = [
            await stack.enter_async_context(house.gateway(number).running()) for number in range(4)
        ]
        async with anyio.create_task_group() as group:
            for gateway in gateways:
                group.start_soon(drain, gateway)
        house.network.faults = Faults()
        await anyio.sleep(2)
    there, aside = await house.money()
    assert there + aside == balance
    assert spent[0] <= balance
    assert balance - spent[0] < 2000 or faults.loss
    if not faults.loss:
        assert aside == spent[0]


async def test_what_a_dead_gateway_held_comes_back(house):
    """Nothing is heard of it: its allotment is released when it has expired, not before."""
    await house.deposit(OPENING)
    gateway = house.gateway()
    async with anyio.create_task_group() as group:

        async def live():
            async with gateway.running():
                await gateway.take(100)
                await anyio.sleep_forever()

        group.start_soon(live)
        await anyio.sleep(1)
        house.network.revoke(gateway.member.identity.party)
        group.cancel_scope.cancel()
    _, aside = await house.money()
    assert aside > 0
    await anyio.sleep((LIFETIME_MS + GRACE_MS) / 1000 - 60)
    assert (await house.money())[1] == aside
    await anyio.sleep(120)
    assert await house.money() == (OPENING, 0)


async def test_a_gateway_that_stops_gives_everything_back(house):
    """What it used stays held until the records of it come, or are long overdue."""
    await house.deposit(10 * OPENING)
    async with house.gateway().running() as gateway:
        await gateway.take(500)
        gateway.settle(500, 300)
    assert await house.money() == (10 * OPENING - 300, 300)
    await anyio.sleep(2 * SETTLE_MS / 1000)
    assert await house.money() == (10 * OPENING, 0)


async def test_an_idle_key_gives_back_and_a_used_one_is_renewed(house):
    """Nobody's money is tied up by a key that is not in use."""
    await house.deposit(100 * OPENING)
    async with house.gateway().running() as gateway, house.gateway(1).running():
        for _ in range(200):
            await gateway.take(500)
            gateway.settle(500, 0)
            await anyio.sleep(10)
        with anyio.fail_after(0):
            await gateway.take(500)
        there, aside = await house.money()
        assert there + aside == 100 * OPENING
        assert 0 < aside <= 2 * OPENING


async def test_idle_money_elsewhere_is_called_back(house):
    """The last cents are at another gateway, which does not need them: they come where they are."""
    await house.deposit(1000)
    async with house.gateway().running() as one, house.gateway(1).running() as other:
        await one.take(700)
        one.settle(700, 0)
        await other.take(900)
        other.settle(900, 100)
        await anyio.sleep(QUIET_S)
        await one.take(800)


async def test_without_the_registry(house):
    """Whoever has an allotment goes on; whoever has none is told to try again, not to pay."""
    await house.deposit(100 * OPENING)
    async with house.gateway().running() as gateway:
        await anyio.sleep(1)
        with house.network.partition([gateway.member.identity.party], [house.registry._wire.party]):
            await gateway.take(OPENING // 2)
            before_s = gateway.member.clock.monotonic_s()
            with pytest.raises(Unavailable):
                await gateway.take(OPENING)
            assert gateway.member.clock.monotonic_s() - before_s < 3
        await anyio.sleep(0.2)
        await gateway.take(OPENING)


async def test_only_gateways_may_ask(house):
    """A node can neither say such a thing on the wire nor be answered by the registry."""
    node = house.node
    request = AllotmentRequest(node.identity.party, 1, bytes(16), 1, 1)
    with pytest.raises(PartyRefused):
        await node.wire.request(
            asks("allotments", node.identity.party), encode(request), timeout_s=1
        )
    prices = encode(PricesRequest(node.identity.party))
    frame = await node.wire.request(asks("prices", node.identity.party), prices, timeout_s=1)
    assert decode(frame, Prices).entries  # which are for nodes, too
    with pytest.raises(PartyRefused):
        await house.registry.allotments.handle(node.identity.party, request)
