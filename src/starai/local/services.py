"""The edge of each service's process: opens what it needs from the home folder, and runs it.

Each imports its own service when it is run: a device that joins does not wait for the gateway.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from starai.core.clock import SystemClock
from starai.core.concurrency import stopped_gently
from starai.core.errors import ConfigurationRefused
from starai.core.randomness import SystemRandomness
from starai.exchange.callee.leaving import STOPPED
from starai.exchange.member import Member
from starai.exchange.recording.confirming import Confirmer
from starai.exchange.recording.cosigning import cosigning
from starai.local.asking import OPERATOR
from starai.local.home import Home
from starai.local.membership import CREDENTIAL_LIFETIME_MS, membership
from starai.local.stopping import OVERTIME_S
from starai.models.catalog import open_model
from starai.protocol.identity import Identity, PartyId
from starai.protocol.payouts import ADDRESS_BYTES, parse_vault
from starai.protocol.registry import Side
from starai.protocol.subjects import Role
from starai.wire.keeping import add_revoked, load_or_create_authority
from starai.wire.outbox import Outbox
from starai.wire.server import push_account

#: The names of the services that `starai up` runs, in parties/ and logs/.
REGISTRY, DISTRIBUTOR, GATEWAY = "registry", "distributor", "gateway"


def numbered(name: str, number: int) -> tuple[str, ...]:
    """What several services of a kind are called: ``gateway``, ``gateway-2``, and so on."""
    return (name, *(f"{name}-{one}" for one in range(2, number + 1)))


def local_parties(gateways: int, distributors: int) -> dict[str, Role]:
    """Who gets a credential from the network's own keys; everybody else joins with a token."""
    return {
        REGISTRY: Role.REGISTRY,
        OPERATOR: Role.OPERATOR,
        **dict.fromkeys(numbered(DISTRIBUTOR, distributors), Role.DISTRIBUTOR),
        **dict.fromkeys(numbered(GATEWAY, gateways), Role.GATEWAY),
    }


async def serve_registry(home: Home, store: str = "", vault: str = "") -> None:
    """Run the registry until cancelled; ``store`` says where else than in ``home`` its state is.

    ``vault`` names the contract that pays nodes, as ``CHAIN_ID:0xADDRESS``.

    Raises:
        InvalidRequest: ``vault`` is not of that form.
        ConfigurationRefused: the database belongs to another network, or is in use.
        StoreFailed: the disk failed.
    """
    from starai.registry.service import RegistryConfig, run_registry  # noqa: PLC0415 - see above
    from starai.registry.storage import open_store  # noqa: PLC0415 - see above

    network, clock, randomness = home.network(), SystemClock(), SystemRandomness()
    authority = load_or_create_authority(home.authority, randomness)
    chain_id, contract = parse_vault(vault) if vault else (0, bytes(ADDRESS_BYTES))

    def reissue() -> str:
        party = Identity.from_seed(home.party(REGISTRY).seed).party
        return authority.user_jwt(party, Role.REGISTRY, CREDENTIAL_LIFETIME_MS, clock.now_ms())

    async def cut_off(party: PartyId) -> None:
        revoked = add_revoked(home.authority, party, clock)
        await push_account(authority, revoked, network.urls, clock, randomness)

    config = RegistryConfig(
        network=network.name,
        block_ms=network.block_ms,
        urls=network.public_urls or network.urls,
        ca=network.ca,
        exports=home.exports,
        chain_id=chain_id,
        contract=contract,
        parties={
            Identity.from_seed(home.party(name).seed).party: role
            for name, role in local_parties(network.gateways, network.distributors).items()
        },
    )
    async with (
        membership(home, REGISTRY, reissue=reissue) as member,
        open_store(store or home.registry_db) as opened,
    ):
        await run_registry(
            config,
            member.wire,
            opened,
            authority.account,
            clock,
            randomness,
            on_revoke=cut_off,
        )


async def serve_gateway(
    home: Home,
    host: str,
    port: int,
    cors_origins: tuple[str, ...],
    name: str = GATEWAY,
    *,
    models: tuple[str, ...] = (),
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
) -> None:
    """Run a gateway until cancelled, and then what runs to its end; with a certificate by TLS."""
    from starai.gateway.config import GatewayConfig  # noqa: PLC0415 - see above
    from starai.gateway.dispatch import Dispatch  # noqa: PLC0415 - see above
    from starai.gateway.following import follow_keys, follow_prices  # noqa: PLC0415 - see above
    from starai.gateway.paying.funding import Funding  # noqa: PLC0415 - see above
    from starai.gateway.paying.keys import KeyRing  # noqa: PLC0415 - see above
    from starai.gateway.paying.pricing import PriceBook  # noqa: PLC0415 - see above
    from starai.gateway.service import serve  # noqa: PLC0415 - see above

    network = home.network()
    references = models or network.models
    if not references:
        raise ConfigurationRefused("a gateway elsewhere is told what to offer: --model REFERENCE")
    config = GatewayConfig(
        models=tuple(open_model(reference, home.models) for reference in references),
        host=host,
        port=port,
        cors_origins=cors_origins,
        tls_cert=tls_cert,
        tls_key=tls_key,
    )
    clock, randomness = SystemClock(), SystemRandomness()
    listening = anyio.CancelScope()

    async def run() -> None:
        async with membership(home, name) as member:
            dispatch, keys, prices = Dispatch(member), KeyRing(), PriceBook()
            funding = Funding(member, keys, prices)
            witnessing = cosigning(member, Role.GATEWAY, home.witness(name))
            async with (
                dispatch.running(),
                follow_keys(member, keys),
                follow_prices(member, prices),
                funding.running(),
                witnessing,
            ):
                with listening:
                    await serve(config, dispatch, keys, clock, randomness, funding=funding)

    def stop() -> bool:
        listening.cancel()
        return True

    await stopped_gently(run, stop, config.stop_grace_s + OVERTIME_S)


async def serve_distributor(home: Home, name: str = DISTRIBUTOR) -> None:
    """Run a distributor until cancelled; then others go on with what it carries."""
    from starai.distributor.service import Distributor  # noqa: PLC0415 - see above

    serving: list[Distributor] = []

    async def run() -> None:
        async with (
            membership(home, name) as member,
            confirming(home, name, member, Side.DISTRIBUTOR) as confirmer,
        ):
            serving.append(Distributor(member, confirmer, measures_nodes=True))
            await serving[0].run()

    def stop() -> bool:
        for one in serving:
            one.leave()
        return bool(serving)

    await stopped_gently(run, stop, STOPPED.sum_s + OVERTIME_S)


@asynccontextmanager
async def confirming(home: Home, name: str, member: Member, side: Side) -> AsyncIterator[Confirmer]:
    """A party's way to the registry, with its outbox."""
    async with Outbox(home.outbox(name)) as outbox:
        yield Confirmer(
            wire=member.wire,
            identity=member.identity,
            outbox=outbox,
            network=member.network,
            block_ms=member.block_ms,
            side=side,
            clock=member.clock,
        )
