"""Being a member of a network over NATS: connect, renew the credential in time, stop if refused."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

from starai.core.clock import Clock, SystemClock
from starai.core.concurrency import task_group
from starai.core.errors import PartyRefused, StarAIError
from starai.core.logging import event
from starai.core.randomness import Randomness, SystemRandomness
from starai.exchange.member import Member
from starai.local.home import Home, PartyFile
from starai.local.proxies import system_proxy
from starai.protocol.credentials import issue_credential, read_credential
from starai.protocol.frames import decode, encode, peek
from starai.protocol.identity import Identity
from starai.protocol.registry import Acknowledged, Admitted, Renew
from starai.protocol.subjects import Role, registry
from starai.wire.certificates import trust
from starai.wire.dialing import NatsSettings
from starai.wire.nats import NatsWire, connect_nats

_LOG = logging.getLogger(__name__)

#: A credential issued on this machine; renewed by the registry while a service runs.
CREDENTIAL_LIFETIME_MS = 24 * 3_600_000
#: A credential is renewed when this share of its life is over.
RENEW_AT = 0.75
#: How long to wait before a failed renewal is tried again.
RENEW_RETRY_S = 30.0
RENEW_TIMEOUT_S = 5.0


class _Credential:
    """The current credential, in memory and in the party's file."""

    def __init__(self, home: Home, name: str, account: str, clock: Clock) -> None:
        self._home = home
        self._name = name
        self.file = home.party(name)
        self.identity = Identity.from_seed(self.file.seed)
        self.known = read_credential(self.file.credential, account, clock.now_ms())

    def __call__(self) -> str:
        return self.file.credential

    def replace(self, credential: str, account: str, now_ms: int) -> None:
        self.known = read_credential(credential, account, now_ms)
        self.file = PartyFile(self.file.seed, credential)
        self._home.save_party(self._name, self.file)

    def renew_in_s(self, now_ms: int) -> float:
        life_ms = self.known.expires_ms - self.known.issued_ms
        return max(0.0, (self.known.issued_ms + RENEW_AT * life_ms - now_ms) / 1000)


@asynccontextmanager
async def membership(
    home: Home,
    name: str,
    *,
    reissue: Callable[[], str] | None = None,
    clock: Clock | None = None,
    randomness: Randomness | None = None,
) -> AsyncIterator[Member]:
    """Be the party ``name`` of this home inside the context.

    Its credential is renewed by the registry in time, or by ``reissue`` for the registry itself.

    Raises:
        PartyRefused: the network does not (or no longer) let this party in.
        Unavailable: NATS cannot be reached.
        ConfigurationRefused: there is no such party or network in this home.
    """
    network, clock = home.network(), clock or SystemClock()
    credential = _Credential(home, name, network.account, clock)
    settings = NatsSettings(
        network.urls,
        credential.identity,
        credential,
        tls=trust(network.ca),
        proxy=system_proxy(network.urls),
    )
    async with connect_nats(settings) as wire, task_group() as group:
        member = Member(
            wire=wire,
            identity=credential.identity,
            credential=credential,
            account=network.account,
            network=network.name,
            block_ms=network.block_ms,
            clock=clock,
            randomness=randomness or SystemRandomness(),
        )
        group.start_soon(_stop_when_refused, wire)
        renewal = _Renewal(wire, credential, network.account, clock, reissue)
        group.start_soon(renewal.run)
        yield member
        group.cancel_scope.cancel()


def create_party(
    home: Home, name: str, role: Role, account: Identity, clock: Clock, randomness: Randomness
) -> Identity:
    """A local service's identity with a fresh credential, straight from the network's own key."""
    if home.has_party(name):
        identity = Identity.from_seed(home.party(name).seed)
    else:
        identity = Identity.create(randomness)
    credential = issue_credential(
        account, identity.party, role, CREDENTIAL_LIFETIME_MS, clock.now_ms()
    )
    home.save_party(name, PartyFile(identity.seed, credential))
    return identity


async def _stop_when_refused(wire: NatsWire) -> None:
    raise await wire.wait_refused()


@dataclass(frozen=True)
class _Renewal:
    """Renews a credential in time, for as long as the party is let in."""

    wire: NatsWire
    credential: _Credential
    account: str
    clock: Clock
    reissue: Callable[[], str] | None

    async def run(self) -> None:
        while True:
            await anyio.sleep(self.credential.renew_in_s(self.clock.now_ms()))
            try:
                await self._renew()
            except StarAIError as error:  # the old credential is good for a while yet
                event(_LOG, "renewal_failed", logging.WARNING, code=error.code)
            # Also after a success: two clocks apart could make every new credential look old.
            await anyio.sleep(RENEW_RETRY_S)

    async def _renew(self) -> None:
        fresh = self.reissue() if self.reissue is not None else await self._ask()
        self.credential.replace(fresh, self.account, self.clock.now_ms())
        await self.wire.renew()
        event(_LOG, "credential_renewed", expires_ms=self.credential.known.expires_ms)

    async def _ask(self) -> str:
        party = self.credential.identity.party
        frame = await self.wire.request(
            registry("renew", party), encode(Renew(party)), timeout_s=RENEW_TIMEOUT_S
        )
        if peek(frame) is Acknowledged:
            raise PartyRefused(decode(frame, Acknowledged).message)
        return decode(frame, Admitted).credential
