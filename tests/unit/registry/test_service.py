"""The registry on the wire: every verb, every refusal, under virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from starai.core.clock import AnyioClock
from starai.core.errors import ConfigurationRefused, StoreFailed, Unavailable
from starai.core.randomness import SeededRandomness
from starai.protocol.credentials import read_credential
from starai.protocol.frames import Message, decode, encode, peek
from starai.protocol.identity import Identity, KeyKind
from starai.protocol.ports import Delivery
from starai.protocol.presence import Beat
from starai.protocol.registry import (
    Acknowledged,
    Admitted,
    Confirm,
    Join,
    KeyTable,
    KeyTableRequest,
    Query,
    Renew,
    Report,
    Side,
)
from starai.protocol.subjects import KEYS_CHANGED, Role, beat, inbox, registry
from starai.protocol.tickets import JoinTicket, TokenGrant
from starai.registry.service import (
    CONFIRM_WORKERS,
    MAILBOX_MAX,
    Registry,
    RegistryConfig,
    run_registry,
)
from starai.registry.storage import Store, open_store
from starai.testing.records import BLOCK_MS, DISTRIBUTOR, NETWORK, NODES, STRANGER, confirm, record
from starai.wire.memory import MemoryNetwork, MemoryWire

pytestmark = pytest.mark.anyio

_CHANCE = SeededRandomness(9)
ACCOUNT = Identity.create(_CHANCE, KeyKind.ACCOUNT)
SELF, OPERATOR, GATEWAY = (Identity.create(_CHANCE) for _ in range(3))
ROLES = {
    OPERATOR.party: Role.OPERATOR,
    GATEWAY.party: Role.GATEWAY,
    DISTRIBUTOR.party: Role.DISTRIBUTOR,
    **{node.party: Role.NODE for node in NODES},
}
CONFIG = RegistryConfig(NETWORK, BLOCK_MS, ("nats://127.0.0.1:4222",), ROLES)


@pytest.fixture
def anyio_backend(virtual_time):
    return virtual_time


class House:
    """A running registry and wires to it."""

    def __init__(self, network: MemoryNetwork, store: Store, registry_: Registry) -> None:
        self.network = network
        self.store = store
        self.registry = registry_

    def wire(self, identity: Identity, role: Role | None = None) -> MemoryWire:
        return self.network.connect(identity.party, role or ROLES.get(identity.party, Role.NODE))

    async def ask(self, verb: str, identity: Identity, message: Message, role=None) -> bytes:
        wire = self.wire(identity, role)
        try:
            subject = registry(verb, identity.party)
            return await wire.request(subject, encode(message), timeout_s=5)
        finally:
            wire.close()

    async def confirm(self, identity: Identity, said: Confirm) -> Acknowledged:
        return decode(await self.ask("confirm", identity, said), Acknowledged)

    async def query(self, what: str, by: Identity = OPERATOR, **arguments: object) -> Any:
        query = Query(what, msgspec.json.encode(arguments))
        report = decode(await self.ask("query", by, query), Report)
        return msgspec.json.decode(report.body) if not report.code else report


@pytest.fixture
async def house(database: Path | str):
    clock, cut_off = AnyioClock(), []

    async def cut(party) -> None:
        cut_off.append(party)

    async with (
        open_store(database, inline=True) as store,
        MemoryNetwork() as network,
        anyio.create_task_group() as tasks,
    ):
        wire = network.connect(SELF.party, Role.REGISTRY)

        async def run(*, task_status) -> None:
            await run_registry(
                CONFIG, wire, store, ACCOUNT, clock, _CHANCE, on_revoke=cut, task_status=task_status
            )

        house = House(network, store, await tasks.start(run))
        house.cut_off = cut_off
        yield house
        tasks.cancel_scope.cancel()


async def test_both_sides_confirm_and_the_books_show_it(house: House) -> None:
    """A task confirmed by both sides is matched in every report; one that waits is seen waiting."""
    assert await house.confirm(NODES[0], confirm(Side.NODE, [record(1), record(2)], NODES[0]))
    said = confirm(Side.DISTRIBUTOR, [record(1)], DISTRIBUTOR)
    assert (await house.confirm(DISTRIBUTOR, said)) == Acknowledged(ok=True)
    listed = (await house.query("tasks"))["tasks"]
    assert [(one["state"], one["answer_tokens"]) for one in listed] == [
        ("node_only", 22),
        ("matched", 21),
    ]
    assert [one["seq"] for one in (await house.query("tasks", state="matched"))["tasks"]] == [1]
    assert (await house.query("tasks", node=NODES[1].party))["tasks"] == []
    assert [one["seq"] for one in (await house.query("tasks", before=2))["tasks"]] == [1]
    (one,) = (await house.query("task", task_id=record(1).task_id.hex()))["records"]
    assert [word["side"] for word in one["confirmed"]] == ["node", "distributor"]
    ledger = await house.query("ledger", by=GATEWAY)
    expected = {"matched": 1, "waiting": 1, "conflicting": 0, "in_tokens": 10, "out_tokens": 21}
    assert ledger["totals"] == {"records": 2, **expected}
    assert ledger["network"] == NETWORK
    assert [block["matched"] for block in ledger["blocks"]] == [1]
    assert [node["node"] for node in ledger["nodes"]] == [NODES[0].party]
    assert await house.query("check") == {"confirms": 2, "records": 2, "blocks": 0, "problems": []}


async def test_an_empty_book_is_a_book(house: House) -> None:
    """Before the first task all reports are there, and empty."""
    assert (await house.query("tasks"))["tasks"] == []
    assert (await house.query("ledger"))["totals"]["records"] == 0
    assert (await house.query("task", task_id="00" * 16)).code == "not_found"


async def test_refusals_tell_why(house: House) -> None:
    """A confirmation that does not hold is answered with its code; the registry goes on."""
    broken = msgspec.structs.replace(confirm(Side.NODE, [record(1)], NODES[0]), signature=b"x" * 64)
    assert (await house.confirm(NODES[0], broken)).code == "seal_broken"
    foreign = confirm(Side.NODE, [record(1)], NODES[0], network="other")
    assert (await house.confirm(NODES[0], foreign)).code == "configuration_refused"
    own = confirm(Side.NODE, [record(1, node=STRANGER)], STRANGER)
    assert (await house.confirm(STRANGER, own)).code == "party_refused"
    wire = house.wire(NODES[0])
    answer = await wire.request(registry("confirm", NODES[0].party), b"noise", timeout_s=5)
    assert decode(answer, Acknowledged).code == "malformed_frame"
    assert (await house.confirm(NODES[0], confirm(Side.NODE, [record(1)], NODES[0]))).ok


async def test_no_answer_goes_to_another_inbox(house: House) -> None:
    """A request that names somebody else's inbox for its answer is not answered at all."""
    heard: list[Delivery] = []
    victim, sender = house.wire(GATEWAY), house.wire(NODES[0])
    async with victim.subscribe(f"{inbox(GATEWAY.party)}.>", heard.append):
        frame = encode(confirm(Side.NODE, [record(1)], NODES[0]))
        subject = registry("confirm", NODES[0].party)
        for reply in (f"{inbox(GATEWAY.party)}.r.1", KEYS_CHANGED):
            await sender.publish(subject, frame, reply)
        await anyio.sleep(1)
    assert heard == []
    assert (await house.query("tasks"))["tasks"] == []


async def test_a_newcomer_joins_works_renews_and_is_put_out(house: House) -> None:
    """The whole life of a party, from the operator's token to its revocation."""
    newcomer, joiner = Identity.create(_CHANCE), Identity.create(_CHANCE)
    made = await house.query("create_token", uses=1, label="attic", joiner=joiner.party)
    assert sorted(made) == ["account", "ca", "credential", "network", "token_id", "urls"]
    ticket = JoinTicket.of(msgspec.convert(made, TokenGrant), joiner)
    assert ticket.urls == CONFIG.urls
    assert ticket.ca == CONFIG.ca
    join = Join.signed(ticket.token_id, newcomer, joiner, "attic")
    for _ in range(2):  # the second time as if the answer had been lost
        frame = await house.ask("join", joiner, join, Role.JOINER)
        admitted = decode(frame, Admitted)
    assert read_credential(admitted.credential, ACCOUNT.nkey, 0).role is Role.NODE
    second = Join.signed(ticket.token_id, Identity.create(_CHANCE), joiner)
    frame = await house.ask("join", joiner, second, Role.JOINER)
    assert peek(frame) is Acknowledged
    assert "used up" in decode(frame, Acknowledged).message
    said = confirm(Side.NODE, [record(5, node=newcomer)], newcomer)
    assert (await house.confirm(newcomer, said)).ok
    assert decode(await house.ask("renew", newcomer, Renew(newcomer.party)), Admitted)
    listed = (await house.query("parties"))["parties"]
    assert [one["label"] for one in listed if one["party"] == newcomer.party] == ["attic"]
    assert [token["used"] for token in (await house.query("tokens"))["tokens"]] == [1]
    await house.query("revoke_party", party=newcomer.party)
    assert house.cut_off == [newcomer.party]
    frame = await house.ask("renew", newcomer, Renew(newcomer.party))
    assert decode(frame, Acknowledged).code == "party_refused"
    assert (await house.confirm(newcomer, said)).code == "party_refused"


async def test_gateways_learn_of_keys(house: House) -> None:
    """A gateway gets the whole table when it asks and every change as it happens."""
    heard: list[KeyTable] = []
    wire = house.wire(GATEWAY)
    async with wire.subscribe(KEYS_CHANGED, lambda d: heard.append(decode(d.payload, KeyTable))):
        made = await house.query("create_key", name="alice", key_hash="5a" * 32)
        assert sorted(made) == ["customer", "key_id", "owner"]
        frame = await house.ask("keys", GATEWAY, KeyTableRequest(GATEWAY.party))
        table = decode(frame, KeyTable)
        assert [(one.key_id, one.key_hash) for one in table.entries] == [
            (made["key_id"], b"\x5a" * 32)
        ]
        await house.query("revoke_key", key_id=made["key_id"])
        await anyio.sleep(0.1)
    assert [(one.version, one.entries[0].revoked) for one in heard] == [(1, False), (2, True)]
    assert "hash" not in str(await house.query("keys"))
    refused = await house.ask("keys", NODES[0], KeyTableRequest(NODES[0].party), Role.GATEWAY)
    assert decode(refused, Acknowledged).code == "party_refused"


async def test_who_may_ask_what(house: House) -> None:
    """Orders and lists are the operator's; a gateway reads the books; others nothing."""
    for what in ("parties", "keys", "tokens", "check", "create_key", "create_token"):
        assert (await house.query(what, by=GATEWAY)).code == "party_refused"
    for what in ("revoke_key", "revoke_token", "revoke_party"):
        assert (await house.query(what, by=GATEWAY)).code == "party_refused"
    assert "tasks" in await house.query("tasks", by=GATEWAY)
    query = encode(Query("tasks"))
    wire = house.network.connect(STRANGER.party, Role.GATEWAY)
    answer = await wire.request(registry("query", STRANGER.party), query, timeout_s=5)
    assert decode(answer, Report).code == "party_refused"


@pytest.mark.parametrize(
    ("what", "arguments", "code"),
    [
        ("nothing", {}, "not_found"),
        ("tasks", {"limit": 0}, "invalid_request"),
        ("tasks", {"limit": 501}, "invalid_request"),
        ("tasks", {"limit": "5"}, "invalid_request"),
        ("tasks", {"state": "odd"}, "invalid_request"),
        ("tasks", {"node": "odd"}, "malformed_frame"),
        ("tasks", {"colour": 1}, "invalid_request"),
        ("task", {}, "invalid_request"),
        ("task", {"task_id": "xyz"}, "invalid_request"),
        ("ledger", {"limit": -1}, "invalid_request"),
        ("checkpoint", {}, "not_found"),
        ("checkpoint", {"size": 3}, "not_found"),
        ("checkpoint", {"size": -1}, "invalid_request"),
        ("proof", {"task_id": "xyz"}, "invalid_request"),
        ("proof", {"task_id": "00"}, "not_found"),
        ("consistency", {"old": 2, "size": 1}, "invalid_request"),
        ("consistency", {"old": 0, "size": -1}, "invalid_request"),
        ("consistency", {"old": 0, "size": 1}, "not_found"),
        ("create_key", {"name": "x"}, "invalid_request"),
        ("create_key", {"name": "x", "key_hash": "xyz"}, "invalid_request"),
        ("create_key", {"name": "x", "key_hash": "5a"}, "invalid_request"),
        (
            "create_key",
            {"name": "x", "key_hash": "5a" * 32, "tokens_per_minute": -1},
            "invalid_request",
        ),
        ("create_token", {}, "invalid_request"),
        ("create_token", {"joiner": "nobody"}, "invalid_request"),
        ("create_token", {"joiner": SELF.party, "role": "operator"}, "invalid_request"),
        ("create_token", {"joiner": SELF.party, "role": "king"}, "invalid_request"),
        ("revoke_token", {"token_id": "zz"}, "invalid_request"),
        ("revoke_token", {"token_id": "00"}, "not_found"),
        ("revoke_key", {"key_id": "key_0"}, "not_found"),
        ("revoke_party", {"party": "nobody"}, "not_found"),
        ("revoke_party", {"party": OPERATOR.party}, "invalid_request"),
    ],
)
async def test_wrong_questions_are_refused(house: House, what, arguments, code) -> None:
    """Every wrong argument is refused with a code and a message that says what is wrong."""
    report = await house.query(what, **arguments)
    assert report.code == code
    assert report.message


async def test_a_full_mailbox_says_so(house: House) -> None:
    """More requests at once than may wait are refused at once, not kept or dropped in silence."""
    codes: list[str] = []
    wire, prefix = house.wire(NODES[0]), inbox(NODES[0].party)
    said = encode(confirm(Side.NODE, [record(1)], NODES[0]))
    subject, num = registry("confirm", NODES[0].party), MAILBOX_MAX + CONFIRM_WORKERS + 100

    def hear(delivery: Delivery) -> None:
        codes.append(decode(delivery.payload, Acknowledged).code)

    put_all = house.registry._hearing(house.registry._verbs()["confirm"], _full_after(num - 100))
    async with wire.subscribe(f"{prefix}.>", hear):
        for number in range(num):  # as a burst between two turns of the event loop
            put_all(Delivery(subject, said, f"{prefix}.r.{number}"))
        await anyio.sleep(0.1)
    assert codes == ["overloaded"] * 100


def _full_after(room: int):
    taken: list[Delivery] = []

    def put(delivery: Delivery) -> None:
        if len(taken) >= room:
            raise anyio.WouldBlock
        taken.append(delivery)

    return put


async def test_the_registry_beats(house: House) -> None:
    """An operator sees that the registry is there."""
    heard: list[Beat] = []
    wire = house.wire(OPERATOR)
    subject = beat(Role.REGISTRY, SELF.party)
    async with wire.subscribe(subject, lambda d: heard.append(decode(d.payload, Beat))):
        await anyio.sleep(2)
    assert len(heard) >= 3
    assert heard[-1].role == "registry"


async def test_a_failed_disk_ends_the_registry(tmp_path: Path) -> None:
    """When the disk fails, the asker is told, nothing is acknowledged, and the service ends."""
    answers: list[Acknowledged] = []

    async def ask(network: MemoryNetwork) -> None:
        wire = network.connect(NODES[0].party, Role.NODE)
        for number in range(5000):
            said = confirm(Side.NODE, [record(number)], NODES[0])
            subject = registry("confirm", NODES[0].party)
            frame = await wire.request(subject, encode(said), timeout_s=5)
            answers.append(decode(frame, Acknowledged))
            if not answers[-1].ok:
                return

    async def live() -> None:
        async with (
            open_store(tmp_path / "registry.db", inline=True) as store,
            MemoryNetwork() as network,
            anyio.create_task_group() as tasks,
        ):

            async def run(*, task_status) -> None:
                wire = network.connect(SELF.party, Role.REGISTRY)
                await run_registry(
                    CONFIG, wire, store, ACCOUNT, AnyioClock(), _CHANCE, task_status=task_status
                )

            await tasks.start(run)
            await store.write(lambda c: c.pragma("max_page_count", c.pragma("page_count") + 4))
            await ask(network)
            await anyio.sleep(1)

    with pytest.raises(ExceptionGroup) as raised:
        await live()
    assert raised.group_contains(StoreFailed)
    assert answers[0].ok
    assert answers[-1].code == "store_failed"


async def test_a_store_belongs_to_one_network(database: Path | str) -> None:
    """A registry of another name or other blocks refuses the file instead of mixing books."""
    async with open_store(database, inline=True) as store, MemoryNetwork() as net:
        wire = net.connect(SELF.party)
        for config, fits in (
            (CONFIG, True),
            (CONFIG, True),
            (RegistryConfig("other", BLOCK_MS), False),
            (RegistryConfig(NETWORK, BLOCK_MS + 1), False),
        ):
            made = Registry(config, wire, store, ACCOUNT, AnyioClock(), _CHANCE)
            if fits:
                await made.open()
            else:
                with pytest.raises(ConfigurationRefused, match="belongs to network"):
                    await made.open()


async def test_nobody_listens_before_and_after(tmp_path: Path) -> None:
    """Without a registry, askers learn at once that nobody is there."""
    async with MemoryNetwork() as network:
        wire = network.connect(OPERATOR.party, Role.OPERATOR)
        with pytest.raises(Unavailable):
            await wire.request(registry("query", OPERATOR.party), b"", timeout_s=5)


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        ("balances", {"customer": "²"}),
        ("balances", {"customer": "\0"}),
        ("deposit", {"customer": "٣", "amount_nano_usd": 1, "event_id": "00" * 16}),
        ("deposit", {"customer": "²", "amount_nano_usd": 2**64, "event_id": "²"}),
        ("set_credit", {"customer": "²", "amount_nano_usd": 1}),
        ("create_key", {"name": "k", "key_hash": "²", "customer": "²"}),
        ("tasks", {"state": "²", "before": 2**70}),
        ("consistency", {"old": 2**70, "size": 2**71}),
        ("checkpoint", {"size": 2**70}),
        ("earnings", {"node": "²"}),
        ("why", {"task_id": "²"}),
    ],
)
async def test_an_odd_question_is_refused_in_words(house: House, what, arguments) -> None:
    """Signs that only look like digits, and numbers beyond every column, end no registry."""
    assert (await house.query(what, **arguments)).code
    assert (await house.query("check"))["problems"] == []
