"""The registry over a real NATS server: a stranger joins with a ticket, works, and is put out."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec
import pytest

from starai.core.clock import SystemClock
from starai.core.errors import PartyRefused, Unavailable
from starai.core.randomness import SystemRandomness
from starai.exchange.confirming import Confirmer
from starai.protocol.credentials import read_credential
from starai.protocol.frames import decode, encode
from starai.protocol.identity import Identity
from starai.protocol.registry import Admitted, Join, Query, Report, Side
from starai.protocol.subjects import Role, registry
from starai.protocol.tickets import JoinTicket
from starai.registry.service import RegistryConfig, run_registry
from starai.registry.store import open_store
from starai.testing.records import BLOCK_MS, record
from starai.wire.dialing import NatsSettings
from starai.wire.nats import NatsWire, connect_nats
from starai.wire.outbox import Outbox
from starai.wire.server import NatsServer, NatsServerSettings, nats_server

pytestmark = pytest.mark.anyio

_CHANCE = SystemRandomness()
_SELF, _OPERATOR = Identity.create(_CHANCE), Identity.create(_CHANCE)


def _settings(server: NatsServer, identity: Identity, role: Role) -> NatsSettings:
    now_ms = SystemClock().now_ms()
    jwt = server.authority.user_jwt(identity.party, role, 3_600_000, now_ms)
    return NatsSettings((server.url,), identity, lambda: jwt)


async def _query(operator: NatsWire, what: str, **arguments: object):
    query = encode(Query(what, msgspec.json.encode(arguments)))
    frame = await operator.request(registry("query", operator.party), query, timeout_s=5)
    report = decode(frame, Report)
    assert not report.code, report.message
    return msgspec.json.decode(report.body)


async def _join(ticket: JoinTicket, newcomer: Identity) -> Admitted:
    joiner = Identity.from_seed(ticket.seed)
    async with connect_nats(NatsSettings(ticket.urls, joiner, lambda: ticket.credential)) as wire:
        join = Join(ticket.token_id, ticket.secret, newcomer.party, b"")
        join = msgspec.structs.replace(join, signature=newcomer.sign(join.signed_bytes()))
        frame = await wire.request(registry("join", joiner.party), encode(join), timeout_s=5)
        return decode(frame, Admitted)


async def test_from_ticket_to_revocation(tmp_path: Path) -> None:
    """Every step is held to its NATS permissions, and the revoked are cut off at once."""
    clock = SystemClock()
    async with (
        nats_server(NatsServerSettings(tmp_path / "nats", port=0)) as server,
        open_store(tmp_path / "registry.db") as store,
        connect_nats(_settings(server, _SELF, Role.REGISTRY)) as own,
        connect_nats(_settings(server, _OPERATOR, Role.OPERATOR)) as operator,
        anyio.create_task_group() as tasks,
    ):
        config = RegistryConfig("real", BLOCK_MS, (server.url,), {_OPERATOR.party: Role.OPERATOR})

        async def run(*, task_status) -> None:
            await run_registry(
                *(config, own, store, server.authority.account, clock, _CHANCE),
                on_revoke=server.revoke,
                task_status=task_status,
            )

        await tasks.start(run)
        ticket = JoinTicket.parse((await _query(operator, "create_token"))["token"])
        newcomer = Identity.create(_CHANCE)
        admitted = await _join(ticket, newcomer)
        read_credential(admitted.credential, ticket.account, clock.now_ms())

        settings = NatsSettings(ticket.urls, newcomer, lambda: admitted.credential)
        async with connect_nats(settings) as wire, Outbox(tmp_path / "outbox.db") as outbox:
            confirmer = Confirmer(wire, newcomer, outbox, "real", BLOCK_MS, Side.NODE, clock)
            for number in range(10):
                await confirmer.record(record(number, node=newcomer))
            assert await confirmer.flush()
            assert (await _query(operator, "ledger"))["totals"]["waiting"] == 10
            await _query(operator, "revoke_party", party=newcomer.party)
            with anyio.fail_after(5):
                await wire.wait_refused()
            await confirmer.record(record(10, node=newcomer))
            with anyio.move_on_after(0.3):
                assert not await confirmer.flush()
            assert outbox.depth == 1
        with pytest.raises((PartyRefused, Unavailable)):
            async with connect_nats(settings):
                pass
        assert (await _query(operator, "check"))["problems"] == []
        tasks.cancel_scope.cancel()
