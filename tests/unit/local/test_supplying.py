"""A supplier that cannot start says why: no token, an old credential, a network that is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from starai.core.clock import SystemClock
from starai.core.errors import ConfigurationRefused, StarAIError, Unavailable
from starai.core.randomness import SeededRandomness
from starai.local import joining
from starai.local.home import Home, NetworkFile, PartyFile
from starai.local.nodes import NodeOptions
from starai.local.supplying import join_and_serve
from starai.local.telling import Stage, Telling
from starai.protocol.credentials import issue_credential
from starai.protocol.identity import Identity, KeyKind
from starai.protocol.subjects import Role
from starai.protocol.tickets import JoinTicket

CHANCE = SeededRandomness(5)
ACCOUNT = Identity.create(CHANCE, KeyKind.ACCOUNT)
HOUR_MS = 3_600_000
MOCK = NodeOptions("mock")


def home_with(folder: Path, issued_ms: int) -> Home:
    """A home whose node was let in at some time, for an hour."""
    home, party = Home(folder), Identity.create(CHANCE)
    credential = issue_credential(ACCOUNT, party.party, Role.NODE, HOUR_MS, issued_ms)
    home.save_network(NetworkFile("n", ACCOUNT.nkey, "nats://127.0.0.1:1", 1000))
    home.save_party("node", PartyFile(party.seed, credential))
    return home


def ticket(*urls: str) -> JoinTicket:
    """A token of a network at ``urls``."""
    joiner = Identity.create(CHANCE)
    now_ms = SystemClock().now_ms()
    credential = issue_credential(ACCOUNT, joiner.party, Role.JOINER, HOUR_MS, now_ms)
    return JoinTicket(urls, ACCOUNT.nkey, "n", joiner.seed, credential, b"t" * 16)


async def failure(home: Home, token: str = "", **more: str) -> StarAIError:
    """What a start that fails says."""
    with pytest.raises(StarAIError) as caught:
        await join_and_serve(home, "node", token, MOCK, **more)
    return caught.value


@pytest.mark.anyio
async def test_a_new_home_needs_a_token(tmp_path: Path) -> None:
    """The message says what to pass and who makes it."""
    error = await failure(Home(tmp_path))
    assert isinstance(error, ConfigurationRefused)
    assert "pass a token" in error.message
    assert "starai tokens create" in error.message


@pytest.mark.anyio
async def test_an_old_credential_may_be_a_wrong_clock(tmp_path: Path) -> None:
    """It says when it ended and what this device's clock says, and what to do in either case."""
    error = await failure(home_with(tmp_path, SystemClock().now_ms() - 30 * 24 * HOUR_MS))
    assert "expired at 20" in error.message
    assert "clock says 20" in error.message
    assert "timedatectl" in error.message


@pytest.mark.anyio
async def test_a_network_that_is_gone_is_told_by_its_hop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joining where nothing listens: TCP failed, at each address; the engine starts before."""
    monkeypatch.setattr(joining, "FIRST_CONNECT_S", 0.2)
    told: list[Stage] = []
    telling = Telling(lambda stage, _detail: told.append(stage))
    with pytest.raises(Unavailable, match="TCP failed: nothing listens at"):
        await join_and_serve(
            Home(tmp_path),
            "node",
            ticket("tls://127.0.0.1:1").text(),
            MOCK,
            url="ws://127.0.0.1:2",
            telling=telling,
        )
    assert told == [Stage.MEASURING, Stage.LOADING, Stage.CONNECTING]


@pytest.mark.anyio
async def test_a_url_that_is_none_is_refused_before_the_token_is_used(tmp_path: Path) -> None:
    """Nothing is written for an address that nobody could mean."""
    error = await failure(Home(tmp_path), ticket("tls://h").text(), url="http://h")
    assert "nats://host:port" in error.message
    assert list(tmp_path.iterdir()) == []
