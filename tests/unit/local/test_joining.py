"""Joining: what is refused before the token is used, and what an interrupted attempt leaves."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from starai.core.clock import SystemClock
from starai.core.errors import ConfigurationRefused
from starai.core.randomness import SeededRandomness
from starai.local.admission import is_admitted
from starai.local.home import Home, NetworkFile, PartyFile
from starai.local.joining import _network, join
from starai.protocol.credentials import issue_credential
from starai.protocol.identity import Identity, KeyKind
from starai.protocol.subjects import Role
from starai.protocol.tickets import JoinTicket

CHANCE = SeededRandomness(4)
ACCOUNT = Identity.create(CHANCE, KeyKind.ACCOUNT)
OTHER = Identity.create(CHANCE, KeyKind.ACCOUNT)
PARTY = Identity.create(CHANCE)
CLOCK = SystemClock()
TICKET = JoinTicket(
    ("tls://new:4443", "wss://new:8443"),
    ACCOUNT.nkey,
    "theirs",
    Identity.create(CHANCE).seed,
    "jwt",
    b"t" * 16,
    b"certificate",
)
KNOWN = NetworkFile("theirs", ACCOUNT.nkey, "nats://old:4222", 1000, "http://g", ("m",))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def credential(account: Identity = ACCOUNT, now_ms: int | None = None) -> str:
    now_ms = CLOCK.now_ms() if now_ms is None else now_ms
    return issue_credential(account, PARTY.party, Role.NODE, 1000, now_ms)


def test_whoever_has_a_good_credential_is_admitted(home: Home) -> None:
    """A credential of this network that has not expired needs no token."""
    home.save_network(KNOWN)
    home.save_party("node", PartyFile(PARTY.seed, credential()))
    assert is_admitted(home, "node", CLOCK)
    assert not is_admitted(home, "stranger", CLOCK)


@pytest.mark.parametrize("bad", ["expired", "anothers", "rubbish"])
def test_whoever_has_none_is_not(home: Home, bad: str) -> None:
    """An expired or foreign credential, or what is none, calls for a token."""
    made = {"expired": credential(now_ms=1), "anothers": credential(OTHER), "rubbish": "jwt"}
    home.save_network(KNOWN)
    home.save_party("node", PartyFile(PARTY.seed, made[bad]))
    assert not is_admitted(home, "node", CLOCK)


def test_an_interrupted_attempt_to_join_can_be_made_again(home: Home) -> None:
    """The key is there, the network is not known yet: a token is what is needed, not an error."""
    home.save_party("node", PartyFile(PARTY.seed))
    assert not is_admitted(home, "node", CLOCK)


@pytest.mark.anyio
async def test_a_home_of_another_network_is_left_as_it_is(home: Home) -> None:
    """Joining there would overwrite it: refused before the token is used up."""
    mine = msgspec.structs.replace(KNOWN, account=OTHER.nkey, name="mine")
    home.save_network(mine)
    with pytest.raises(ConfigurationRefused, match="--home"):
        await join(home, "node", TICKET, "", CLOCK, CHANCE)
    assert home.network() == mine
    assert not home.has_party("node")


def test_a_newcomer_learns_where_the_network_is() -> None:
    """A fresh home takes addresses and certificate from the ticket."""
    made = _network(Home(Path("nowhere")), None, TICKET)
    assert made.urls == ("tls://new:4443", "wss://new:8443")
    assert (made.name, made.account, made.ca) == ("theirs", ACCOUNT.nkey, b"certificate")


def test_who_joins_again_keeps_what_else_is_known(home: Home) -> None:
    """Gateway and models stay, the addresses are the new ones; the operator's own are as before."""
    made = _network(home, KNOWN, TICKET)
    assert made.urls == ("tls://new:4443", "wss://new:8443")
    assert (made.models, made.gateway_url) == (KNOWN.models, KNOWN.gateway_url)
    home.authority.mkdir()
    assert _network(home, KNOWN, TICKET) == KNOWN
