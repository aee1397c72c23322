"""Looks at the ways from this device to a network, for who wonders why it does not work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from starai.core.clock import SystemClock
from starai.core.randomness import SystemRandomness
from starai.local.home import Home
from starai.local.joining import applicant_of
from starai.local.proxies import system_proxy
from starai.protocol.identity import Identity
from starai.protocol.tickets import JoinTicket
from starai.wire.certificates import trust
from starai.wire.diagnosis import Applicant, probe
from starai.wire.hops import Step


async def examine(
    home: Home,
    name: str,
    url: str,
    token: str,
    tell_url: Callable[[str], None],
    tell: Callable[[Step], None],
) -> bool:
    """Try each way and tell each hop; whether one of the ways leads into the network.

    Args:
        home: whose network is meant if there is no token.
        name: which party of this home.
        url: the only way to try, if given.
        token: a join token's text, if given.
        tell_url: hears each way before it is tried.
        tell: hears each hop.

    Raises:
        ConfigurationRefused: the token is damaged, or nothing says where the network is.
    """
    urls, applicant = _who(home, name, url, token)
    passed = False
    for one in urls:
        tell_url(one)
        steps = await probe(one, applicant, tell)
        passed = passed or steps[-1].ok
    return passed


def _who(home: Home, name: str, url: str, token: str) -> tuple[tuple[str, ...], Applicant]:
    """Which ways to try, as whom."""
    clock, randomness = SystemClock(), SystemRandomness()
    if token:
        ticket = JoinTicket.parse(token)
        urls = (url,) if url else ticket.urls
        return urls, Applicant(
            clock,
            randomness,
            tls=trust(ticket.ca),
            identity=Identity.from_seed(ticket.seed),
            credential=ticket.credential,
            account=ticket.account,
            proxy=system_proxy(urls),
        )
    if url:
        return (url,), Applicant(clock, randomness, proxy=system_proxy((url,)))
    network, party = home.network(), home.party(name)
    applicant = applicant_of(network, party.seed, clock)
    return network.urls, replace(applicant, credential=party.credential, verb="renew")
