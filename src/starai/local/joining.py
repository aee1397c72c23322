"""Joining a network with a token: a new identity is shown to the registry and let in.

Neither the newcomer's seed nor the token's leaves the device: the registry sees two signatures.
When it does not work, the way to the network is probed hop by hop and the error says which one
failed, the clock among them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import anyio
import msgspec

from starai.core.clock import Clock
from starai.core.errors import (
    ConfigurationRefused,
    DeadlinePassed,
    PartyRefused,
    Unavailable,
)
from starai.core.logging import event
from starai.core.randomness import Randomness, SystemRandomness
from starai.local.home import Home, NetworkFile, PartyFile
from starai.local.proxies import system_proxy
from starai.protocol.credentials import read_credential
from starai.protocol.frames import decode, encode, peek
from starai.protocol.identity import Identity
from starai.protocol.registry import Acknowledged, Admitted, Join
from starai.protocol.subjects import registry
from starai.protocol.tickets import JoinTicket
from starai.wire.certificates import trust
from starai.wire.diagnosis import Applicant, first_failure
from starai.wire.dialing import NatsSettings
from starai.wire.hops import check_clock
from starai.wire.nats import NatsWire, connect_nats

_LOG = logging.getLogger(__name__)

#: How long a newcomer looks for a server before the way there is looked at hop by hop.
FIRST_CONNECT_S = 3.0
#: How long a newcomer keeps asking a registry that does not answer.
JOIN_S = 20.0
ANSWER_S = 3.0
ASK_AGAIN_S = 0.25


@dataclass(frozen=True)
class Joined:
    """How it went: the network's name, and how long the registry's answer took in milliseconds."""

    network: str
    answer_ms: float


async def join(
    home: Home,
    name: str,
    ticket: JoinTicket,
    label: str,
    clock: Clock,
    randomness: Randomness,
) -> Joined:
    """Become the party ``name`` of this home in the network of ``ticket``.

    The same name keeps its key: joining again with a new token renews its credential.

    Raises:
        ConfigurationRefused: this home is another network's, or this device's clock is wrong.
        PartyRefused: the network does not let it in; says why.
        Unavailable: NATS or the registry cannot be reached; says which hop failed.
    """
    known = _known_network(home)
    if known is not None and known.account != ticket.account:
        raise ConfigurationRefused(
            f"{home.path} belongs to another network ({known.name}); name a folder of its own for "
            "this one: --home FOLDER"
        )
    seed = home.party(name).seed if home.has_party(name) else Identity.create(randomness).seed
    identity = Identity.from_seed(seed)
    joiner = Identity.from_seed(ticket.seed)
    request = Join.signed(ticket.token_id, identity, joiner, label)
    home.save_party(name, PartyFile(seed))  # the key first: a lost answer must not lose it
    network = _network(home, known, ticket)
    settings = NatsSettings(
        network.urls,
        joiner,
        lambda: ticket.credential,
        tls=trust(network.ca),
        first_connect_s=FIRST_CONNECT_S,
        proxy=system_proxy(network.urls),
    )
    try:
        async with connect_nats(settings, randomness=randomness) as wire:
            began_s = clock.monotonic_s()
            admitted = await _ask(wire, request)
            answer_ms = (clock.monotonic_s() - began_s) * 1000
    except (PartyRefused, Unavailable, DeadlinePassed) as error:
        newcomer = replace(applicant_of(network, ticket.seed, clock), credential=ticket.credential)
        raise (await first_failure(network.urls, newcomer) or error) from error
    if isinstance(admitted, Acknowledged):
        raise PartyRefused(admitted.message)
    _check_clock(admitted, clock)
    home.save_party(name, PartyFile(seed, admitted.credential))
    home.save_network(
        msgspec.structs.replace(network, name=admitted.network, block_ms=admitted.block_ms)
    )
    event(_LOG, "joined", network=admitted.network, party=identity.party)
    return Joined(admitted.network, answer_ms)


def _known_network(home: Home) -> NetworkFile | None:
    try:
        return home.network()
    except ConfigurationRefused:
        return None


def _network(home: Home, known: NetworkFile | None, ticket: JoinTicket) -> NetworkFile:
    """Where the network is; a home that knows it already keeps what else it knows.

    The operator's own home keeps its addresses too: they are on loopback, and nearer than those
    that tickets give to others.
    """
    if known is not None and home.authority.exists():
        return known
    if known is None:
        known = NetworkFile(ticket.network, ticket.account, nats_url="", block_ms=0)
    first, *more = ticket.urls
    return msgspec.structs.replace(known, nats_url=first, more_urls=tuple(more), ca=ticket.ca)


def applicant_of(network: NetworkFile, seed: str, clock: Clock) -> Applicant:
    """Whoever has ``seed``, as the probe of `starai.wire.diagnosis` takes it; no credential yet."""
    return Applicant(
        clock,
        SystemRandomness(),
        tls=trust(network.ca),
        identity=Identity.from_seed(seed),
        account=network.account,
        proxy=system_proxy(network.urls),
    )


def _check_clock(admitted: Admitted, clock: Clock) -> None:
    """The new credential bears the registry's time under the network's signature."""
    issued_ms = read_credential(admitted.credential, admitted.account, 0).issued_ms
    check_clock(clock.now_ms(), issued_ms)


async def _ask(wire: NatsWire, request: Join) -> Admitted | Acknowledged:
    """The registry's answer: the new credential, or why there is none."""
    failure: Unavailable | DeadlinePassed = Unavailable("the registry does not answer; is it up?")
    with anyio.move_on_after(JOIN_S):
        while True:
            try:
                frame = await wire.request(
                    registry("join", wire.party), encode(request), timeout_s=ANSWER_S
                )
            except (Unavailable, DeadlinePassed) as error:
                failure = error
                await anyio.sleep(ASK_AGAIN_S)
                continue
            if peek(frame) is Acknowledged:
                return decode(frame, Acknowledged)
            return decode(frame, Admitted)
    raise failure
