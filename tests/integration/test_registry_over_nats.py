"""The registry over a real NATS server: a stranger joins with a ticket, works, and is put out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from click.testing import CliRunner

from starai.cli.main import cli
from starai.core.clock import SystemClock
from starai.core.errors import PartyRefused, Unavailable
from starai.core.randomness import SystemRandomness
from starai.exchange.recording.confirming import Confirmer
from starai.local.asking import OPERATOR, Operator, operator
from starai.local.home import Home, NetworkFile
from starai.local.joining import join
from starai.local.membership import create_party
from starai.protocol.credentials import read_credential
from starai.protocol.identity import Identity
from starai.protocol.registry import Side
from starai.protocol.subjects import Role
from starai.protocol.tickets import JoinTicket
from starai.registry.service import RegistryConfig, run_registry
from starai.registry.storage import open_store
from starai.testing.records import BLOCK_MS, DISTRIBUTOR, record
from starai.wire.dialing import NatsSettings
from starai.wire.nats import connect_nats
from starai.wire.outbox import Outbox
from starai.wire.server import NatsServer, NatsServerSettings, nats_server

pytestmark = pytest.mark.anyio

_CHANCE, _CLOCK = SystemRandomness(), SystemClock()


def _settings(server: NatsServer, identity: Identity, role: Role) -> NatsSettings:
    jwt = server.authority.user_jwt(identity.party, role, 3_600_000, _CLOCK.now_ms())
    return NatsSettings((server.url,), identity, lambda: jwt)


@asynccontextmanager
async def _network(folder: Path) -> AsyncIterator[Operator]:
    """NATS and a registry, run from ``folder``, which becomes the operator's home."""
    home = Home(folder)
    async with (
        nats_server(NatsServerSettings(home.authority, port=0)) as server,
        open_store(home.registry_db) as store,
        connect_nats(_settings(server, Identity.create(_CHANCE), Role.REGISTRY)) as own,
        anyio.create_task_group() as tasks,
    ):
        account = server.authority.account
        boss = create_party(home, OPERATOR, Role.OPERATOR, account, _CLOCK, _CHANCE)
        home.save_network(NetworkFile("real", account.nkey, server.url, BLOCK_MS))
        roles = {boss.party: Role.OPERATOR, DISTRIBUTOR.party: Role.DISTRIBUTOR}
        config = RegistryConfig("real", BLOCK_MS, (server.url,), roles)

        async def run(*, task_status) -> None:
            await run_registry(
                *(config, own, store, account, _CLOCK, _CHANCE),
                on_revoke=server.revoke,
                task_status=task_status,
            )

        await tasks.start(run)
        async with operator(home) as asked:
            yield asked
        tasks.cancel_scope.cancel()


async def test_from_ticket_to_revocation(tmp_path: Path) -> None:
    """Every step is held to its NATS permissions, and the revoked are cut off at once."""
    boss_home, device = tmp_path / "boss", Home(tmp_path / "device")
    async with _network(boss_home) as asked:
        ticket = await asked.create_token(Role.NODE, 1, 3_600_000, "attic")
        await join(device, "node", JoinTicket.parse(ticket), "attic", _CLOCK, _CHANCE)
        file, network = device.party("node"), device.network()
        newcomer = Identity.from_seed(file.seed)
        read_credential(file.credential, network.account, _CLOCK.now_ms())
        settings = NatsSettings((network.nats_url,), newcomer, lambda: file.credential)
        async with connect_nats(settings) as wire, Outbox(device.outbox("node")) as outbox:
            confirmer = Confirmer(wire, newcomer, outbox, "real", BLOCK_MS, Side.NODE, _CLOCK)
            for number in range(10):
                await confirmer.record(record(number, node=newcomer))
            assert await confirmer.flush()
            assert (await asked.ask("ledger"))["totals"]["waiting"] == 10
            told = await _starai("node", "revoke", newcomer.party, "--home", str(boss_home))
            assert "out of the network" in told
            with anyio.fail_after(5):
                await wire.wait_refused()
            await confirmer.record(record(10, node=newcomer))
            with anyio.move_on_after(0.3):
                assert not await confirmer.flush()
            assert outbox.depth == 1
        with pytest.raises((PartyRefused, Unavailable)):
            async with connect_nats(settings):
                pass
        again = await asked.create_token(Role.NODE, 1, 3_600_000, "attic")
        with pytest.raises(PartyRefused, match="revoked"):
            await join(device, "node", JoinTicket.parse(again), "attic", _CLOCK, _CHANCE)
        assert (await asked.ask("check"))["problems"] == []


@pytest.mark.parametrize(
    ("name", "why"), [("nobody", "no node 'nobody'"), (OPERATOR, "cannot be put out")]
)
async def test_who_cannot_be_revoked(tmp_path: Path, name: str, why: str) -> None:
    """A name that nobody has, and the operator's own, are refused in plain words."""
    async with _network(tmp_path):
        assert why in await _starai("node", "revoke", name, "--home", str(tmp_path), status=1)


async def _starai(*arguments: str, status: int = 0) -> str:
    """What the program says, run in a thread of its own beside the test's loop."""
    result = await anyio.to_thread.run_sync(CliRunner().invoke, cli, arguments)
    assert result.exit_code == status, result.output
    return result.output
