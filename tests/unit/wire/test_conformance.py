"""What every wire promises, tried on the one in memory and on a real NATS server alike."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import anyio
import pytest

from starai.core.errors import (
    DeadlinePassed,
    MalformedFrame,
    PartyRefused,
    RequestTooLarge,
    Unavailable,
)
from starai.core.limits import FRAME_BYTES_MAX
from starai.core.randomness import SystemRandomness
from starai.protocol import subjects
from starai.protocol.identity import Identity, PartyId
from starai.protocol.ports import Delivery
from starai.protocol.subjects import Role
from starai.wire.memory import MemoryNetwork, MemoryWire
from starai.wire.nats import NatsSettings, NatsWire, connect_nats
from starai.wire.server import NatsServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The real wire needs asyncio."""
    return "asyncio"


Wire = MemoryWire | NatsWire


@dataclass
class World:
    """A network of one kind, in which a test connects parties."""

    join: Callable[[Role], AbstractAsyncContextManager[Wire]]
    revoke: Callable[[PartyId], Awaitable[None]]
    outage: Callable[[], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def memory_world() -> AsyncIterator[World]:
    """A network in memory."""
    async with MemoryNetwork() as network:

        @asynccontextmanager
        async def join(role: Role) -> AsyncIterator[MemoryWire]:
            wire = network.connect(Identity.create(SystemRandomness()).party, role)
            yield wire
            wire.close()

        @asynccontextmanager
        async def outage() -> AsyncIterator[None]:
            with network.outage():
                yield

        async def revoke(party: PartyId) -> None:
            network.revoke(party)

        yield World(join, revoke, outage)


def nats_world(server: NatsServer, settings: Callable[..., NatsSettings]) -> World:
    """A network over a real server."""

    @asynccontextmanager
    async def join(role: Role) -> AsyncIterator[NatsWire]:
        identity = Identity.create(SystemRandomness())
        async with connect_nats(settings(server, identity, role)) as wire:
            yield wire

    @asynccontextmanager
    async def outage() -> AsyncIterator[None]:
        before = server.num_restarts
        os.kill(server.pid, signal.SIGKILL)
        yield
        with anyio.fail_after(10):
            while server.num_restarts == before:
                await anyio.sleep(0.01)

    return World(join, server.revoke, outage)


@pytest.fixture(params=["memory", "nats"])
async def world(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncIterator[World]:
    """Each kind of network."""
    if request.param == "memory":
        async with memory_world() as made:
            yield made
    else:
        yield nats_world(request.getfixturevalue("nats"), request.getfixturevalue("settings"))


async def until(condition: Callable[[], object], within_s: float = 5) -> None:
    """Wait for ``condition``."""
    with anyio.fail_after(within_s):
        while not condition():
            await anyio.sleep(0.005)


async def settled(*wires: Wire) -> None:
    """Wait until whatever was sent would have arrived: each wire hears from itself."""
    for wire in wires:
        own = subjects.inbox(wire.party) + ".settled"
        heard = anyio.Event()
        async with wire.subscribe(own, lambda _, heard=heard: heard.set()):
            await anyio.sleep(0.05)


async def test_delivers_what_was_sent(world: World) -> None:
    """A message arrives whole, empty or large, with its subject and its reply."""
    heard: list[Delivery] = []
    async with world.join(Role.NODE) as node, world.join(Role.DISTRIBUTOR) as distributor:
        assert node.connected
        subject = subjects.offer(Role.NODE, node.party)
        async with node.subscribe(subject, heard.append):
            sent = [b"", b"\r\nMSG x 1 0\r\n", bytes(range(256)) * 3000]
            for payload in sent:
                await distributor.publish(subject, payload, "x.y")
            await until(lambda: len(heard) == 3)
        assert heard == [Delivery(subject, payload, "x.y") for payload in sent]
        await distributor.publish(subject, b"nobody listens now")
        distributor.publish_soon(subject, b"nor now")
        await settled(distributor, node)
        assert len(heard) == 3


async def test_order_of_one_publisher(world: World) -> None:
    """Ten thousand messages of one publisher come in order, whichever way they are published."""
    heard: list[int] = []
    async with world.join(Role.NODE) as node, world.join(Role.GATEWAY) as gateway:
        subject = subjects.beat(Role.NODE, node.party)
        take = subjects.beats(Role.NODE)
        async with gateway.subscribe(
            take, lambda one: heard.append(int.from_bytes(one.payload, "big"))
        ):
            for n in range(0, 10_000, 2):
                await node.publish(subject, n.to_bytes(4, "big"))
                node.publish_soon(subject, (n + 1).to_bytes(4, "big"))
            await until(lambda: len(heard) == 10_000)
    assert heard == list(range(10_000))


async def test_wildcards(world: World) -> None:
    """A star is one token, a last > any number of them; what matches twice comes twice."""
    heard: list[tuple[str, str]] = []
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(world.join(Role.OPERATOR))
        node = await stack.enter_async_context(world.join(Role.NODE))
        gateway = await stack.enter_async_context(world.join(Role.GATEWAY))
        for pattern in ("starai.beat.>", "starai.beat.node.*", f"starai.beat.*.{node.party}"):
            await stack.enter_async_context(
                operator.subscribe(pattern, lambda one, p=pattern: heard.append((p, one.subject)))
            )
        at_node = subjects.beat(Role.NODE, node.party)
        at_gateway = subjects.beat(Role.GATEWAY, gateway.party)
        await node.publish(at_node, b"")
        await gateway.publish(at_gateway, b"")
        await until(lambda: len(heard) == 4)
        await settled(operator)
    assert sorted(heard) == sorted(
        [
            ("starai.beat.>", at_node),
            ("starai.beat.node.*", at_node),
            (f"starai.beat.*.{node.party}", at_node),
            ("starai.beat.>", at_gateway),
        ]
    )


async def test_queue_groups(world: World) -> None:
    """Each message goes to one member of a group, and to every listener outside it."""
    heard: dict[str, list[bytes]] = {"one": [], "two": [], "alone": []}
    async with (
        world.join(Role.REGISTRY) as one,
        world.join(Role.REGISTRY) as two,
        world.join(Role.NODE) as node,
        one.subscribe("starai.registry.>", lambda d: heard["one"].append(d.payload), queue="q"),
        two.subscribe("starai.registry.>", lambda d: heard["two"].append(d.payload), queue="q"),
        two.subscribe("starai.registry.*.*", lambda d: heard["alone"].append(d.payload)),
    ):
        sent = [bytes([n]) for n in range(100)]
        for payload in sent:
            await node.publish(subjects.registry("confirm", node.party), payload)
        await until(lambda: sum(map(len, heard.values())) == 200)
    assert sorted(heard["one"] + heard["two"]) == sent == heard["alone"]
    assert heard["one"]
    assert heard["two"]


@asynccontextmanager
async def answering(wire: Wire, answer: Callable[[Delivery], bytes | None]) -> AsyncIterator[None]:
    """A registry that answers."""

    def hear(delivery: Delivery) -> None:
        if (said := answer(delivery)) is not None:
            wire.publish_soon(delivery.reply, said)

    async with wire.subscribe("starai.registry.>", hear):
        yield


async def test_requests(world: World) -> None:
    """Many requests at once each get their own answer; silence ends at the deadline."""
    answers: dict[int, bytes] = {}
    async with world.join(Role.REGISTRY) as registry, world.join(Role.NODE) as node:
        ask = subjects.registry("confirm", node.party)
        with pytest.raises(Unavailable):
            await node.request(ask, b"anyone?", timeout_s=5)
        async with answering(registry, lambda one: b"re: " + one.payload if one.payload else None):

            async def one(n: int) -> None:
                answers[n] = await node.request(ask, b"%d" % n, timeout_s=5)

            async with anyio.create_task_group() as tasks:
                for n in range(200):
                    tasks.start_soon(one, n)
            with pytest.raises(DeadlinePassed):
                await node.request(ask, b"", timeout_s=0.05)
            with anyio.move_on_after(0.05):
                await node.request(ask, b"", timeout_s=5)
            assert await node.request(ask, b"still", timeout_s=5) == b"re: still"
    assert answers == {n: b"re: %d" % n for n in range(200)}


async def test_too_large(world: World) -> None:
    """The largest message passes; a larger one is refused and harms nothing."""
    heard: list[Delivery] = []
    async with (
        world.join(Role.NODE) as node,
        world.join(Role.DISTRIBUTOR) as distributor,
        node.subscribe(subjects.offer(Role.NODE, node.party), heard.append),
    ):
        subject = subjects.offer(Role.NODE, node.party)
        with pytest.raises(RequestTooLarge):
            await distributor.publish(subject, bytes(FRAME_BYTES_MAX + 1))
        await distributor.publish(subject, bytes(FRAME_BYTES_MAX))
        await until(lambda: heard)
        assert len(heard[0].payload) == FRAME_BYTES_MAX


@pytest.mark.parametrize("bad", ["", "a b", "a\r\nPUB x 0", "a..b", ".a", "a.", "a.*", ">"])
async def test_bad_subjects(world: World, bad: str) -> None:
    """What is no subject never reaches the wire."""
    async with world.join(Role.NODE) as node:
        with pytest.raises(MalformedFrame):
            await node.publish(bad, b"")
        with pytest.raises(MalformedFrame):
            await node.publish("a", b"", bad or " ")
        with pytest.raises(MalformedFrame):
            node.publish_soon(bad, b"")


async def test_a_faulty_handler_harms_nobody_else(world: World) -> None:
    """A handler that raises loses its own message only."""
    heard: list[Delivery] = []

    def hear(delivery: Delivery) -> None:
        if not heard:
            heard.append(delivery)
            raise ValueError("a bug")
        heard.append(delivery)

    async with (
        world.join(Role.NODE) as node,
        node.subscribe(subjects.control(node.party), hear),
    ):
        await node.publish(subjects.control(node.party), b"1")
        await node.publish(subjects.control(node.party), b"2")
        await until(lambda: len(heard) == 2)


async def test_the_body_s_own_error_comes_out(world: World) -> None:
    """An error inside the connection's context comes out as itself, in no group."""

    async def body() -> None:
        async with (
            world.join(Role.NODE) as node,
            node.subscribe(subjects.control(node.party), lambda _: None),
        ):
            raise KeyError("mine")

    with pytest.raises(KeyError):
        await body()


async def test_a_node_hears_only_what_is_its_own(world: World) -> None:
    """A node cannot read another's offers, orders, answers, beats or inbox, nor everything."""
    async with world.join(Role.NODE) as node, world.join(Role.NODE) as other:
        for pattern in (
            subjects.offer(Role.NODE, other.party),
            subjects.offer(Role.DISTRIBUTOR, node.party),
            "starai.offer.node.*",
            "starai.offer.>",
            "starai.answer.>",
            subjects.answers_for(node.party),
            subjects.control(other.party),
            subjects.beats(Role.NODE),
            "starai.registry.>",
            f"_INBOX.{other.party}.>",
            "_INBOX.>",
            "_INBOX.*.>",
            ">",
            "*.>",
            "$SYS.>",
        ):
            with pytest.raises(PartyRefused):
                async with node.subscribe(pattern, lambda _: None):
                    pass
        async with node.subscribe(subjects.offer(Role.NODE, node.party), lambda _: None):
            pass


async def test_a_node_speaks_only_for_itself(world: World) -> None:
    """What a node says in another's name, or to whom it may not, reaches nobody."""
    heard: list[str] = []
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        node, other = await enter(world.join(Role.NODE)), await enter(world.join(Role.NODE))
        distributor = await enter(world.join(Role.DISTRIBUTOR))
        registry = await enter(world.join(Role.REGISTRY))

        def hear(one: Delivery) -> None:
            heard.append(one.subject)

        await enter(distributor.subscribe(subjects.answers_for(distributor.party), hear))
        await enter(distributor.subscribe(subjects.beats(Role.NODE), hear))
        await enter(other.subscribe(subjects.offer(Role.NODE, other.party), hear))
        await enter(other.subscribe(subjects.control(other.party), hear))
        await enter(registry.subscribe("starai.registry.>", hear))
        forbidden = [
            subjects.answer(other.party, distributor.party),
            subjects.beat(Role.NODE, other.party),
            subjects.offer(Role.NODE, other.party),
            subjects.control(other.party),
            subjects.registry("confirm", other.party),
            subjects.registry("join", node.party),
            subjects.inbox(distributor.party) + ".1",
            subjects.plea(Role.NODE, other.party),
            subjects.plea(Role.OPERATOR, node.party),
            subjects.standing(other.party, distributor.party),
        ]
        for subject in forbidden:
            await node.publish(subject, b"I am someone else")
        with pytest.raises(PartyRefused):
            await node.request(forbidden[4], b"", timeout_s=5)
        allowed = subjects.answer(node.party, distributor.party)
        await node.publish(allowed, b"I am myself")
        await until(lambda: heard)
        await settled(distributor, other, registry)
        assert heard == [allowed]
        await until(lambda: node.num_forbidden >= len(forbidden))


async def test_a_joiner_can_only_ask_to_join(world: World) -> None:
    """A joiner may ask to join in its own name and hear the answer; nothing else."""
    asked: list[str] = []
    async with (
        world.join(Role.JOINER) as joiner,
        world.join(Role.REGISTRY) as registry,
        world.join(Role.OPERATOR) as operator,
        operator.subscribe("starai.beat.>", lambda one: asked.append(one.subject)),
        answering(registry, lambda one: asked.append(one.subject) or b"welcome"),
    ):
        join = subjects.registry("join", joiner.party)
        assert await joiner.request(join, b"", timeout_s=5) == b"welcome"
        for subject in (
            subjects.registry("join", operator.party),
            subjects.registry("confirm", joiner.party),
            subjects.registry("renew", joiner.party),
            subjects.beat(Role.NODE, joiner.party),
        ):
            await joiner.publish(subject, b"")
        for pattern in ("starai.>", subjects.offer(Role.NODE, joiner.party), "_INBOX.>"):
            with pytest.raises(PartyRefused):
                async with joiner.subscribe(pattern, lambda _: None):
                    pass
        await settled(joiner, registry, operator)
        assert asked == [join]


async def test_revoked_at_once(world: World) -> None:
    """A revoked party is cut off at once and told why; the others go on."""
    heard: list[bytes] = []
    async with world.join(Role.NODE) as node, world.join(Role.NODE) as other:
        assert node.refused is None
        async with (
            world.join(Role.OPERATOR) as operator,
            operator.subscribe("starai.beat.>", lambda one: heard.append(one.payload)),
        ):
            await world.revoke(node.party)
            with anyio.fail_after(3):
                assert isinstance(await node.wait_refused(), PartyRefused)
            assert not node.connected
            node.publish_soon(subjects.beat(Role.NODE, node.party), b"revoked")
            await other.publish(subjects.beat(Role.NODE, other.party), b"other")
            await until(lambda: heard)
            await settled(operator)
            assert heard == [b"other"]
            assert other.refused is None


async def test_comes_back_after_an_outage(world: World) -> None:
    """After the server was killed everyone hears again, and what was published is not lost."""
    heard: list[bytes] = []
    async with (
        world.join(Role.NODE) as node,
        world.join(Role.OPERATOR) as operator,
        operator.subscribe("starai.beat.>", lambda one: heard.append(one.payload)),
    ):
        subject = subjects.beat(Role.NODE, node.party)
        async with world.outage():
            await until(lambda: not node.connected)
            node.publish_soon(subject, b"dropped")
            await node.publish(subject, b"kept")
        await until(lambda: node.connected and operator.connected, within_s=5)
        # Connected means that the server was told what is heard, not yet that it took note.
        await settled(operator)
        await node.publish(subject, b"after")
        await until(lambda: b"after" in heard)
        assert b"dropped" not in heard
        # Kept: sent as soon as the node is back, which may be before its listener is.
        assert heard in ([b"kept", b"after"], [b"after"])
