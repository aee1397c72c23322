"""Getting in and noticing the end: one dial to the servers, and the watch over what came of it.

Knows the addresses, what a refusal looks like, and which server answered last; whether and when to
dial again is `starai.wire.nats`' business, and what is wrong when nobody answers that of
`starai.wire.diagnosis`.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import anyio
import msgspec

from starai.core.concurrency import task_group
from starai.core.errors import ConfigurationRefused, PartyRefused, Unavailable
from starai.core.randomness import Randomness, SystemRandomness
from starai.protocol.identity import Identity
from starai.wire.link import Link, LinkLost, Receive, ServerInfo, open_link
from starai.wire.websocket import open_websocket

#: One attempt to connect and log in.
CONNECT_TIMEOUT_S: Final = 5.0
#: A server that has not let us in by then gets company: the next one is tried beside it, so that
#: a port that a firewall swallows costs this long and not a whole timeout.
STAGGER_S: Final = 0.75
#: A connection that says nothing for an interval and then not even "PONG" is dead.
PING_INTERVAL_S: Final = 5.0
PING_TIMEOUT_S: Final = 5.0

#: What a URL's scheme means: the port that is meant when none is said, and whether TLS is spoken.
_SCHEMES: Final = {
    "nats": (4222, False),
    "tls": (4222, True),
    "ws": (80, False),
    "wss": (443, True),
}
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


class Address(NamedTuple):
    """A server's URL, taken apart."""

    url: str
    scheme: str
    host: str
    port: int
    secure: bool

    @property
    def is_websocket(self) -> bool:
        """Whether NATS' bytes travel in WebSocket frames."""
        return self.scheme in ("ws", "wss")


@dataclass(frozen=True)
class NatsSettings:
    """Where and as whom to connect.

    Attributes:
        urls: ``nats://``, ``tls://``, ``ws://`` or ``wss://`` and ``host:port``, best first;
            those of one scheme count as equals, over which parties spread.
        identity: the party's key; it signs the server's nonce.
        credential: gives the current user JWT; called at each dial, must not block.
        tls: trust for secure URLs, the system's if none. With it, ``nats://`` to another machine
            is secure too: who was given a certificate to trust is not talked out of using it.
        first_connect_s: how long to look for a server before giving up the first time.
        proxy: ``http://host:port`` that WebSockets go through; empty for none.
    """

    urls: tuple[str, ...]
    identity: Identity
    credential: Callable[[], str]
    tls: ssl.SSLContext | None = None
    first_connect_s: float = 10.0
    proxy: str = field(default="", repr=False)


def parse_address(url: str, *, trusted: bool = False) -> Address:
    """``url`` taken apart; ``trusted`` says that there is a certificate to hold the server to.

    Raises:
        ConfigurationRefused: it is malformed.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in _SCHEMES or not parts.hostname or port == -1:
        raise ConfigurationRefused(
            f"not a NATS address: {url!r}; expected nats://host:port, tls://, ws:// or wss://"
        )
    usual, secure = _SCHEMES[parts.scheme]
    if parts.scheme == "nats" and trusted and parts.hostname not in _LOOPBACK:
        secure = True
    return Address(url, parts.scheme, parts.hostname, port or usual, secure)


class Dialer:
    """Opens links for one party."""

    def __init__(
        self,
        settings: NatsSettings,
        receive: Receive,
        complain: Callable[[Link, str], None],
        randomness: Randomness | None = None,
    ) -> None:
        """Take what every link shall do with messages and with the server's complaints.

        Raises:
            ConfigurationRefused: a URL is malformed.
        """
        self._settings = settings
        found = [parse_address(url, trusted=settings.tls is not None) for url in settings.urls]
        self._servers = _spread(found, settings.identity)
        self._receive = receive
        self._complain = complain
        self._randomness = randomness or SystemRandomness()
        #: The credential shown last.
        self.presented = ""

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers in the order of trying; the one that let us in last is first."""
        return tuple(server.url for server in self._servers)

    async def dial(self) -> Link:
        """A link to the first server that takes us; it is tried first from then on.

        Raises:
            PartyRefused: none takes us, and one of them said that we may not.
            Unavailable: none of them answers.
        """
        race = _Race()
        try:
            async with task_group() as tasks:
                for server in self._servers:
                    tasks.start_soon(self._compete, race, server, tasks.cancel_scope)
                    with anyio.move_on_after(STAGGER_S):
                        await race.next_one()
        except BaseException:
            race.give_up()
            raise
        if race.link is not None and race.winner is not None:
            rest = [server for server in self._servers if server is not race.winner]
            self._servers = [race.winner, *rest]
            return race.link
        if race.refused is not None:
            raise race.refused
        urls = ", ".join(self._settings.urls)
        raise Unavailable(f"no NATS server lets us in at {urls} ({race.failure}); is it running?")

    async def _compete(self, race: _Race, server: Address, scope: anyio.CancelScope) -> None:
        try:
            link = await self._attempt(server)
        except PartyRefused as refused:
            race.refused = refused
        except Unavailable as failure:
            race.failure = failure.message
        else:
            if race.link is not None:
                link.abort()
                return
            race.link, race.winner = link, server
            scope.cancel()
        finally:
            race.wake()

    async def _attempt(self, server: Address) -> Link:
        settings = self._settings
        link = Link(self._receive, self._complain)
        tls = (settings.tls or ssl.create_default_context()) if server.secure else None
        try:
            with anyio.fail_after(CONNECT_TIMEOUT_S):
                if server.is_websocket:
                    await open_websocket(link, server.url, tls, self._randomness, settings.proxy)
                    await self._log_in(link)
                else:
                    await open_link(server.host, server.port, link, self._greet, tls)
        except LinkLost:
            if "authorization" in link.fault or "authentication" in link.fault:
                raise refusal() from None
            raise Unavailable(link.fault or "it hung up") from None
        except TimeoutError:
            raise Unavailable("it does not answer in time") from None
        except OSError as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from error
        return link

    async def _log_in(self, link: Link) -> None:
        """What `open_link` does, once a WebSocket is open: its TLS, if any, is spoken already."""
        try:
            await link.greeted.wait()
            if not link.closed.is_set():
                link.send(self._greet(link.info))
            await link.round_trip()
        except BaseException:
            link.abort()
            raise

    def _greet(self, info: ServerInfo) -> bytes:
        identity = self._settings.identity
        self.presented = self._settings.credential()
        signature = identity.sign(info.nonce.encode())
        options = {
            "verbose": False,
            "pedantic": False,
            "lang": "python",
            "version": "starai",
            "name": identity.party[:12],
            "protocol": 1,
            "headers": True,
            "no_responders": True,
            "jwt": self.presented,
            "sig": base64.urlsafe_b64encode(signature).decode().rstrip("="),
        }
        return b"CONNECT " + msgspec.json.encode(options) + b"\r\n"


class _Race:
    """Attempts side by side: who won, or why nobody did."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.winner: Address | None = None
        self.refused: PartyRefused | None = None
        self.failure = ""
        self._ended = anyio.Event()

    async def next_one(self) -> None:
        """Wait until any attempt has ended."""
        await self._ended.wait()

    def wake(self) -> None:
        """An attempt has ended."""
        self._ended.set()
        self._ended = anyio.Event()

    def give_up(self) -> None:
        """Nobody wants the winner any more."""
        if self.link is not None:
            self.link.abort()


def _spread(servers: list[Address], identity: Identity) -> list[Address]:
    """The same order of schemes; within one, each party begins at a server of its own."""
    order: list[Address] = []
    for _, group in groupby(servers, key=lambda one: one.scheme):
        equals = list(group)
        first = identity.raw[0] % len(equals)
        order += equals[first:] + equals[:first]
    return order


def refusal() -> PartyRefused:
    """What to tell a party that the network does not let in."""
    return PartyRefused(
        "the network refused this credential: it has expired, was revoked, or does not belong to "
        "this key; join again with a new token"
    )


async def watch(link: Link) -> None:
    """Return once ``link`` has ended; end it when the other side no longer answers."""
    while not link.closed.is_set():
        with anyio.move_on_after(PING_INTERVAL_S):
            await link.closed.wait()
            return
        with anyio.move_on_after(PING_TIMEOUT_S) as patience:
            try:
                await link.round_trip()
            except LinkLost:
                return
        if patience.cancelled_caught:
            link.fault = "it no longer answers"
            link.abort()
            return
