"""What lets a party of this home into its network: the credential that it has, or a token.

Only looks at what lies here; `joining` asks the network.
"""

from __future__ import annotations

import msgspec

from starai.core.clock import Clock
from starai.core.errors import ConfigurationRefused, MalformedFrame, PartyRefused, SealBroken
from starai.local.home import Home
from starai.protocol.credentials import Credential, read_credential
from starai.protocol.tickets import JoinTicket
from starai.wire.dialing import parse_address
from starai.wire.hops import SET_CLOCK, day


def is_admitted(home: Home, name: str, clock: Clock) -> bool:
    """Whether the party has a credential that is still good."""
    if not home.has_party(name) or not home.party(name).credential:
        return False  # without a credential, an attempt to join did not come to its end
    try:
        read_credential(home.party(name).credential, home.network().account, clock.now_ms())
    except (PartyRefused, MalformedFrame, SealBroken):
        return False
    return True


def _expired_credential(home: Home, name: str) -> Credential | None:
    """The party's credential as it was while it was good; None if it never had one."""
    if not home.has_party(name):
        return None
    try:
        return read_credential(home.party(name).credential, home.network().account, 0)
    except (ConfigurationRefused, PartyRefused, MalformedFrame, SealBroken):
        return None


def ticket_of(home: Home, name: str, token: str, clock: Clock, url: str = "") -> JoinTicket:
    """What lets a party in: of ``token``, with ``url`` to be tried first.

    Raises:
        ConfigurationRefused: there is none, or it is damaged.
    """
    if not token:
        raise ConfigurationRefused(_why_no_way_in(home, name, clock))
    ticket = JoinTicket.parse(token)
    if url:
        parse_address(url)
        rest = tuple(other for other in ticket.urls if other != url)
        ticket = msgspec.structs.replace(ticket, urls=(url, *rest))
    return ticket


def _why_no_way_in(home: Home, name: str, clock: Clock) -> str:
    before = _expired_credential(home, name)
    how = "an operator makes one with `starai tokens create`"
    if before is None:
        return (
            f"{name} is in no network yet: pass a token, by `starai join TOKEN` or with "
            f"--token ({how})"
        )
    return (
        f"{name}'s credential expired at {day(before.expires_ms)}; this device's clock "
        f"says {day(clock.now_ms())}. If that is right, join again: pass a new token "
        f"({how}). If not: {SET_CLOCK}"
    )
