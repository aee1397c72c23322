"""What a node is told of its money: where it is, why, and until when; and where it is paid."""

from __future__ import annotations

import anyio
import msgspec
import pytest

from starai.core.clock import AnyioClock
from starai.core.errors import InvalidRequest
from starai.core.randomness import SeededRandomness
from starai.protocol.api_keys import hash_api_key
from starai.protocol.frames import decode, encode
from starai.protocol.identity import raw_public
from starai.protocol.payouts import parse_address, sign_payout
from starai.protocol.registry import Query, Report
from starai.protocol.subjects import Role, registry as asks
from starai.registry.money.books import Invoice, Owed, capture
from starai.testing.parties import Parties
from starai.testing.registries import running_registry
from starai.wire.memory import MemoryNetwork

pytestmark = pytest.mark.anyio

ADDRESS = "0x52908400098527886E0F7030069857D2E4169EE7"
#: Beats make a virtual day long: a minute does.
MATURITY_MS = 60_000


@pytest.fixture
def anyio_backend(virtual_time):
    return virtual_time


class House:
    """A registry, its operator, and two nodes."""

    def __init__(self, registry, operator, nodes) -> None:
        self.registry, self.operator, self.nodes = registry, operator, nodes

    async def ask(self, what, by=None, **arguments):
        member = by or self.operator
        query = Query(what, msgspec.json.encode(arguments))
        frame = await member.wire.request(
            asks("query", member.identity.party), encode(query), timeout_s=5
        )
        report = decode(frame, Report)
        return report.code or msgspec.json.decode(report.body)

    async def add(self, number, charge, *, state=3, node=0, paid=True):
        """A record in the database as `registry.tasks` writes it, and its payment."""
        raw, task_id = raw_public(self.nodes[node].identity.party), bytes([number]) * 16
        row = (number, task_id, bytes([number]) * 32, state, raw, charge)

        def write(connection) -> None:
            connection.execute(
                "INSERT INTO task (seq, task_id, attempt, leaf, sides, state, block, node, dist,"
                " cust, model, in_tok, out_tok, price_id, charge, closed_ms, rec)"
                " VALUES (?, ?, 0, ?, 3, ?, 0, ?, x'00', 1, x'00', 1, 9, 1, ?, 0, x'00')",
                row,
            )
            if paid:
                owed = Owed(number, bytes([number]) * 32, 1, 1, 1, 9, charge)
                capture(connection, [Invoice(raw, [owed], self.registry._clock.now_ms(), 0)])

        await self.registry._store.write(write)
        return task_id.hex()


@pytest.fixture
async def house(tmp_path):
    async with MemoryNetwork() as network:
        parties = Parties(network, clock=AnyioClock())
        operator = parties.join(Role.OPERATOR)
        nodes = [parties.join(Role.NODE) for _ in range(2)]
        known = {operator.identity.party: Role.OPERATOR}
        known |= {one.identity.party: Role.NODE for one in nodes}
        async with running_registry(parties, known, tmp_path, maturity_ms=MATURITY_MS) as registry:
            await registry.customers.create("acme")
            await registry.keys.create("k", key_hash=hash_api_key("k"), owner="acme")
            await registry.customers.deposit("acme", 10**6, bytes(16))
            await registry.prices.add("*", 10, 10)
            yield House(registry, operator, nodes)


async def _of(house, **asked):
    (one,) = (await house.ask("earnings", **asked))["nodes"]
    return one


async def test_pending_until_its_block_is_old_enough(house: House) -> None:
    """Nine tenths are the node's; the time at which they move on is that of the block."""
    task_id = await house.add(1, 100)
    one = await _of(house)
    assert (one["pending_nano_usd"], one["payable_nano_usd"]) == ("90", "0")
    assert one["next_payable_ms"] is None
    (record,) = (await house.ask("why", task_id=task_id))["records"]
    assert (record["stage"], record["moves_on_ms"]) == ("pending", None)
    await anyio.sleep(1)
    block = await house.registry.blocks.close_now()
    due_ms = block.closed_ms + MATURITY_MS
    assert (await _of(house))["next_payable_ms"] == due_ms
    (record,) = (await house.ask("why", task_id=task_id))["records"]
    assert (record["stage"], record["moves_on_ms"]) == ("pending", due_ms)
    assert (record["charge_nano_usd"], record["node_share_nano_usd"]) == ("100", "90")
    await anyio.sleep(MATURITY_MS / 1000)
    (record,) = (await house.ask("why", task_id=task_id))["records"]
    assert record["stage"] == "payable"


@pytest.mark.parametrize(
    ("state", "charge", "stage"),
    [(1, 50, "waiting"), (2, 50, "waiting"), (3, 50, "unpaid"), (4, 50, "refused"), (3, 0, "free")],
)
async def test_every_unpaid_record_has_its_reason(house: House, state, charge, stage) -> None:
    """Whatever is not paid says why."""
    task_id = await house.add(1, charge, state=state, paid=False)
    (record,) = (await house.ask("why", task_id=task_id))["records"]
    assert (record["stage"], bool(record["reason"])) == (stage, True)


async def test_what_waits_is_shown_beside_what_is_earned(house: House) -> None:
    """The sum of what one side alone has confirmed, and nothing of other nodes."""
    await house.add(1, 100)
    await house.add(2, 40, state=1, paid=False)
    await house.add(3, 70, state=1, node=1, paid=False)
    one = await _of(house, node=house.nodes[0].identity.party)
    assert (one["waiting_records"], one["waiting_nano_usd"]) == (1, "40")


async def test_one_nodes_huge_claims_break_nobodys_report(house: House) -> None:
    """What a node alone says is summed, however much it says."""
    await house.add(1, 100, node=1)
    for number in (2, 3, 4):
        await house.add(number, (1 << 63) - 1, state=1, paid=False)
    await house.add(5, 0, state=1, paid=False)
    one = await _of(house, node=house.nodes[0].identity.party)
    assert (one["waiting_records"], one["waiting_nano_usd"]) == (3, str(3 * ((1 << 63) - 1)))
    assert (await _of(house))["pending_nano_usd"] == "90"


async def test_a_node_sees_its_own(house: House) -> None:
    """Neither another's earnings nor another's task, nor what is the operator's."""
    one, other = house.nodes
    task_id = await house.add(1, 100)
    assert (await _of(house, by=one))["pending_nano_usd"] == "90"
    assert (await _of(house, by=other))["pending_nano_usd"] == "0"
    assert await house.ask("earnings", by=other, node=one.identity.party) == "party_refused"
    assert await house.ask("why", by=other, task_id=task_id) == "not_found"
    for what in ("balances", "prices", "create_customer", "deposit"):
        assert await house.ask(what, by=one) == "party_refused"


async def test_an_address_is_bound_by_the_nodes_own_key(house: House) -> None:
    """The newest one counts; nobody else can bind one, for nobody else can sign it."""
    one, other = house.nodes
    address, now_ms = parse_address(ADDRESS), one.clock.now_ms()

    async def bind(by, signer, bound_ms, text=ADDRESS):
        signature = sign_payout("test", signer.identity, parse_address(text), bound_ms)
        return await house.ask(
            "payout", by=by, address=text, bound_ms=bound_ms, signature=signature.hex()
        )

    assert (await bind(one, one, now_ms))["address"] == ADDRESS.lower()
    assert (await bind(one, one, now_ms))["address"] == f"0x{address.hex()}"
    assert await bind(one, other, now_ms + 1) == "seal_broken"
    assert await bind(one, one, now_ms - 1) == "idempotency_conflict"
    assert await bind(one, one, now_ms + 10**9) == "invalid_request"
    second = "0x" + "11" * 20
    await bind(one, one, now_ms + 1, second)
    assert (await _of(house, by=one))["payout_address"] == second
    assert await bind(house.operator, one, now_ms + 2) == "party_refused"


@pytest.mark.parametrize("text", ["", "0x12", "0x" + "0" * 40, ADDRESS[2:], ADDRESS + "0"])
def test_what_is_no_address(text) -> None:
    """Neither half an address, nor the one from which nothing comes back."""
    with pytest.raises(InvalidRequest):
        parse_address(text)


async def test_orders_by_queries(house: House) -> None:
    """What the command line sends: each is answered, in strings where amounts are large."""
    assert await house.ask("create_customer", name="beta") == {"customer": 2}
    event = SeededRandomness(1).take(16).hex()
    paid = await house.ask("deposit", customer="beta", amount_nano_usd=10**16, event_id=event)
    assert paid["available_nano_usd"] == str(10**16)
    lent = await house.ask("set_credit", customer="2", amount_nano_usd=5)
    assert lent["credit_nano_usd"] == "5"
    await house.ask("create_key", name="b", key_hash="bb" * 32, customer="beta", budget_nano_usd=7)
    keys = (await house.ask("keys"))["keys"]
    assert [(one["owner"], one["budget_nano_usd"]) for one in keys] == [(2, "7"), (1, None)]
    assert await house.ask("set_budget", key_id=keys[0]["key_id"], amount_nano_usd=None)
    await house.ask("add_price", model="m", input_nano_usd=1, output_nano_usd=2)
    listed = await house.ask("prices")
    assert [one["model"] for one in listed["prices"]] == ["m", "*"]
    balances = (await house.ask("balances"))["customers"]
    assert [(one["name"], one["keys"]) for one in balances] == [("acme", 1), ("beta", 1)]
    assert await house.ask("create_customer", name="gamma", address=ADDRESS) == {"customer": 3}
    refused = await house.ask("create_customer", name="delta", address="0x12")
    assert refused == InvalidRequest.code
