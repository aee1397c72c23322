"""Doors to the outside: TLS by the network's own authority, several servers, and several URLs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from starai.core.clock import SystemClock
from starai.core.errors import ConfigurationRefused, PartyRefused, Unavailable
from starai.core.randomness import SeededRandomness, SystemRandomness
from starai.protocol import subjects
from starai.protocol.identity import Identity
from starai.protocol.ports import Delivery
from starai.protocol.subjects import Role
from starai.wire.certificates import fingerprint, load_or_create_ca, read_der, trust
from starai.wire.dialing import Dialer, parse_address
from starai.wire.listening import Cluster, NatsServerSettings, WebSocketListener, clustered
from starai.wire.nats import NatsSettings, connect_nats
from starai.wire.program import claim_port
from starai.wire.server import NatsServer, nats_server, nats_servers

CHANCE = SystemRandomness()
CLOCK = SystemClock()


@pytest.fixture
def anyio_backend() -> str:
    """The real wire needs asyncio."""
    return "asyncio"


def someone(server: NatsServer, role: Role, *urls: str, tls: bytes = b"") -> NatsSettings:
    """A fresh party of the server's network."""
    identity = Identity.create(CHANCE)
    jwt = server.authority.user_jwt(identity.party, role, 3_600_000, CLOCK.now_ms())
    return NatsSettings(urls or (server.url,), identity, lambda: jwt, tls=trust(tls))


async def until(condition: Callable[[], object], within_s: float = 5) -> None:
    """Wait for ``condition``."""
    with anyio.fail_after(within_s):
        while not condition():
            await anyio.sleep(0.005)


@pytest.mark.anyio
async def test_the_networks_own_authority_is_all_that_is_trusted(tmp_path: Path) -> None:
    """With its certificate TLS and WebSocket work; without, or with another's, neither does."""
    authority = load_or_create_ca(tmp_path / "tls", CLOCK)
    stranger = load_or_create_ca(tmp_path / "other", CLOCK)
    settings = NatsServerSettings(
        tmp_path,
        port=0,
        tls=authority.issue(("127.0.0.1", "localhost"), CLOCK),
        websocket=WebSocketListener("127.0.0.1", 0),
    )
    async with nats_server(settings) as server:
        assert server.url.startswith("tls://")
        assert server.websocket_url.startswith("wss://")
        for url in (server.url, server.websocket_url, server.url.replace("127.0.0.1", "localhost")):
            good = someone(server, Role.NODE, url, tls=authority.der)
            async with connect_nats(good) as wire:
                assert wire.connected
            for bad in (None, trust(stranger.der)):
                with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
                    async with connect_nats(replace(good, tls=bad, first_connect_s=0.6)):
                        pass


def test_the_authority_is_made_once_and_kept(tmp_path: Path) -> None:
    """The same certificate at every start, a key only its owner can read, damage refused."""
    first = load_or_create_ca(tmp_path, CLOCK)
    assert load_or_create_ca(tmp_path, CLOCK).der == first.der == read_der(tmp_path / "ca.pem")
    assert (tmp_path / "ca-key.pem").stat().st_mode & 0o077 == 0
    assert len(fingerprint(first.der)) == 95
    assert len(first.der) < 600
    files = first.issue(("example.org",), CLOCK)
    assert files.key.stat().st_mode & 0o077 == 0
    (tmp_path / "ca-key.pem").write_bytes(b"no key")
    with pytest.raises(ConfigurationRefused, match="backup"):
        load_or_create_ca(tmp_path, CLOCK)
    with pytest.raises(ConfigurationRefused):
        read_der(tmp_path / "nothing")
    with pytest.raises(ConfigurationRefused):
        trust(b"no certificate")


@pytest.mark.parametrize("door", ["tcp", "websocket", "routes"])
def test_no_door_opens_to_the_world_without_tls(tmp_path: Path, door: str) -> None:
    """Beyond loopback a listener without TLS is refused before anything is started."""
    plain = NatsServerSettings(tmp_path, port=0)
    wide = {
        "tcp": replace(plain, host="0.0.0.0"),
        "websocket": replace(plain, websocket=WebSocketListener("0.0.0.0", 0)),
        "routes": replace(plain, cluster=Cluster(0, (), "s", host="0.0.0.0")),
    }[door]
    with pytest.raises(ConfigurationRefused, match="without TLS"):
        wide.claimed()


@pytest.mark.anyio
async def test_three_servers_are_one_wire_and_one_may_die(tmp_path: Path) -> None:
    """Parties on different servers hear each other; when one dies its parties move on at once."""
    plain = [NatsServerSettings(tmp_path, port=0, folder=tmp_path / str(n)) for n in range(3)]
    async with nats_servers(clustered(plain, CHANCE)) as servers:
        urls = tuple(server.url for server in servers)
        heard: list[Delivery] = []
        speaker = someone(servers[0], Role.NODE, urls[0], urls[1])
        listener = someone(servers[0], Role.GATEWAY, urls[2])
        async with (
            connect_nats(listener) as ear,
            connect_nats(speaker) as mouth,
            ear.subscribe(subjects.beats(Role.NODE), heard.append),
        ):
            subject = subjects.beat(Role.NODE, mouth.party)
            with anyio.fail_after(10):
                while not heard:  # routes take a moment to learn of the subscription
                    await mouth.publish(subject, b"before")
                    await anyio.sleep(0.05)
            os.kill(servers[0].pid, signal.SIGKILL)
            began_s = time.monotonic()
            while all(one.payload != b"after" for one in heard):
                await mouth.publish(subject, b"after")
                await anyio.sleep(0.02)
                assert time.monotonic() - began_s < 5
        assert servers[2].num_restarts == 0


@pytest.mark.anyio
async def test_a_revocation_reaches_every_server_of_a_cluster(tmp_path: Path) -> None:
    """Told to one server, it cuts a party off another, at once and after that one's restart."""
    plain = [NatsServerSettings(tmp_path, port=0, folder=tmp_path / str(n)) for n in range(2)]
    async with nats_servers(clustered(plain, CHANCE)) as servers:
        node = someone(servers[1], Role.NODE)
        async with connect_nats(node) as wire:
            await anyio.sleep(1.0)  # routes are up; the credential is older than the revocation
            began_s = time.monotonic()
            await servers[0].revoke(wire.party)
            with anyio.fail_after(5):
                await wire.wait_refused()
            assert time.monotonic() - began_s < 2


@pytest.mark.anyio
async def test_routes_by_tls_let_only_the_cluster_in(tmp_path: Path) -> None:
    """Servers hold each other to the network's authority; with it they are one wire."""
    authority = load_or_create_ca(tmp_path / "tls", CLOCK)
    files = authority.issue(("127.0.0.1",), CLOCK)
    ports = [claim_port("127.0.0.1", 0) for _ in range(2)]
    assert ports[0] != ports[1]
    both = [
        NatsServerSettings(
            tmp_path,
            port=0,
            folder=tmp_path / str(n),
            cluster=Cluster(ports[n], (f"127.0.0.1:{ports[1 - n]}",), "secret", tls=files),
        )
        for n in range(2)
    ]
    async with nats_servers(both) as servers:
        heard: list[Delivery] = []
        async with (
            connect_nats(someone(servers[1], Role.GATEWAY)) as ear,
            connect_nats(someone(servers[0], Role.NODE)) as mouth,
            ear.subscribe(subjects.beats(Role.NODE), heard.append),
        ):
            with anyio.fail_after(10):
                while not heard:
                    await mouth.publish(subjects.beat(Role.NODE, mouth.party), b"")
                    await anyio.sleep(0.05)


@pytest.mark.anyio
async def test_a_port_that_is_swallowed_costs_less_than_a_second(
    tmp_path: Path, nats: NatsServer
) -> None:
    """The next address is tried beside a silent one, and is tried first from then on."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    silent = f"tls://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, hold)
        settings = someone(nats, Role.NODE, silent, nats.url)
        dialer = Dialer(settings, lambda *_: None, lambda *_: None)
        began_s = time.monotonic()
        (await dialer.dial()).close()
        assert 0.5 < time.monotonic() - began_s < 2
        assert dialer.urls == (nats.url, silent)
        began_s = time.monotonic()
        (await dialer.dial()).close()
        assert time.monotonic() - began_s < 0.5
        tasks.cancel_scope.cancel()


async def hold(stream: anyio.abc.SocketStream) -> None:
    """Take a connection and say nothing."""
    async with stream:
        await anyio.sleep_forever()


@pytest.mark.anyio
async def test_one_servers_refusal_is_not_the_others(nats: NatsServer, tmp_path: Path) -> None:
    """A stranger's server among the addresses refuses us; our own is found all the same."""
    async with nats_server(NatsServerSettings(tmp_path, port=0)) as stranger:
        mine = someone(nats, Role.NODE, stranger.url, nats.url)
        async with connect_nats(mine) as wire:
            assert wire.connected
        with pytest.raises(PartyRefused):
            async with connect_nats(replace(mine, urls=(stranger.url, "nats://127.0.0.1:1"))):
                pass


def test_parties_spread_over_servers_of_one_kind_and_keep_the_kinds_in_order() -> None:
    """Each begins at one of the equals by its key; TCP stays before WebSocket."""
    urls = ("tls://a", "tls://b", "tls://c", "wss://a", "wss://b")
    firsts = set()
    for seed in range(30):
        who = Identity.create(SeededRandomness(seed))
        settings = NatsSettings(urls, who, str)
        order = Dialer(settings, lambda *_: None, lambda *_: None).urls
        assert [url[:3] for url in order] == ["tls", "tls", "tls", "wss", "wss"]
        assert set(order) == set(urls)
        firsts.add(order[0])
    assert firsts == {"tls://a", "tls://b", "tls://c"}


def test_addresses_are_taken_apart() -> None:
    """Each scheme has its usual port; with a certificate to trust, plain is for loopback only."""
    assert parse_address("nats://h").port == 4222
    assert parse_address("wss://h").port == 443
    assert parse_address("wss://[::1]:9").host == "::1"
    assert parse_address("nats://h:1", trusted=True).secure
    assert not parse_address("nats://127.0.0.1:1", trusted=True).secure
    for bad in ("http://h", "nats://", "nats://h:x", "h:4222", ""):
        with pytest.raises(ConfigurationRefused, match="nats://host:port"):
            parse_address(bad)
