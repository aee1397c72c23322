"""What a NATS server is told: where it listens, for whom, and which servers it is routed to.

Three kinds of door, each shut to strangers: TCP and WebSocket for parties, who show a credential,
and routes for the servers of one cluster, which share a secret. Beyond loopback all of them speak
TLS. Knows how NATS writes its configuration; `starai.wire.server` runs the program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from starai.core.errors import ConfigurationRefused
from starai.core.limits import FRAME_BYTES_MAX
from starai.core.randomness import Randomness
from starai.wire.certificates import TlsFiles
from starai.wire.jwt import Authority
from starai.wire.program import claim_port

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
#: A TLS handshake over a slow mobile line.
_TLS_TIMEOUT_S: Final = 5
_ROUTE_USER: Final = "route"


@dataclass(frozen=True)
class WebSocketListener:
    """A WebSocket door beside the TCP one, with the same TLS; ``port`` 0 takes a free one."""

    host: str
    port: int


@dataclass(frozen=True)
class Cluster:
    """A server's place among others.

    Attributes:
        port: where it takes routes.
        routes: ``host:port`` of the others' route ports.
        secret: what all of them know and nobody else does.
        host: the address to take routes at; beyond loopback, ``tls`` is needed.
        tls: what it shows to other servers, and the authority to which it holds them.
    """

    port: int
    routes: tuple[str, ...]
    secret: str
    host: str = "127.0.0.1"
    tls: TlsFiles | None = None

    def __repr__(self) -> str:
        return f"Cluster({self.host}:{self.port}, routes={self.routes})"


@dataclass(frozen=True)
class NatsServerSettings:
    """What to run and where.

    Attributes:
        home: the folder of the network's keys; made if it is not there.
        host: the address to listen on; beyond loopback, ``tls`` is needed.
        port: the port to listen on; 0 for any free one.
        binary: the program; found on PATH or beside the Python interpreter if none is given.
        folder: the folder of this server's own files; ``home`` if none is given.
        tls: what it shows to parties; then all of them must speak TLS.
        websocket: a WebSocket door beside the TCP one.
        cluster: the servers it is routed to.
    """

    home: Path
    host: str = "127.0.0.1"
    port: int = 4222
    binary: Path | None = None
    folder: Path | None = None
    tls: TlsFiles | None = None
    websocket: WebSocketListener | None = None
    cluster: Cluster | None = None

    @property
    def own_folder(self) -> Path:
        """Where this server's own files are."""
        return (self.folder or self.home).absolute()

    def claimed(self) -> NatsServerSettings:
        """The same with every port seen to be free, and chosen where it was 0.

        Raises:
            ConfigurationRefused: a port is taken, or a door would be open to listeners-in.
        """
        self._check_doors()
        port = claim_port(self.host, self.port)
        websocket = self.websocket
        if websocket is not None:
            websocket = replace(websocket, port=claim_port(websocket.host, websocket.port))
        if self.cluster is not None:
            claim_port(self.cluster.host, self.cluster.port)
        return replace(self, port=port, websocket=websocket)

    def _check_doors(self) -> None:
        open_hosts = [self.host] if self.tls is None else []
        if self.websocket is not None and self.tls is None:
            open_hosts.append(self.websocket.host)
        if self.cluster is not None and self.cluster.tls is None:
            open_hosts.append(self.cluster.host)
        for host in open_hosts:
            if host not in LOOPBACK:
                raise ConfigurationRefused(
                    f"refusing to listen at {host} without TLS, where others could read along; "
                    "`starai up --public HOST` makes a certificate"
                )


def clustered(
    servers: Sequence[NatsServerSettings], randomness: Randomness
) -> tuple[NatsServerSettings, ...]:
    """The same servers, each routed to all others over loopback, with a secret made for it."""
    secret = randomness.take(24).hex()
    ports: list[int] = []
    while len(ports) < len(servers):
        port = claim_port("127.0.0.1", 0)
        if port not in (*ports, *(server.port for server in servers)):
            ports.append(port)
    return tuple(
        replace(
            server,
            cluster=Cluster(
                port=port,
                routes=tuple(f"127.0.0.1:{other}" for other in ports if other != port),
                secret=secret,
            ),
        )
        for server, port in zip(servers, ports, strict=True)
    )


def configuration(settings: NatsServerSettings, authority: Authority, now_ms: int) -> bytes:
    """The configuration file of a server whose ports are claimed."""
    folder = settings.own_folder
    said: dict[str, object] = {
        "host": settings.host,
        "port": settings.port,
        "server_name": f"starai-{settings.port}",
        "pid_file": str(folder / "nats.pid"),
        "log_file": str(folder / "nats.log"),
        "logfile_size_limit": 10_000_000,
        "logfile_max_num": 3,
        "max_payload": FRAME_BYTES_MAX,
        "ping_interval": "10s",
        "write_deadline": "5s",
        "operator": authority.operator_jwt(now_ms),
        "system_account": authority.system.nkey,
        # A credential of an unknown account is looked up among peers, then refused.
        "resolver": {"type": "full", "dir": str(folder / "accounts"), "timeout": "500ms"},
    }
    if settings.tls is not None:
        said["tls"] = _tls(settings.tls)
    if settings.websocket is not None:
        door = settings.websocket
        safety = {"no_tls": True} if settings.tls is None else {"tls": _tls(settings.tls)}
        said["websocket"] = {"host": door.host, "port": door.port, **safety}
    if settings.cluster is not None:
        said["cluster"] = _cluster(settings.cluster)
    # NATS' configuration language takes JSON strings, numbers and maps as they are.
    lines = (f"{key}: {msgspec.json.encode(value).decode()}" for key, value in said.items())
    return ("\n".join(lines) + "\n").encode()


def _tls(files: TlsFiles) -> dict[str, object]:
    return {
        "cert_file": str(files.certificate),
        "key_file": str(files.key),
        "timeout": _TLS_TIMEOUT_S,
    }


def _cluster(cluster: Cluster) -> dict[str, object]:
    said: dict[str, object] = {
        "name": "starai",
        "host": cluster.host,
        "port": cluster.port,
        "authorization": {"user": _ROUTE_USER, "password": cluster.secret, "timeout": 5},
        "routes": [f"nats-route://{_ROUTE_USER}:{cluster.secret}@{at}" for at in cluster.routes],
        # Parties have their servers' addresses from their tickets; those heard here are loopback's.
        "no_advertise": True,
    }
    if cluster.tls is not None:
        verify = {"ca_file": str(cluster.tls.ca), "verify": True} if cluster.tls.ca else {}
        said["tls"] = {**_tls(cluster.tls), **verify}
    return said
