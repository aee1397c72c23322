"""A whole network inside one Python program: every service, over an in-memory wire.

::

    from openai import OpenAI
    from starai.local import Network

    with Network() as network:
        client = OpenAI(base_url=network.base_url, api_key=network.api_key)

The services are the ones that `starai up` runs, with the same seals, credentials and books; only
the wire is memory, and the engine is still a process of its own. For programs that embed StarAI,
for examples and for tests.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import anyio
from anyio.abc import TaskGroup

from starai.core.clock import Clock, SystemClock
from starai.core.concurrency import task_group
from starai.core.errors import Unavailable
from starai.core.randomness import Randomness, SystemRandomness
from starai.distributor.service import Distributor
from starai.exchange.member import Member
from starai.exchange.recording.confirming import Confirmer
from starai.exchange.recording.cosigning import cosigning
from starai.gateway.config import GatewayConfig
from starai.gateway.dispatch import Dispatch
from starai.gateway.following import follow_keys, follow_prices
from starai.gateway.paying.funding import Funding
from starai.gateway.paying.keys import KeyRing
from starai.gateway.paying.pricing import PriceBook
from starai.gateway.service import serve
from starai.local.home import Home
from starai.local.membership import CREDENTIAL_LIFETIME_MS
from starai.local.nodes import NodeOptions, engine_spec
from starai.local.services import confirming
from starai.models.catalog import open_model
from starai.node.pricing import LeastPrices
from starai.node.runner import Runner
from starai.node.service import Node
from starai.protocol.api_keys import hash_api_key, new_api_key
from starai.protocol.credentials import issue_credential
from starai.protocol.identity import Identity, KeyKind
from starai.protocol.registry import Side
from starai.protocol.subjects import Role
from starai.registry.service import Registry, RegistryConfig
from starai.registry.storage import Store, open_store
from starai.wire.memory import MemoryNetwork

NAME = "embedded"
BLOCK_MS = 1_000
#: A large model may take this long to load.
READY_S = 300.0
LOOK_S = 0.05


@dataclass(frozen=True)
class NetworkSettings:
    """What to run. ``port`` 0 takes a free one; ``home`` None keeps nothing after the end."""

    model: str = "embedded"
    nodes: int = 1
    slots: int = 8
    threads: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    home: Path | None = None
    step_delay_ms: float = 0.0
    engine: tuple[str, ...] = ()


@dataclass(frozen=True)
class Embedded:
    """A running network: where its API is, a key that opens it, and its registry.

    ``store`` is what the registry writes to, ``account`` signs for the network, ``nodes`` are the
    nodes' identities: for programs that also close its days.
    """

    base_url: str
    api_key: str
    model: str
    registry: Registry
    store: Store
    account: Identity
    nodes: tuple[Identity, ...]


class _Assembly:
    """Puts the services together."""

    def __init__(self, settings: NetworkSettings, home: Home, stack: AsyncExitStack) -> None:
        self.settings = settings
        self.home = home
        self.stack = stack
        self.clock: Clock = SystemClock()
        self.randomness: Randomness = SystemRandomness()
        self.account = Identity.create(self.randomness, KeyKind.ACCOUNT)
        self.wires = MemoryNetwork(self.randomness)

    def member(self, role: Role) -> Member:
        identity = Identity.create(self.randomness)
        credential = issue_credential(
            self.account, identity.party, role, CREDENTIAL_LIFETIME_MS, self.clock.now_ms()
        )
        return Member(
            wire=self.wires.connect(identity.party, role),
            identity=identity,
            credential=lambda: credential,
            account=self.account.nkey,
            network=NAME,
            block_ms=BLOCK_MS,
            clock=self.clock,
            randomness=self.randomness,
        )

    async def start(self) -> Embedded:
        await self.stack.enter_async_context(self.wires)
        gateway, distributor = self.member(Role.GATEWAY), self.member(Role.DISTRIBUTOR)
        nodes = [self.member(Role.NODE) for _ in range(self.settings.nodes)]
        store = await self.stack.enter_async_context(open_store(self.home.registry_db))
        carried = await self._confirmer("distributor", distributor, Side.DISTRIBUTOR)
        done = [
            await self._confirmer(f"node-{number}", member, Side.NODE)
            for number, member in enumerate(nodes, start=1)
        ]
        # Opened last, so that it ends first: before the store and the outboxes are closed.
        group = await self.stack.enter_async_context(task_group())
        self.stack.callback(group.cancel_scope.cancel)
        registry = await self._start_registry(group, store, [gateway, distributor, *nodes])
        await group.start(Distributor(distributor, carried).run)
        for number, (member, confirmer) in enumerate(zip(nodes, done, strict=True), start=1):
            await self._start_node(group, member, confirmer, f"node-{number}")
        api_key = new_api_key(self.randomness)
        await registry.keys.create(NAME, key_hash=hash_api_key(api_key))
        base_url = await self._start_gateway(group, gateway)
        model = open_model(self.settings.model, self.home.models).name
        identities = tuple(member.identity for member in nodes)
        return Embedded(base_url, api_key, model, registry, store, self.account, identities)

    async def _confirmer(self, name: str, member: Member, side: Side) -> Confirmer:
        return await self.stack.enter_async_context(confirming(self.home, name, member, side))

    async def _start_registry(
        self, group: TaskGroup, store: Store, members: list[Member]
    ) -> Registry:
        member = self.member(Role.REGISTRY)
        roles = (Role.GATEWAY, Role.DISTRIBUTOR, *[Role.NODE] * self.settings.nodes)
        parties = {one.identity.party: role for one, role in zip(members, roles, strict=True)}
        config = RegistryConfig(network=NAME, block_ms=BLOCK_MS, parties=parties)
        registry = Registry(config, member.wire, store, self.account, self.clock, self.randomness)
        await group.start(registry.run)
        return registry

    async def _start_node(
        self, group: TaskGroup, member: Member, confirmer: Confirmer, name: str
    ) -> None:
        settings = self.settings
        options = NodeOptions(
            settings.model,
            slots=settings.slots,
            threads=settings.threads,
            step_delay_ms=settings.step_delay_ms,
            engine=settings.engine,
        )
        runner = Runner(engine_spec(self.home.models, options), self.clock)
        group.start_soon(runner.run)
        await self._have_witness(name, member, Role.NODE)
        prices = LeastPrices(self.clock)
        await group.start(Node(member, runner, confirmer, name, prices=prices).run)

    async def _have_witness(self, name: str, member: Member, role: Role) -> None:
        witnessing = cosigning(member, role, self.home.witness(name))
        await self.stack.enter_async_context(witnessing)

    async def _start_gateway(self, group: TaskGroup, member: Member) -> str:
        settings = self.settings
        models = (open_model(settings.model, self.home.models),)
        config = GatewayConfig(models=models, host=settings.host, port=settings.port)
        dispatch, keys, prices = Dispatch(member), KeyRing(), PriceBook()
        funding = Funding(member, keys, prices)
        await self.stack.enter_async_context(dispatch.running())
        await self.stack.enter_async_context(follow_keys(member, keys))
        await self.stack.enter_async_context(follow_prices(member, prices))
        await self.stack.enter_async_context(funding.running())
        await self._have_witness("gateway", member, Role.GATEWAY)

        async def run(*, task_status: anyio.abc.TaskStatus[str]) -> None:
            await serve(
                *(config, dispatch, keys, self.clock, self.randomness),
                funding=funding,
                task_status=task_status,
            )

        await _until(lambda: dispatch.is_ready and keys.loaded and prices.loaded)
        return f"{await group.start(run)}/v1"


async def _until(ready: Callable[[], bool]) -> None:
    for _ in range(int(READY_S / LOOK_S)):
        if ready():
            return
        await anyio.sleep(LOOK_S)
    raise Unavailable("no node could load the model")


@asynccontextmanager
async def embedded(settings: NetworkSettings) -> AsyncIterator[Embedded]:
    """Have a network running inside the context; for programs on asyncio.

    Raises:
        ModelNotFound, ModelFileRefused: the model cannot be served.
        Unavailable: no node came up.
    """
    async with AsyncExitStack() as stack:
        folder = settings.home
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="starai-")))
        yield await _Assembly(settings, Home(folder), stack).start()


class Network:
    """A network in a background thread, for ordinary programs: use it with ``with``."""

    def __init__(
        self, model: str = "embedded", *, nodes: int = 1, port: int = 0, home: Path | None = None
    ) -> None:
        """Serve ``model`` (a reference of `starai.models.catalog.open_model`) on some nodes."""
        self._settings = NetworkSettings(model=model, nodes=nodes, port=port, home=home)
        self._thread = threading.Thread(target=self._run, name="starai-network", daemon=True)
        self._settled = threading.Event()
        self._stop: anyio.Event | None = None
        self._token: anyio.lowlevel.EventLoopToken | None = None
        self._running: Embedded | None = None
        self._error: BaseException | None = None

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as its base URL."""
        return self._up().base_url

    @property
    def api_key(self) -> str:
        """A key that opens the gateway."""
        return self._up().api_key

    @property
    def model(self) -> str:
        """The served model's name."""
        return self._up().model

    def __enter__(self) -> Self:
        self._thread.start()
        self._settled.wait()
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        if self._stop is not None and self._token is not None and self._running is not None:
            anyio.from_thread.run_sync(self._stop.set, token=self._token)
        self._thread.join()

    def _up(self) -> Embedded:
        if self._running is None:
            raise Unavailable("the network is not running: use it inside `with Network() as ...`")
        return self._running

    def _run(self) -> None:
        try:
            anyio.run(self._main)
        except BaseException as error:  # noqa: BLE001 - raised again where the network is entered
            while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]
            self._error = error
        finally:
            self._running = None
            self._settled.set()

    async def _main(self) -> None:
        self._stop = anyio.Event()
        self._token = anyio.lowlevel.current_token()
        async with embedded(self._settings) as running:
            self._running = running
            self._settled.set()
            await self._stop.wait()
