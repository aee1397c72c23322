"""Which NATS servers a network runs, and where: on loopback for its own services, and a public one.

The public server is one of its own, routed to the others: it speaks TLS and nothing else, by TCP
and by WebSocket, while the services' own traffic stays on loopback and pays for no encryption
that the seals do not give already.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from starai.core.clock import Clock
from starai.core.errors import ConfigurationRefused
from starai.core.randomness import Randomness
from starai.wire.certificates import TlsFiles, load_or_create_ca, read_der
from starai.wire.listening import LOOPBACK, NatsServerSettings, WebSocketListener, clustered

#: Where devices elsewhere connect, unless they are told another port.
PUBLIC_PORT: Final = 4443
#: 443 needs a privilege on most systems; a router can forward it here.
PUBLIC_WEBSOCKET_PORT: Final = 8443


@dataclass(frozen=True)
class PublicDoor:
    """Where devices elsewhere reach the network.

    Attributes:
        address: the name or address under which they reach this machine, and the TCP port if it
            is not `PUBLIC_PORT`: ``HOST`` or ``HOST:PORT``.
        websocket_port: the port of the WebSocket door.
        certificate: a PEM file to show instead of one by the network's own authority.
        key: its key.
        ca: who vouches for it, if that is no public authority.
    """

    address: str
    websocket_port: int = PUBLIC_WEBSOCKET_PORT
    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    @property
    def host(self) -> str:
        """The name or address alone."""
        return self._parts()[0]

    @property
    def port(self) -> int:
        """The TCP port."""
        return self._parts()[1]

    @property
    def urls(self) -> tuple[str, ...]:
        """What join tickets say: TCP first, and the WebSocket for who is not let out otherwise."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tls://{host}:{self.port}", f"wss://{host}:{self.websocket_port}"

    def _parts(self) -> tuple[str, int]:
        host, port, more = "", 0, ""
        with suppress(ValueError):
            parts = urlsplit(f"//{self.address}")
            host, port, more = parts.hostname or "", parts.port or PUBLIC_PORT, parts.path
        if not re.fullmatch(r"[\w.:-]+", host, re.ASCII) or more:
            raise ConfigurationRefused(
                f"--public {self.address!r}: expected the name or address of this machine as "
                "others see it, HOST or HOST:PORT"
            )
        return host, port


@dataclass(frozen=True)
class Servers:
    """What to run: the servers of this machine's services first, then the public one, if any.

    ``public_urls`` and ``ca`` (a certificate, DER) go into join tickets.
    """

    settings: tuple[NatsServerSettings, ...]
    num_local: int
    public_urls: tuple[str, ...] = ()
    ca: bytes = b""


def plan_servers(
    folder: Path,
    port: int,
    num_local: int,
    door: PublicDoor | None,
    clock: Clock,
    randomness: Randomness,
) -> Servers:
    """The servers of a network whose authority is in ``folder``; makes the certificates they need.

    Raises:
        ConfigurationRefused: the public address or a certificate cannot be used.
        StoreFailed: a certificate cannot be written.
    """
    settings = [NatsServerSettings(folder, port=port)]
    settings += [
        NatsServerSettings(folder, port=0, folder=folder / f"nats-{number}")
        for number in range(2, num_local + 1)
    ]
    if door is None:
        made = clustered(settings, randomness) if num_local > 1 else tuple(settings)
        return Servers(made, num_local)
    files, ca = _certificate(folder / "tls", door, clock)
    settings.append(_public(folder, door, files))
    return Servers(clustered(settings, randomness), num_local, door.urls, ca)


def _public(folder: Path, door: PublicDoor, files: TlsFiles) -> NatsServerSettings:
    everywhere = "::" if ":" in door.host else "0.0.0.0"  # noqa: S104 - that is its purpose
    if door.host in LOOPBACK:
        everywhere = door.host
    return NatsServerSettings(
        folder,
        host=everywhere,
        port=door.port,
        folder=folder / "nats-public",
        tls=files,
        websocket=WebSocketListener(everywhere, door.websocket_port),
    )


def _certificate(folder: Path, door: PublicDoor, clock: Clock) -> tuple[TlsFiles, bytes]:
    """What the public server shows, and the certificate to put into tickets; empty: none needed."""
    if door.certificate is None and door.key is None:
        authority = load_or_create_ca(folder, clock)
        return authority.issue((door.host,), clock), authority.der
    if door.certificate is None or door.key is None:
        raise ConfigurationRefused("a certificate needs its key: give --tls-cert and --tls-key")
    for path in (door.certificate, door.key):
        if not path.is_file():
            raise ConfigurationRefused(f"there is no file {path}")
    files = TlsFiles(door.certificate.absolute(), door.key.absolute())
    return files, read_der(door.ca) if door.ca is not None else b""
