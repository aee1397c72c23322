"""Witnesses and the registry, over a wire: checkpoints are cosigned, and nobody does any harm."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec
import pytest
from tests.unit.registry.log.test_blocks import ACCOUNT, add_tasks

from starai.core.clock import AnyioClock
from starai.core.randomness import SeededRandomness
from starai.exchange.member import Member
from starai.exchange.recording.cosigning import Witness
from starai.ledger.checkpoints import Note, cosign
from starai.ledger.witnessing import Seen
from starai.local.proving import check_checkpoint, check_consistency, check_task
from starai.protocol.frames import Message, decode, encode
from starai.protocol.identity import Identity
from starai.protocol.log import ConsistencyProof, TaskProof, Witnessed, Witnessing, witness_name
from starai.protocol.registry import Acknowledged, Query, Report
from starai.protocol.subjects import Role, registry
from starai.registry.log.blocks import BlockTerms
from starai.registry.log.witnesses import NOT_NEEDED_MS, SILENT_BLOCKS, WITNESSES_A_SIDE
from starai.registry.service import Registry, RegistryConfig
from starai.registry.storage import Store, open_store
from starai.testing.records import BLOCK_MS, NETWORK, NODES, STRANGER, record
from starai.wire.memory import MemoryNetwork

pytestmark = pytest.mark.anyio

_CHANCE = SeededRandomness(21)
SELF, OPERATOR, GATEWAY, DISTRIBUTOR = (Identity.create(_CHANCE) for _ in range(4))
CROWD = tuple(Identity.create(_CHANCE) for _ in range(5))
ROLES = {
    OPERATOR.party: Role.OPERATOR,
    GATEWAY.party: Role.GATEWAY,
    DISTRIBUTOR.party: Role.DISTRIBUTOR,
    **{node.party: Role.NODE for node in (*NODES, *CROWD)},
}
EVERY_S = 10.0


@pytest.fixture
def anyio_backend(virtual_time):
    return virtual_time


class MemoryOf:
    """What a witness keeps, in memory; counts how often."""

    def __init__(self) -> None:
        self.seen = Seen()
        self.times = 0

    async def load(self) -> Seen:
        return self.seen

    async def keep(self, seen: Seen) -> None:
        self.seen, self.times = seen, self.times + 1


class House:
    """A running registry, wires to it, and witnesses."""

    def __init__(self, network: MemoryNetwork, store: Store, registry_: Registry) -> None:
        self.network = network
        self.store = store
        self.registry = registry_
        self.clock = AnyioClock()

    def witness(self, identity: Identity, memory: MemoryOf) -> Witness:
        role = ROLES[identity.party]
        member = Member(
            wire=self.network.connect(identity.party, role),
            identity=identity,
            credential=lambda: "",
            account=ACCOUNT.nkey,
            network=NETWORK,
            block_ms=BLOCK_MS,
            clock=self.clock,
            randomness=_CHANCE,
        )
        return Witness(member, role, memory)

    async def say(self, identity: Identity, said: Witnessing, role: Role | None = None) -> Message:
        wire = self.network.connect(identity.party, role or ROLES[identity.party])
        try:
            subject = registry("witness", identity.party)
            frame = await wire.request(subject, encode(said), timeout_s=5)
        finally:
            wire.close()
        kind = Witnessed if frame[3] == encode(Witnessed(0, 0))[3] else Acknowledged
        return decode(frame, kind)

    async def ask(self, what: str, by: Identity = OPERATOR, **arguments: object) -> object:
        wire = self.network.connect(by.party, ROLES[by.party])
        query = Query(what, msgspec.json.encode(arguments))
        frame = await wire.request(registry("query", by.party), encode(query), timeout_s=5)
        wire.close()
        report = decode(frame, Report)
        return report if report.code else msgspec.json.decode(report.body)

    async def add(self, *numbers: int) -> None:
        await self.store.write(lambda connection: add_tasks(connection, *numbers))


@pytest.fixture
async def house(database: Path | str):
    terms = BlockTerms(every_s=EVERY_S, num_tasks=1000)
    config = RegistryConfig(NETWORK, BLOCK_MS, parties=ROLES, blocks=terms)
    async with (
        open_store(database, inline=True) as store,
        MemoryNetwork() as network,
        anyio.create_task_group() as tasks,
    ):
        wire = network.connect(SELF.party, Role.REGISTRY)
        made = Registry(config, wire, store, ACCOUNT, AnyioClock(), _CHANCE)
        await tasks.start(made.run)
        yield House(network, store, made)
        tasks.cancel_scope.cancel()


async def test_a_node_and_a_gateway_cosign(house: House) -> None:
    """Both sides' witnesses sign each checkpoint in time, and what they signed is proven to all."""
    node, gateway = MemoryOf(), MemoryOf()
    async with anyio.create_task_group() as tasks:
        for identity, memory in ((NODES[0], node), (GATEWAY, gateway)):
            tasks.start_soon(house.witness(identity, memory).run)
        for number in range(1, 5):
            await house.add(*range(100 * number, 100 * number + number))
            await anyio.sleep(2.5 * EVERY_S)
        tasks.cancel_scope.cancel()
    assert (node.seen.size, node.times) == (gateway.seen.size, gateway.times) == (10, 4)
    report = await house.ask("checkpoint")
    checked = check_checkpoint(report["note"], NETWORK, ACCOUNT.nkey)
    assert checked.size == 10
    assert {(one.role, one.party) for one in checked.cosignatures} == {
        (Role.NODE, NODES[0].party),
        (Role.GATEWAY, GATEWAY.party),
    }
    task_id = record(301).task_id.hex()
    proof = msgspec.convert(await house.ask("proof", task_id=task_id), TaskProof)
    assert check_task(proof, task_id, NETWORK, ACCOUNT.nkey) == checked
    answer = await house.ask("consistency", old=3, size=10)
    old, new = check_consistency(msgspec.convert(answer, ConsistencyProof), NETWORK, ACCOUNT.nkey)
    assert (old.size, len(old.cosignatures), new) == (3, 2, checked)
    assert (await house.ask("check"))["blocks"] == 4


async def test_an_absent_witness_catches_up(house: House) -> None:
    """A witness that was away for many blocks goes on from what it had seen, by one proof."""
    memory = MemoryOf()
    for start in (1, 50, 300):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.witness(NODES[0], memory).run)
            await house.add(*range(start, start + 40))
            await anyio.sleep(3 * EVERY_S)
            tasks.cancel_scope.cancel()
        for number in range(start + 40, start + 43):
            await house.add(1000 + number)
            await anyio.sleep(1.1 * EVERY_S)
    assert (memory.seen.size, memory.times) == (126, 3 + 2)


async def test_few_are_asked_and_gaps_are_filled(house: House) -> None:
    """Of many nodes a few sign each checkpoint; when they fall silent, others take their place."""
    await house.add(1)
    await house.registry.blocks.close_now()
    answers = [await house.say(node, Witnessing(0)) for node in CROWD]
    assert [bool(one.note) for one in answers] == [True] * WITNESSES_A_SIDE + [False] * 2
    assert answers[-1].again_ms == NOT_NEEDED_MS
    assert (await house.say(GATEWAY, Witnessing(0))).note
    await anyio.sleep((SILENT_BLOCKS + 1) * EVERY_S)
    answers = [await house.say(node, Witnessing(0)) for node in reversed(CROWD)]
    assert [bool(one.note) for one in answers] == [True] * WITNESSES_A_SIDE + [False] * 2


async def test_only_nodes_and_gateways_witness(house: House) -> None:
    """Strangers are refused by the registry; other roles cannot even ask."""
    refused = await house.say(STRANGER, Witnessing(0), Role.NODE)
    assert refused.code == "party_refused"
    refused = await house.say(DISTRIBUTOR, Witnessing(0), Role.NODE)
    assert refused.code == "party_refused"


async def test_wrong_signatures_are_not_kept(house: House) -> None:
    """Another's line, one under another text, a future one, one without its checkpoint: refused."""
    await house.add(1, 2)
    await house.registry.blocks.close_now()
    note = (await house.say(NODES[0], Witnessing(0))).note
    text, now_s = Note.parse(note).text, house.clock.now_ms() // 1000
    mine, other = NODES[0], NODES[1]
    name = witness_name(NETWORK, Role.NODE, mine.party)
    right = cosign(text, name, mine.raw, now_s, mine.sign)
    gateway_name = witness_name(NETWORK, Role.GATEWAY, mine.party)
    for said, code in (
        (Witnessing(2, note, "rubbish"), "malformed_frame"),
        (Witnessing(2, "rubbish", right), "malformed_frame"),
        (Witnessing(2, "", right), "invalid_request"),
        (Witnessing(2, note, cosign(text, name, mine.raw, now_s, other.sign)), "seal_broken"),
        (Witnessing(2, note, cosign(text + "x\n", name, mine.raw, 1, mine.sign)), "seal_broken"),
        (Witnessing(2, note, cosign(text, gateway_name, mine.raw, 1, mine.sign)), "seal_broken"),
        (Witnessing(2, note, cosign(text, name, mine.raw, now_s + 9999, mine.sign)), "seal_broken"),
        (Witnessing(1, note, right), "not_found"),
        (Witnessing(1 << 50, note, right), "not_found"),
    ):
        assert (await house.say(mine, said)).code == code, said
    assert (await house.say(other, Witnessing(2, note, right))).code == "seal_broken"
    assert (await house.ask("checkpoint"))["note"] == note
    assert (await house.say(mine, Witnessing(2, note, right))).note == ""
    assert (await house.say(mine, Witnessing(2, note, right))).note == ""
    assert (await house.ask("checkpoint"))["note"] == note + right + "\n"


async def test_a_witness_of_any_size_does_no_harm(house: House) -> None:
    """A witness that claims a size beyond the log is shown the log, and that is all."""
    await house.add(1, 2)
    await house.registry.blocks.close_now()
    for size in (0, 1, 3, 1 << 52):
        answer = await house.say(NODES[0], Witnessing(size))
        assert (answer.size, answer.again_ms, bool(answer.note)) == (size, EVERY_S * 1000, True)
        assert bool(answer.proof) == (size == 1)
    assert (await house.say(NODES[0], Witnessing(2))).note == ""


async def test_a_registry_set_back_is_told(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """A registry whose database is older than what it signed hears so, loudly, and is refused."""
    memory = MemoryOf()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(house.witness(NODES[0], memory).run)
        await house.add(1, 2)
        await anyio.sleep(2.5 * EVERY_S)
        for table in ("block", "checkpoint", "witness", "log_tile", "task"):
            await house.store.write(lambda c, t=table: c.execute(f"DELETE FROM {t}") and None)
        await house.add(3, 4)
        await anyio.sleep(6 * EVERY_S)
        tasks.cancel_scope.cancel()
    assert (memory.seen.size, memory.times) == (2, 1)
    said = {one.message: one.levelname for one in caplog.records}
    assert said["log_was_set_back"] == "ERROR"
    assert said["not_cosigned"] == "ERROR"
    note = (await house.ask("checkpoint"))["note"]
    assert check_checkpoint(note, NETWORK, ACCOUNT.nkey).cosignatures == ()


async def test_a_supplier_proves_its_own_work(house: House) -> None:
    """A node gets the proof of what it did, the log's checkpoints, and of others' work nothing."""
    await house.add(1)
    await house.ask("close_block")
    task_id = record(1).task_id.hex()
    own = await house.ask("proof", by=NODES[0], task_id=task_id)
    assert own == await house.ask("proof", task_id=task_id)
    check_task(msgspec.convert(own, TaskProof), task_id, NETWORK, ACCOUNT.nkey)
    assert (await house.ask("checkpoint", by=NODES[1]))["size"] == 1
    assert (await house.ask("consistency", by=NODES[1], old=1, size=1))["path"] == []
    assert (await house.ask("proof", by=NODES[1], task_id=task_id)).code == "not_found"
    assert (await house.ask("close_block", by=NODES[1])).code == "party_refused"
