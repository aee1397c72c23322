"""Getting in and noticing the end: one dial to the first server that takes us, and its watch.

Knows what a refusal looks like; whether and when to dial again is `starai.wire.nats`' business.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import anyio
import msgspec

from starai.core.errors import ConfigurationRefused, PartyRefused, Unavailable
from starai.protocol.identity import Identity
from starai.wire.link import Link, LinkLost, Receive, ServerInfo, open_link

#: One attempt to connect and log in.
CONNECT_TIMEOUT_S: Final = 5.0
#: A connection that says nothing for an interval and then not even "PONG" is dead.
PING_INTERVAL_S: Final = 5.0
PING_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True)
class NatsSettings:
    """Where and as whom to connect.

    Attributes:
        urls: ``nats://host:port`` or ``tls://host:port``, tried in turn.
        identity: the party's key; it signs the server's nonce.
        credential: gives the current user JWT; called at each dial, must not block.
        tls: trust for ``tls://`` URLs, the system's if none.
        first_connect_s: how long to look for a server before giving up the first time.
    """

    urls: tuple[str, ...]
    identity: Identity
    credential: Callable[[], str]
    tls: ssl.SSLContext | None = None
    first_connect_s: float = 10.0


class Dialer:
    """Opens links for one party."""

    def __init__(
        self,
        settings: NatsSettings,
        receive: Receive,
        complain: Callable[[Link, str], None],
    ) -> None:
        """Take what every link shall do with messages and with the server's complaints.

        Raises:
            ConfigurationRefused: a URL is malformed.
        """
        self._settings = settings
        self._servers = [_address(url) for url in settings.urls]
        self._receive = receive
        self._complain = complain
        #: The credential shown last.
        self.presented = ""

    async def dial(self) -> Link:
        """A link to the first server that takes us.

        Raises:
            PartyRefused: one of them said that we may not.
            Unavailable: none of them answers.
        """
        failure = ""
        for host, port, secure in self._servers:
            link = Link(self._receive, self._complain)
            tls = (self._settings.tls or ssl.create_default_context()) if secure else None
            try:
                with anyio.fail_after(CONNECT_TIMEOUT_S):
                    await open_link(host, port, link, self._greet, tls)
            except LinkLost:
                if "authorization" in link.fault or "authentication" in link.fault:
                    raise refusal() from None
                failure = link.fault or "it hung up"
            except (OSError, TimeoutError) as error:
                failure = type(error).__name__
            else:
                return link
        urls = ", ".join(self._settings.urls)
        raise Unavailable(f"no NATS server lets us in at {urls} ({failure}); is it running?")

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


def refusal() -> PartyRefused:
    """What to tell a party that the network does not let in."""
    return PartyRefused(
        "the network refused this credential: it has expired, was revoked, or does not belong to "
        "this key; join again with a new token"
    )


def _address(url: str) -> tuple[str, int, bool]:
    """Host, port and whether to speak TLS."""
    parts = urlsplit(url)
    if parts.scheme not in ("nats", "tls") or not parts.hostname:
        raise ConfigurationRefused(f"not a NATS address: {url!r}; expected nats://host:port")
    return parts.hostname, parts.port or 4222, parts.scheme == "tls"


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
