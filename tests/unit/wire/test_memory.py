"""The in-memory network keeps its promises, and breaks them only as told, by its seed."""

from __future__ import annotations

import anyio
import pytest
import trio.testing

from starai.core.errors import DeadlinePassed, Unavailable
from starai.core.randomness import SeededRandomness
from starai.protocol.identity import Identity
from starai.protocol.ports import Delivery
from starai.wire.memory import BUFFERED_MAX, Faults, MemoryNetwork

CHANCE = SeededRandomness(5)
ALICE, BOB, CAROL = (Identity.create(CHANCE).party for _ in range(3))
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Run under trio's virtual clock."""
    return ("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})


async def trace(seed: int, faults: Faults) -> list[tuple[float, bytes]]:
    """When which of 200 numbered messages arrived."""
    heard: list[tuple[float, bytes]] = []
    async with MemoryNetwork(SeededRandomness(seed), faults) as network:
        alice, bob = network.connect(ALICE), network.connect(BOB)
        start = anyio.current_time()

        def hear(delivery: Delivery) -> None:
            heard.append((round(anyio.current_time() - start, 9), delivery.payload))

        async with bob.subscribe("a.*", hear):
            for n in range(200):
                await alice.publish("a.b", n.to_bytes(2, "big"))
                await anyio.sleep(0.001)
            await anyio.sleep(5)
    return heard


BAD = Faults(0.02, 0.01, loss=0.1, duplication=0.1, reordering=0.1)


async def test_same_seed_same_deliveries() -> None:
    """The same seed loses, doubles and delays the same messages; another seed others."""
    first = await trace(1, BAD)
    assert first == await trace(1, BAD)
    assert first != await trace(2, BAD)
    arrived = [payload for _, payload in first]
    assert 150 < len(set(arrived)) < 195
    assert len(arrived) > len(set(arrived))
    assert arrived != sorted(arrived)


async def test_latency_alone_keeps_order() -> None:
    """Latency with jitter delays every message and reorders none."""
    heard = await trace(3, Faults(0.02, 0.05))
    assert [payload for _, payload in heard] == [n.to_bytes(2, "big") for n in range(200)]
    assert all(0.02 <= at - n * 0.001 < 0.4 for n, (at, _) in enumerate(heard))


async def test_partition_and_healing() -> None:
    """Across a partition nothing passes, within a side everything does, and it heals."""
    heard: list[tuple[str, bytes]] = []
    async with MemoryNetwork() as network:
        alice, bob, carol = (network.connect(party) for party in (ALICE, BOB, CAROL))
        async with (
            bob.subscribe("x", lambda one: heard.append(("bob", one.payload))),
            carol.subscribe("x", lambda one: heard.append(("carol", one.payload))),
        ):
            with network.partition([ALICE, CAROL], [BOB]):
                await alice.publish("x", b"1")
                await anyio.sleep(1)
            await alice.publish("x", b"2")
            await anyio.sleep(1)
    assert sorted(heard) == [("bob", b"2"), ("carol", b"1"), ("carol", b"2")]


async def test_outage_keeps_what_was_said_within_bounds() -> None:
    """During an outage publishing is kept up to a bound, then refused; later it arrives."""
    heard: list[bytes] = []
    async with MemoryNetwork() as network:
        alice, bob = network.connect(ALICE), network.connect(BOB)
        async with bob.subscribe("x", lambda one: heard.append(one.payload)):
            with network.outage():
                assert not alice.connected
                alice.publish_soon("x", b"dropped")
                for _ in range(BUFFERED_MAX):
                    await alice.publish("x", b"kept")
                with pytest.raises(Unavailable):
                    await alice.publish("x", b"too much")
                await anyio.sleep(1)
                assert heard == []
            await anyio.sleep(1)
            assert alice.connected
    assert heard == [b"kept"] * BUFFERED_MAX


async def test_a_lost_answer_passes_the_deadline() -> None:
    """A request whose answer is lost ends at its deadline, not before and not after."""
    async with MemoryNetwork() as network:
        alice, bob = network.connect(ALICE), network.connect(BOB)
        async with bob.subscribe("ask", lambda one: bob.publish_soon(one.reply, b"!")):
            assert await alice.request("ask", b"", timeout_s=5) == b"!"
            network.faults = Faults(loss=1.0)
            before = anyio.current_time()
            with pytest.raises(DeadlinePassed):
                await alice.request("ask", b"", timeout_s=5)
            assert anyio.current_time() - before == pytest.approx(5)
