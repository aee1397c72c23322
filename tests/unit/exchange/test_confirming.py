"""The confirmer: every record reaches the registry, once, whatever happens to either of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from starai.core.clock import AnyioClock
from starai.core.errors import StoreFailed
from starai.core.limits import CONFIRM_RECORDS_MAX
from starai.core.randomness import SeededRandomness
from starai.exchange.recording.confirming import Confirmer
from starai.protocol.frames import decode, encode
from starai.protocol.identity import Identity, KeyKind
from starai.protocol.ports import Delivery
from starai.protocol.registry import Acknowledged, Confirm, Side
from starai.protocol.subjects import Role, registry_all
from starai.registry import reports
from starai.registry.integrity import Integrity, check_integrity
from starai.registry.service import RegistryConfig, run_registry
from starai.registry.storage import Connection, Store, open_store
from starai.testing.outboxes import MemoryOutbox
from starai.testing.records import (
    BLOCK_MS,
    DISTRIBUTOR,
    NETWORK,
    NODES,
    START_MS,
    STRANGER,
    record,
)
from starai.wire.memory import Faults, MemoryNetwork
from starai.wire.outbox import Outbox

pytestmark = pytest.mark.anyio

_CHANCE = SeededRandomness(3)
ACCOUNT = Identity.create(_CHANCE, KeyKind.ACCOUNT)
SELF = Identity.create(_CHANCE)
ROLES = {DISTRIBUTOR.party: Role.DISTRIBUTOR, **{node.party: Role.NODE for node in NODES}}


@pytest.fixture
def anyio_backend(virtual_time):
    return virtual_time


@pytest.fixture
async def network():
    async with MemoryNetwork(SeededRandomness(5)) as network:
        yield network


@asynccontextmanager
async def running_registry(network: MemoryNetwork, path: Path, roles=ROLES) -> AsyncIterator[Store]:
    """A registry that lives for the length of the context; its file stays."""
    async with open_store(path, inline=True) as store, anyio.create_task_group() as tasks:
        wire = network.connect(SELF.party, Role.REGISTRY)
        config = RegistryConfig(NETWORK, BLOCK_MS, parties=roles)

        async def run(*, task_status) -> None:
            await run_registry(
                config, wire, store, ACCOUNT, AnyioClock(), _CHANCE, task_status=task_status
            )

        await tasks.start(run)
        yield store
        tasks.cancel_scope.cancel()
        wire.close()


@asynccontextmanager
async def running(confirmer: Confirmer) -> AsyncIterator[Confirmer]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(confirmer.run)
        yield confirmer
        tasks.cancel_scope.cancel()


def make(
    network: MemoryNetwork, outbox, side: Side = Side.NODE, node=NODES[0], **more
) -> Confirmer:
    identity = node if side is Side.NODE else DISTRIBUTOR
    wire = network.connect(identity.party, ROLES[identity.party])
    return Confirmer(wire, identity, outbox, NETWORK, BLOCK_MS, side, AnyioClock(), **more)


@asynccontextmanager
async def hearing(network: MemoryNetwork, answer: Acknowledged) -> AsyncIterator[list[Confirm]]:
    """A registry that only listens, and always answers the same."""
    heard: list[Confirm] = []
    wire = network.connect(SELF.party, Role.REGISTRY)

    def hear(delivery: Delivery) -> None:
        heard.append(decode(delivery.payload, Confirm))
        wire.publish_soon(delivery.reply, encode(answer))

    async with wire.subscribe(registry_all("confirm"), hear):
        yield heard


def _check(connection: Connection) -> Integrity:
    return check_integrity(connection, ACCOUNT.raw)


async def totals(store: Store) -> dict[str, int]:
    return (await store.read(reports.ledger))["totals"]


async def test_a_record_is_confirmed_promptly(network: MemoryNetwork, tmp_path: Path) -> None:
    """In a quiet local network a record is on the books after ``flush_after_s``, then forgotten."""
    outbox = MemoryOutbox()
    async with (
        running_registry(network, tmp_path / "r.db") as store,
        running(make(network, outbox, flush_after_s=0.2)) as confirmer,
    ):
        await anyio.sleep(5)
        await confirmer.record(record(1))
        await anyio.sleep(0.3)
        assert (await totals(store))["waiting"] == 1
        assert outbox.depth == 0
        assert confirmer.state.confirmed == 1


async def test_a_record_whose_maker_is_cut_off_is_confirmed_as_soon(
    network: MemoryNetwork, tmp_path: Path
) -> None:
    """It was kept, so the registry hears of it, though no other record comes."""
    async with (
        running_registry(network, tmp_path / "r.db") as store,
        running(make(network, MemoryOutbox(), flush_after_s=0.2)) as confirmer,
    ):
        await anyio.sleep(5)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await confirmer.record(record(1))
        assert scope.cancelled_caught
        await anyio.sleep(0.3)
        assert (await totals(store))["waiting"] == 1


async def test_a_block_shares_one_signature(network: MemoryNetwork) -> None:
    """With a long ``flush_after_s`` a node sends one part a block, soon after the block's end."""
    async with (
        hearing(network, Acknowledged(True)) as heard,
        running(make(network, MemoryOutbox(), flush_after_s=60)) as confirmer,
    ):
        await anyio.sleep(0.5)
        for number in range(8):
            await confirmer.record(record(number, closed_ms=AnyioClock().now_ms()))
            await anyio.sleep(0.15)
        assert heard == []
        await anyio.sleep(1.0)
        assert [said.count for said in heard] == [8]


async def test_a_distributor_signs_once_a_node_and_block(network: MemoryNetwork) -> None:
    """Records of several nodes and blocks travel in one confirmation for each pair."""
    async with hearing(network, Acknowledged(True)) as heard:
        confirmer = make(network, MemoryOutbox(), Side.DISTRIBUTOR)
        for number in range(12):
            closed_ms = START_MS + BLOCK_MS * (number % 2)
            await confirmer.record(record(number, node=NODES[number % 3], closed_ms=closed_ms))
        assert await confirmer.flush()
        pairs = [(said.block, said.node) for said in heard]
        assert len(pairs) == len(set(pairs)) == 6
        assert {said.signer for said in heard} == {DISTRIBUTOR.party}


async def test_many_records_go_in_several_parts(network: MemoryNetwork) -> None:
    """More records of one block than one confirmation may hold go in several, none twice."""
    async with hearing(network, Acknowledged(True)) as heard:
        outbox = MemoryOutbox()
        confirmer = make(network, outbox)
        for number in range(CONFIRM_RECORDS_MAX + 1):
            await outbox.append("confirm.node", record(number).canonical())
        await outbox.append("confirm.node", record(0).canonical())
        assert await confirmer.flush()
        assert sorted(said.count for said in heard) == [
            1,
            CONFIRM_RECORDS_MAX,
        ]
        assert outbox.depth == 0


async def test_the_registry_may_be_away_for_hours(network: MemoryNetwork, tmp_path: Path) -> None:
    """Records wait while nobody listens, and are confirmed soon after the registry is back."""
    outbox = MemoryOutbox()
    async with running(make(network, outbox)) as confirmer:
        await confirmer.record(record(1))
        await anyio.sleep(4 * 3600)
        assert confirmer.state.problem == "service_unavailable"
        assert outbox.depth == 1
        async with running_registry(network, tmp_path / "r.db") as store:
            await anyio.sleep(15)
            assert (await totals(store))["records"] == 1
        assert confirmer.state.problem == ""
        assert outbox.depth == 0


async def test_both_sides_match_over_a_bad_wire(network: MemoryNetwork, tmp_path: Path) -> None:
    """Loss, duplication, reordering and outages on both sides: in the end every task is matched."""
    network.faults = Faults(0.02, 0.05, loss=0.3, duplication=0.3, reordering=0.3)
    outboxes = {identity: MemoryOutbox() for identity in (*NODES, DISTRIBUTOR)}
    path = tmp_path / "r.db"
    num = 90
    async with anyio.create_task_group() as tasks:
        confirmers = {n: make(network, outboxes[n], node=n) for n in NODES}
        distributor = make(network, outboxes[DISTRIBUTOR], Side.DISTRIBUTOR)
        for one in (*confirmers.values(), distributor):
            tasks.start_soon(one.run)
        for round_ in range(3):  # the registry restarts twice in between
            async with running_registry(network, path):
                for number in range(round_ * num // 3, (round_ + 1) * num // 3):
                    node = NODES[number % 3]
                    made = record(number, node=node, closed_ms=AnyioClock().now_ms())
                    await confirmers[node].record(made)
                    await distributor.record(made)
                    await anyio.sleep(0.1)
        async with running_registry(network, path) as store:
            await anyio.sleep(300)
            assert await totals(store) == {
                "records": num,
                "matched": num,
                "waiting": 0,
                "conflicting": 0,
                "in_tokens": 10 * num,
                "out_tokens": sum(20 + number for number in range(num)),
            }
            assert (await store.read(_check)).problems == ()
        assert {outbox.depth for outbox in outboxes.values()} == {0}
        tasks.cancel_scope.cancel()


async def test_a_crash_between_answer_and_settling_is_harmless(
    network: MemoryNetwork, tmp_path: Path
) -> None:
    """What was confirmed but not settled goes again after a restart, alone or among new records."""

    class Forgetful(MemoryOutbox):
        async def settle(self, ids) -> None:
            raise StoreFailed("the machine died before this was on disk")

    async with running_registry(network, tmp_path / "r.db") as store:
        outbox = Forgetful()
        first = make(network, outbox)
        await first.record(record(1))
        with pytest.raises(StoreFailed):
            await first.flush()
        whole = MemoryOutbox()
        whole._items, whole._last = dict(outbox._items), outbox._last
        second = make(network, whole)
        await second.record(record(2))
        assert await second.flush()
        assert whole.depth == 0
        assert (await totals(store))["records"] == 2


async def test_a_hopeless_record_is_put_aside_alone(network: MemoryNetwork, tmp_path: Path) -> None:
    """One record that the registry can never take does not hold up or take along the others."""
    async with running_registry(network, tmp_path / "r.db") as store:
        outbox = MemoryOutbox()
        confirmer = make(network, outbox)
        for number in range(20):
            await confirmer.record(record(number))
        await confirmer.record(record(99, customer=1 << 63))
        await outbox.append("confirm.node", b"a damaged row")
        assert await confirmer.flush()
        assert (await totals(store))["records"] == 20
        aside = [item for _, item in await outbox.pending(confirmer.aside_topic, 10)]
        assert sorted(aside) == sorted([b"a damaged row", record(99, customer=1 << 63).canonical()])
        assert outbox.depth == 2
        assert (confirmer.state.confirmed, confirmer.state.put_aside) == (20, 2)


async def test_a_full_outbox_still_drains(network: MemoryNetwork, tmp_path: Path) -> None:
    """With no room to put a hopeless record aside, it waits until what was confirmed made room."""
    async with running_registry(network, tmp_path / "r.db") as store:
        outbox = MemoryOutbox(limit=3)
        confirmer = make(network, outbox)
        await confirmer.record(record(0, customer=1 << 63))
        await confirmer.record(record(1))
        await confirmer.record(record(2))
        assert not await confirmer.flush()
        assert await confirmer.flush()
        assert (await totals(store))["records"] == 2
        assert outbox.depth == 1


async def test_a_party_unknown_for_now_keeps_its_records(
    network: MemoryNetwork, tmp_path: Path
) -> None:
    """A refusal of the party, not of its records, is no reason to put any aside."""
    outbox = MemoryOutbox()
    confirmer = make(network, outbox)
    await confirmer.record(record(1))
    async with running_registry(network, tmp_path / "r.db", roles={}):
        assert not await confirmer.flush()
        assert confirmer.state.problem == "party_refused"
    async with running_registry(network, tmp_path / "r.db") as store:
        assert await confirmer.flush()
        assert (await totals(store))["records"] == 1
    assert confirmer.state.put_aside == 0


async def test_a_nonsense_answer_is_no_answer(network: MemoryNetwork) -> None:
    """An answer that cannot be read settles nothing."""
    outbox = MemoryOutbox()
    confirmer = make(network, outbox)
    await confirmer.record(record(1))
    wire = network.connect(SELF.party, Role.REGISTRY)

    def hear(delivery: Delivery) -> None:
        wire.publish_soon(delivery.reply, b"nonsense")

    async with wire.subscribe(registry_all("confirm"), hear):
        assert not await confirmer.flush()
    assert outbox.depth == 1


async def test_a_contradiction_is_settled_and_told(network: MemoryNetwork, tmp_path: Path) -> None:
    """When the other side said something else, our word is on record: it is not sent for ever."""
    async with running_registry(network, tmp_path / "r.db") as store:
        node = make(network, MemoryOutbox())
        distributor = make(network, MemoryOutbox(), Side.DISTRIBUTOR)
        await node.record(record(1))
        await distributor.record(msgspec.structs.replace(record(1), answer_tokens=1))
        assert await node.flush()
        assert await distributor.flush()
        assert (await totals(store))["conflicting"] == 2


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_the_real_outbox_survives_restarts(
    network: MemoryNetwork, tmp_path: Path, anyio_backend: str
) -> None:
    """With the outbox on disk, in real time: recorded in one life, confirmed in the next."""
    async with Outbox(tmp_path / "outbox.db") as outbox:
        confirmer = make(network, outbox)
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(confirmer.record, record(number))
    async with (
        open_store(tmp_path / "r.db") as store,
        Outbox(tmp_path / "outbox.db") as outbox,
        anyio.create_task_group() as tasks,
    ):
        wire = network.connect(SELF.party, Role.REGISTRY)
        config = RegistryConfig(NETWORK, BLOCK_MS, parties=ROLES)

        async def run(*, task_status) -> None:
            await run_registry(
                config, wire, store, ACCOUNT, AnyioClock(), _CHANCE, task_status=task_status
            )

        await tasks.start(run)
        async with running(make(network, outbox, flush_after_s=0.05)) as confirmer:
            await confirmer.record(record(50))
            with anyio.fail_after(10):
                while confirmer.state.confirmed < 51:
                    await anyio.sleep(0.01)
        assert (await totals(store))["records"] == 51
        assert outbox.depth == 0
        tasks.cancel_scope.cancel()


async def test_a_node_says_its_root_and_its_records_only_when_asked(
    network: MemoryNetwork, tmp_path: Path
) -> None:
    """Behind its distributor a node's root will do; before it, the records are wanted."""
    heard: list[tuple[Side, bool]] = []

    def hear(delivery: Delivery) -> None:
        said = decode(delivery.payload, Confirm)
        heard.append((said.side, bool(said.records)))

    spy = network.connect(STRANGER.party, Role.REGISTRY)
    async with (
        running_registry(network, tmp_path / "r.db") as store,
        spy.subscribe(registry_all("confirm"), hear),
    ):
        node = make(network, MemoryOutbox())
        distributor = make(network, MemoryOutbox(), Side.DISTRIBUTOR)
        for number, order in ((1, (distributor, node)), (2, (node, distributor))):
            for confirmer in order:
                await confirmer.record(record(number))
                assert await confirmer.flush()
        assert heard == [
            (Side.DISTRIBUTOR, True),
            (Side.NODE, False),
            (Side.NODE, False),
            (Side.NODE, True),
            (Side.DISTRIBUTOR, True),
        ]
        assert (await totals(store))["matched"] == 2
