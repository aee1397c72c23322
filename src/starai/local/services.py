"""The edge of each service's process: opens what it needs from the home folder, and runs it.

Each imports its own service when it is run: a device that joins does not wait for the gateway.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from starai.core.clock import SystemClock
from starai.core.concurrency import stopped_gently
from starai.core.errors import ConfigurationRefused
from starai.core.randomness import SystemRandomness
from starai.engines.base import EngineSpec
from starai.exchange.callee.leaving import STOPPED
from starai.exchange.member import Member
from starai.exchange.recording.confirming import Confirmer
from starai.exchange.recording.cosigning import cosigning
from starai.local.asking import OPERATOR
from starai.local.home import Home
from starai.local.membership import CREDENTIAL_LIFETIME_MS, membership
from starai.models.catalog import MOCK_NAME, open_model
from starai.node.yielding.base import UNLIMITED, Limits
from starai.protocol.identity import Identity, PartyId
from starai.protocol.payouts import ADDRESS_BYTES, parse_vault
from starai.protocol.registry import Side
from starai.protocol.subjects import Role
from starai.wire.keeping import add_revoked, load_or_create_authority
from starai.wire.outbox import Outbox
from starai.wire.server import push_account

#: The names of the services that `starai up` runs, in parties/ and logs/.
REGISTRY, DISTRIBUTOR, GATEWAY = "registry", "distributor", "gateway"
#: A service that is told to stop has this much longer than what it waits for in turn.
OVERTIME_S = 1.0
HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None


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


@dataclass(frozen=True)
class NodeOptions:
    """What a node serves. ``threads`` 0: as many as the engine likes.

    ``engine`` has the engine's own options, each as ``name=value``; ``engine_url`` a server that
    runs the model already. ``limits`` is what the device's owner allows, ``region`` what he says of
    where it is.
    """

    model: str
    slots: int = 8
    threads: int = 0
    label: str = ""
    step_delay_ms: float = 0.0
    engine: tuple[str, ...] = ()
    engine_url: str = ""
    limits: Limits = UNLIMITED
    region: str = ""


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


def engine_spec(models: Path, options: NodeOptions) -> EngineSpec:
    """Which engine serves a model: the native one, a server's, or the mock for tests.

    Raises:
        ConfigurationRefused: the native engine is not installed.
        ModelNotFound, ModelFileRefused: the model cannot be served.
    """
    manifest = open_model(options.model, models)
    extra = _engine_options(options.engine)
    kind = MOCK_NAME if manifest.kind == MOCK_NAME else "text"
    if options.engine_url:
        kind, extra = "external", {"url": options.engine_url, **extra}
    if manifest.kind == "served" and kind != "external":
        raise ConfigurationRefused(
            f"{manifest.name} has no weights here: say by --engine-url which server has them"
        )
    if kind == "text" and importlib.util.find_spec("torch") is None:
        raise ConfigurationRefused(
            'the native engine is not installed here: pip install "starai[engine]"'
        )
    if kind == MOCK_NAME:
        extra["step_delay_ms"] = options.step_delay_ms
    return EngineSpec(
        kind=kind,
        model=options.model,
        store=str(models),
        slots=options.slots,
        threads=_threads(options),
        options=extra,
    )


def _threads(options: NodeOptions) -> int:
    cores = options.limits.max_cores
    return min(options.threads or cores, cores) if cores else options.threads


def _engine_options(given: tuple[str, ...]) -> dict[str, float | str]:
    """``name=value`` as the engine takes them: numbers as numbers."""
    options: dict[str, float | str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise ConfigurationRefused(f"{one!r} is no engine option: write NAME=VALUE, as bits=8")
        try:
            options[name] = float(value)
        except ValueError:
            options[name] = value
    return options
