"""`starai up`: a whole network on this machine, as processes that are watched and stopped in order.

NATS first, then the registry, then all others at once. Every service has its own key and may use
its own subjects only; nodes join with one-time tokens like any supplier's.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import httpx

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

from starai.core.clock import Clock, SystemClock
from starai.core.errors import ConfigurationRefused, DeadlinePassed, Unavailable
from starai.core.randomness import Randomness, SystemRandomness
from starai.local.admission import is_admitted
from starai.local.asking import Operator, operator
from starai.local.doors import PublicDoor, Servers, plan_servers
from starai.local.home import ClientFile, Home, NetworkFile
from starai.local.membership import create_party
from starai.local.nodes import NodeOptions, engine_spec
from starai.local.processes import Processes, Service, processes
from starai.local.services import (
    DISTRIBUTOR,
    GATEWAY,
    REGISTRY,
    local_parties,
    numbered,
)
from starai.models.catalog import SERVED_PREFIX, open_model
from starai.protocol.subjects import Role
from starai.wire.keeping import load_or_create_authority
from starai.wire.server import NatsServer, nats_servers

#: Confirmation blocks of a local network: short, so that people see tasks matched soon.
LOCAL_BLOCK_MS = 2_000
#: A node that loads a large model may take long; this is for the embedded one and the services.
READY_S = 300.0
LOOK_S = 0.05
#: A service that dies this often while the network starts will not come up.
GIVE_UP_RESTARTS = 3
TOKEN_LIFETIME_MS = 3_600_000
PORT_MAX = 65_535


@dataclass(frozen=True)
class UpSettings:
    """What to start. ``model`` is a reference of `starai.models.catalog.open_model`.

    Each gateway listens on a port of its own, from ``port`` on.
    """

    home: Home
    host: str = "127.0.0.1"
    port: int = 8000
    nats_port: int = 4222
    model: str = "embedded"
    nodes: int = 1
    slots: int = 8
    threads: int = 0
    step_delay_ms: float = 0.0
    engine: tuple[str, ...] = ()
    engine_url: str = ""
    cors_origins: tuple[str, ...] = ("*",)
    nats_servers: int = 1
    gateways: int = 1
    distributors: int = 1
    public: PublicDoor | None = None


@dataclass(frozen=True)
class Running:
    """A network that runs: what to print, and whom to ask; ``url`` is the first of ``urls``.

    ``public_urls`` is where devices elsewhere connect, and ``ca`` the certificate (DER) of the
    network's own authority that they are shown there; empty without `UpSettings.public`.
    """

    urls: tuple[str, ...]
    api_key: str
    model: str
    pids: Callable[[], dict[str, int]]
    operator: Operator
    public_urls: tuple[str, ...] = ()
    ca: bytes = b""

    @property
    def url(self) -> str:
        """Where the first gateway listens."""
        return self.urls[0]


@asynccontextmanager
async def network_up(
    settings: UpSettings, say: Callable[[str], None] = lambda _line: None
) -> AsyncIterator[Running]:
    """Have a network running inside the context; ``say`` hears what is being started.

    Raises:
        ConfigurationRefused: a port or the home folder is in use, or the model cannot be served.
        Unavailable: a service did not come up; the message names its log.
    """
    home, clock, randomness = settings.home, SystemClock(), SystemRandomness()
    model = open_model(settings.model, home.models)
    # Refused now rather than in a log.
    engine_spec(home.models, NodeOptions(settings.model, engine_url=settings.engine_url))
    with _sole_owner(home):
        for port in _ports(settings):
            _check_port_free(settings.host, port)
        say("starting NATS")
        plan = plan_servers(
            home.authority,
            settings.nats_port,
            settings.nats_servers,
            settings.public,
            clock,
            randomness,
        )
        async with nats_servers(plan.settings) as nats, processes(clock) as running:
            _write_network(settings, plan, nats, clock, randomness)
            say("starting the registry")
            await running.start(_service(home, REGISTRY, "serve", REGISTRY))
            async with operator(home) as asked:
                await _until_registry_answers(asked, running, home)
                say(f"starting gateways, distributors and {settings.nodes} node(s)")
                await _start_services(settings, running, asked, clock)
                urls = tuple(_url(settings.host, port) for port in _ports(settings))
                url = urls[0]
                say(f"loading {model.name}")
                for one in urls:
                    await _until_ready(one, running, home)
                key = await _api_key(home, url, asked)
                home.save_client(ClientFile(f"{url}/v1", key))

                def pids() -> dict[str, int]:
                    known = {name: running.pid(name) for name in running.names}
                    return {"starai": os.getpid(), **_nats_pids(plan, nats), **known}

                yield Running(urls, key, model.name, pids, asked, plan.public_urls, plan.ca)
                say("stopping")


def _nats_pids(plan: Servers, nats: tuple[NatsServer, ...]) -> dict[str, int]:
    """``nats``, ``nats-2`` … and ``nats-public``."""
    names = ["nats", *(f"nats-{number}" for number in range(2, plan.num_local + 1))]
    names += ["nats-public"] * (len(nats) - plan.num_local)
    return {name: server.pid for name, server in zip(names, nats, strict=True)}


def _write_network(
    settings: UpSettings,
    plan: Servers,
    nats: tuple[NatsServer, ...],
    clock: Clock,
    randomness: Randomness,
) -> None:
    """Keys and credentials of the services, and where the network is."""
    home = settings.home
    first, *more = (server.url for server in nats[: plan.num_local])
    authority = load_or_create_authority(home.authority, randomness)
    for name, role in local_parties(settings.gateways, settings.distributors).items():
        create_party(home, name, role, authority.account, clock, randomness)
    home.save_network(
        NetworkFile(
            name="local",
            account=authority.account.nkey,
            nats_url=first,
            block_ms=LOCAL_BLOCK_MS,
            gateway_url=_url(settings.host, settings.port),
            models=(_absolute(settings.model, home),),
            more_urls=tuple(more),
            public_urls=plan.public_urls,
            ca=plan.ca,
            gateways=settings.gateways,
            distributors=settings.distributors,
        )
    )


async def _start_services(
    settings: UpSettings, running: Processes, asked: Operator, clock: Clock
) -> None:
    home = settings.home
    for number in range(1, settings.nodes + 1):
        name = f"node-{number}"
        if not is_admitted(home, name, clock):
            token = await asked.create_token(Role.NODE, 1, TOKEN_LIFETIME_MS, name)
            await running.start(_node(settings, name, token))
        else:
            await running.start(_node(settings, name, ""))
    for name in numbered(DISTRIBUTOR, settings.distributors):
        await running.start(_service(home, name, "serve", DISTRIBUTOR, "--name", name))
    origins = [part for origin in settings.cors_origins for part in ("--cors-origin", origin)]
    names = numbered(GATEWAY, settings.gateways)
    for name, port in zip(names, _ports(settings), strict=True):
        where = ("--host", settings.host, "--port", str(port), *origins)
        await running.start(_service(home, name, "serve", GATEWAY, "--name", name, *where))


def _service(home: Home, name: str, *command: str, secret: dict[str, str] | None = None) -> Service:
    return Service(name, (*command, "--home", str(home.path)), home.log(name), secret or {})


def _node(settings: UpSettings, name: str, token: str) -> Service:
    # A token is like a password: it goes by the environment, where `ps` does not show it.
    return _service(
        settings.home,
        name,
        *("node", "start", "--name", name, "--label", name),
        *("--model", _absolute(settings.model, settings.home), "--slots", str(settings.slots)),
        *("--threads", str(settings.threads), "--step-delay-ms", str(settings.step_delay_ms)),
        *(("--engine-url", settings.engine_url) if settings.engine_url else ()),
        *(word for one in settings.engine for word in ("--engine", one)),
        "--no-polite",  # whoever tries a network out wants it to answer, whatever else runs
        secret={"STARAI_TOKEN": token},
    )


async def _api_key(home: Home, url: str, asked: Operator) -> str:
    """The key of the last run if it still opens the gateway, else a new one."""
    async with httpx.AsyncClient(base_url=url, timeout=5.0, trust_env=False) as client:

        async def opens(key: str) -> bool:
            with suppress(httpx.HTTPError):  # too slow to say: then a new key is made
                answer = await client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
                return answer.status_code == 200
            return False

        with suppress(ConfigurationRefused):
            known = home.client().api_key
            if await opens(known):
                return known
        made = await asked.create_key("local", 0, 0)
        for _ in range(100):  # the gateway hears of it within milliseconds
            if await opens(made):
                break
            await anyio.sleep(0.05)
        return made


async def _until_registry_answers(asked: Operator, running: Processes, home: Home) -> None:
    with anyio.move_on_after(READY_S):
        while running.restarts(REGISTRY) < GIVE_UP_RESTARTS:
            with suppress(Unavailable, DeadlinePassed):
                await asked.ask("keys")
                return
            await anyio.sleep(LOOK_S)
    raise Unavailable(f"the registry did not come up; see {home.log(REGISTRY)}")


async def _until_ready(url: str, running: Processes, home: Home) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=2.0, trust_env=False) as client:
        with anyio.move_on_after(READY_S):
            while True:
                with suppress(httpx.HTTPError):
                    if (await client.get("/readyz")).status_code == 200:
                        return
                for name in running.names:
                    if running.restarts(name) >= GIVE_UP_RESTARTS:
                        raise Unavailable(f"{name} keeps ending; {home.log(name)} says why")
                await anyio.sleep(LOOK_S)
    raise Unavailable(f"no node is ready to serve; see the logs in {home.log(GATEWAY).parent}")


def _ports(settings: UpSettings) -> range:
    """The gateways' ports.

    Raises:
        ConfigurationRefused: there are not as many above the first.
    """
    ports = range(settings.port, settings.port + settings.gateways)
    if ports[-1] > PORT_MAX:
        raise ConfigurationRefused(
            f"{settings.gateways} gateways from port {settings.port} on need ports above "
            f"{PORT_MAX}; choose a lower --port"
        )
    return ports


def _url(host: str, port: int) -> str:
    if host in ("0.0.0.0", "::"):  # noqa: S104 - recognised, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _absolute(reference: str, home: Home) -> str:
    """The reference as it is good in another folder too: a path becomes absolute."""
    model = open_model(reference, home.models)
    if model.kind == "served":
        return SERVED_PREFIX + model.path
    path = Path(reference).expanduser().resolve()
    return str(path) if model.path == str(path) else reference


def _check_port_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigurationRefused(
                f"port {port} on {host} is in use; is another `starai up` running? Stop it, or "
                f"choose other ports: starai up --port {port + 1} --nats-port 4223 --home FOLDER"
            ) from error


@contextmanager
def _sole_owner(home: Home) -> Iterator[None]:
    """Hold the home folder's lock; the system lets it go when this process ends."""
    home.path.mkdir(parents=True, exist_ok=True)
    with (home.path / "up.lock").open("a") as lock:
        try:
            if sys.platform == "win32":
                msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationRefused(
                f"a network is running from {home.path} already; use it, stop it, or start "
                "another: starai up --home FOLDER --port 8001 --nats-port 4223"
            ) from error
        yield
