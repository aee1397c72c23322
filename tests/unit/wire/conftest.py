"""A NATS server for the whole session, and the settings of parties that connect to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import anyio.from_thread
import pytest

from starai.core.clock import SystemClock
from starai.protocol.identity import Identity
from starai.protocol.subjects import Role
from starai.wire.nats import NatsSettings
from starai.wire.server import NatsServer, NatsServerSettings, nats_server

Settings = Callable[..., NatsSettings]


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A real server on a free port, in an event loop of its own, watched as in production."""
    home = tmp_path_factory.mktemp("nats")
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(nats_server(NatsServerSettings(home, port=0))) as server,
    ):
        yield server


@pytest.fixture
def settings() -> Settings:
    """How to connect to a server with a fresh credential of a party."""

    def make(
        server: NatsServer, identity: Identity, role: Role, lifetime_ms: int = 3_600_000
    ) -> NatsSettings:
        now_ms = SystemClock().now_ms()
        jwt = server.authority.user_jwt(identity.party, role, lifetime_ms, now_ms)
        return NatsSettings((server.url,), identity, lambda: jwt)

    return make
