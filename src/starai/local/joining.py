"""Joining a network with a one-time token: a new identity is shown to the registry and let in.

Neither the newcomer's seed nor the token's leaves the device: the registry sees two signatures.
"""

from __future__ import annotations

import logging

import anyio
import msgspec

from starai.core.clock import Clock
from starai.core.errors import (
    ConfigurationRefused,
    DeadlinePassed,
    MalformedFrame,
    PartyRefused,
    SealBroken,
    Unavailable,
)
from starai.core.logging import event
from starai.core.randomness import Randomness
from starai.local.home import Home, NetworkFile, PartyFile
from starai.protocol.credentials import read_credential
from starai.protocol.frames import decode, encode, peek
from starai.protocol.identity import Identity
from starai.protocol.registry import Acknowledged, Admitted, Join
from starai.protocol.subjects import registry
from starai.protocol.tickets import JoinTicket
from starai.wire.dialing import NatsSettings
from starai.wire.nats import NatsWire, connect_nats

_LOG = logging.getLogger(__name__)

#: How long a newcomer keeps asking a registry that does not answer.
JOIN_S = 20.0
ANSWER_S = 3.0
ASK_AGAIN_S = 0.25


async def join(
    home: Home, name: str, token: str, label: str, clock: Clock, randomness: Randomness
) -> None:
    """Become the party ``name`` of this home in the network of ``token``.

    The same name keeps its key: joining again with a new token renews its credential.

    Raises:
        ConfigurationRefused: the token is no token, or damaged; or this home is another
            network's.
        PartyRefused: the network does not let it in; says why.
        Unavailable: NATS or the registry cannot be reached.
    """
    ticket = JoinTicket.parse(token)
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
    settings = NatsSettings(ticket.urls, joiner, lambda: ticket.credential)
    async with connect_nats(settings) as wire:
        admitted = await _ask(wire, request)
    home.save_party(name, PartyFile(seed, admitted.credential))
    home.save_network(_network(known, ticket, admitted))
    event(_LOG, "joined", network=admitted.network, party=identity.party)


def is_admitted(home: Home, name: str, clock: Clock) -> bool:
    """Whether the party has a credential that is still good."""
    if not home.has_party(name) or not home.party(name).credential:
        return False  # without a credential, an attempt to join did not come to its end
    try:
        read_credential(home.party(name).credential, home.network().account, clock.now_ms())
    except (PartyRefused, MalformedFrame, SealBroken):
        return False
    return True


def _known_network(home: Home) -> NetworkFile | None:
    try:
        return home.network()
    except ConfigurationRefused:
        return None


def _network(known: NetworkFile | None, ticket: JoinTicket, admitted: Admitted) -> NetworkFile:
    """Where the network is; a home that knows it already keeps what else it knows."""
    fresh = NetworkFile(
        name=admitted.network,
        account=ticket.account,
        nats_url=ticket.urls[0],
        block_ms=admitted.block_ms,
    )
    if known is None:
        return fresh
    return msgspec.structs.replace(known, nats_url=fresh.nats_url, block_ms=fresh.block_ms)


async def _ask(wire: NatsWire, request: Join) -> Admitted:
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
                raise PartyRefused(decode(frame, Acknowledged).message)
            return decode(frame, Admitted)
    raise failure
