"""A NATS server for the whole session, and parties on either wire."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.from_thread
import pytest

from starai.core.clock import SystemClock
from starai.core.randomness import SystemRandomness
from starai.protocol.identity import Identity, PartyId
from starai.protocol.subjects import Role
from starai.wire.memory import MemoryNetwork, MemoryWire
from starai.wire.nats import NatsSettings, NatsWire, connect_nats
from starai.wire.server import NatsServer, NatsServerSettings, nats_server

HOUR_MS = 3_600_000


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A real server on a free port, in an event loop of its own, watched as in production."""
    home = tmp_path_factory.mktemp("nats")
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(nats_server(NatsServerSettings(home, port=0))) as server,
    ):
        yield server


@dataclass
class World:
    """A network of one kind, in which a test connects parties."""

    kind: str
    join: Callable[[Identity, Role | None], AbstractAsyncContextManager[MemoryWire | NatsWire]]
    revoke: Callable[[PartyId], object]
    outage: Callable[[], AbstractAsyncContextManager[None]]
    people: list[Identity] = field(default_factory=list)

    def identity(self) -> Identity:
        """A new key."""
        return Identity.create(SystemRandomness())


@asynccontextmanager
async def memory_world() -> AsyncIterator[World]:
    """A network in memory."""
    async with MemoryNetwork() as network:

        @asynccontextmanager
        async def join(identity: Identity, role: Role | None) -> AsyncIterator[MemoryWire]:
            wire = network.connect(identity.party, role)
            yield wire
            wire.close()

        @asynccontextmanager
        async def outage() -> AsyncIterator[None]:
            with network.outage():
                yield

        async def revoke(party: PartyId) -> None:
            network.revoke(party)

        yield World("memory", join, revoke, outage)


@asynccontextmanager
async def nats_world(server: NatsServer) -> AsyncIterator[World]:
    """A network over a real server."""

    @asynccontextmanager
    async def join(identity: Identity, role: Role | None) -> AsyncIterator[NatsWire]:
        now_ms = SystemClock().now_ms()
        jwt = server.authority.user_jwt(identity.party, role or Role.NODE, HOUR_MS, now_ms)
        async with connect_nats(NatsSettings((server.url,), identity, lambda: jwt)) as wire:
            yield wire

    @asynccontextmanager
    async def outage() -> AsyncIterator[None]:
        before = server.num_restarts
        os.kill(server.pid, signal.SIGKILL)
        yield
        with anyio.fail_after(10):
            while server.num_restarts == before:
                await anyio.sleep(0.01)

    yield World("nats", join, server.revoke, outage)


@pytest.fixture
def anyio_backend() -> str:
    """The real wire needs asyncio."""
    return "asyncio"


@pytest.fixture(params=["memory", "nats"])
async def world(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncIterator[World]:
    """Each kind of network."""
    if request.param == "memory":
        async with memory_world() as made:
            yield made
    else:
        async with nats_world(request.getfixturevalue("nats")) as made:
            yield made
