"""The real wire's own duties: credentials, renewal, breaks, and other people's bytes."""

from __future__ import annotations

import asyncio  # noqa: TID251 - something that is no NATS server
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from starai.core.clock import SystemClock
from starai.core.errors import ConfigurationRefused, PartyRefused, Unavailable
from starai.core.randomness import SystemRandomness
from starai.protocol import subjects
from starai.protocol.identity import Identity
from starai.protocol.ports import Delivery
from starai.protocol.subjects import Role
from starai.wire import buffer, dialing
from starai.wire.jwt import Authority
from starai.wire.nats import NatsSettings, connect_nats
from starai.wire.program import claim_port, find_nats_server
from starai.wire.server import NatsServer

pytestmark = pytest.mark.anyio
Settings = Callable[..., NatsSettings]


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """The loops that services run on."""
    return ("asyncio", {"use_uvloop": request.param == "uvloop"})


def someone() -> Identity:
    """A new key."""
    return Identity.create(SystemRandomness())


async def until(condition: Callable[[], object], within_s: float = 5) -> None:
    """Wait for ``condition``."""
    with anyio.fail_after(within_s):
        while not condition():
            await anyio.sleep(0.005)


async def refused(settings: NatsSettings) -> str:
    """Why the server does not let these in."""
    with pytest.raises(PartyRefused) as caught:
        async with connect_nats(settings):
            pass
    return caught.value.message


async def test_only_the_holder_of_an_admitted_key_gets_in(
    nats: NatsServer, settings: Settings
) -> None:
    """A wrong key, a foreign account, an expired or mangled credential: refused, quickly."""
    party = someone()
    good = settings(nats, party, Role.NODE)
    async with connect_nats(good) as wire:
        assert wire.connected
    foreign = Authority.create(SystemRandomness())
    now_ms = SystemClock().now_ms()
    hour_ms = 3_600_000
    expired = nats.authority.user_jwt(party.party, Role.NODE, hour_ms, now_ms - 2 * hour_ms)
    strange = foreign.user_jwt(party.party, Role.NODE, hour_ms, now_ms)
    for bad in (
        replace(good, identity=someone()),
        replace(good, credential=lambda: expired),
        replace(good, credential=lambda: strange),
        replace(good, credential=lambda: good.credential()[:-4] + "AAAA"),
        replace(good, credential=lambda: ""),
    ):
        began_s = time.monotonic()
        assert "credential" in await refused(bad)
        assert time.monotonic() - began_s < 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_expiry_with_a_fresh_credential_at_hand(
    nats: NatsServer, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """When a credential expires the wire comes back by itself with the current one."""
    party, heard = someone(), []
    first = settings(nats, party, Role.NODE, lifetime_ms=1001)
    held = {"jwt": first.credential()}
    async with (
        connect_nats(replace(first, credential=lambda: held["jwt"])) as wire,
        wire.subscribe(subjects.control(wire.party), heard.append),
    ):
        held["jwt"] = settings(nats, party, Role.NODE).credential()
        await until(lambda: "wire.cut_off" in caplog.text)
        await until(lambda: wire.connected)
        assert wire.refused is None
        await wire.publish(subjects.control(wire.party), b"")
        await until(lambda: heard)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_expiry_without_one(nats: NatsServer, settings: Settings) -> None:
    """When nobody renewed it, the owner is told, and a later renewal brings the wire back."""
    party = someone()
    first = settings(nats, party, Role.NODE, lifetime_ms=1001)
    held = {"jwt": first.credential()}
    async with connect_nats(replace(first, credential=lambda: held["jwt"])) as wire:
        with anyio.fail_after(5):
            await wire.wait_refused()
        assert not wire.connected
        held["jwt"] = settings(nats, party, Role.NODE).credential()
        await wire.renew()
        await until(lambda: wire.connected, within_s=1)
        assert wire.refused is None


async def test_renewal_loses_and_doubles_nothing(nats: NatsServer, settings: Settings) -> None:
    """While both ends of a busy stream renew again and again, each message comes once, in order."""
    node, gateway = someone(), someone()
    heard: list[int] = []
    sent = 0
    async with (
        connect_nats(settings(nats, node, Role.NODE)) as speaker,
        connect_nats(settings(nats, gateway, Role.GATEWAY)) as listener,
        listener.subscribe(
            subjects.beats(Role.NODE), lambda d: heard.append(int.from_bytes(d.payload[:4], "big"))
        ),
    ):
        stop = anyio.Event()
        subject = subjects.beat(Role.NODE, node.party)

        async def speak() -> None:
            nonlocal sent
            while not stop.is_set():
                for _ in range(200):
                    await speaker.publish(subject, sent.to_bytes(4, "big") + bytes(500))
                    sent += 1
                await anyio.sleep(0.001)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(speak)
            for _ in range(6):
                await listener.renew()
                await speaker.renew()
            stop.set()
        await until(lambda: len(heard) >= sent)
        await anyio.sleep(0.05)
    assert sent > 500
    assert heard == list(range(sent))


async def test_requests_survive_renewal(nats: NatsServer, settings: Settings) -> None:
    """A question asked before a renewal is answered after it."""
    node = someone()
    questions: list[Delivery] = []
    async with (
        connect_nats(settings(nats, someone(), Role.REGISTRY)) as registry,
        connect_nats(settings(nats, node, Role.NODE)) as wire,
        registry.subscribe("starai.registry.>", questions.append),
    ):
        answers: list[bytes] = []

        async def ask() -> None:
            subject = subjects.registry("confirm", node.party)
            answers.append(await wire.request(subject, b"?", timeout_s=5))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await until(lambda: questions)
            await wire.renew()
            await registry.renew()
            await registry.publish(questions[0].reply, b"!")
    assert answers == [b"!"]


async def test_a_refused_renewal_keeps_the_old_connection(
    nats: NatsServer, settings: Settings
) -> None:
    """A bad new credential is refused aloud, and the wire works on with the old one."""
    party, heard = someone(), []
    good = settings(nats, party, Role.NODE)
    held = {"jwt": good.credential()}
    async with (
        connect_nats(replace(good, credential=lambda: held["jwt"])) as wire,
        wire.subscribe(subjects.control(wire.party), heard.append),
    ):
        held["jwt"] = "nonsense"
        with pytest.raises(PartyRefused):
            await wire.renew()
        assert wire.connected
        await wire.publish(subjects.control(wire.party), b"")
        await until(lambda: heard)


async def test_a_break_fails_what_is_in_flight_and_heals(
    nats: NatsServer, settings: Settings
) -> None:
    """A question in flight when the server dies fails at once, retryably; soon all is well."""
    node = someone()
    questions: list[Delivery] = []
    async with (
        connect_nats(settings(nats, someone(), Role.REGISTRY)) as registry,
        connect_nats(settings(nats, node, Role.NODE)) as wire,
        registry.subscribe("starai.registry.>", questions.append),
    ):

        async def ask() -> None:
            with pytest.raises(Unavailable, match="broke"):
                await wire.request(subjects.registry("confirm", node.party), b"?", timeout_s=30)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await until(lambda: questions)
            os.kill(nats.pid, signal.SIGKILL)
            began_s = time.monotonic()
        await until(lambda: not wire.connected)
        await until(lambda: wire.connected and registry.connected)
        assert time.monotonic() - began_s < 1.5


async def test_the_buffer_is_bounded(
    nats: NatsServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server is away a bounded amount is kept and the rest refused."""
    monkeypatch.setattr(buffer, "BUFFER_BYTES_MAX", 10_000)
    async with connect_nats(settings(nats, someone(), Role.NODE)) as wire:
        subject = subjects.beat(Role.NODE, wire.party)
        os.kill(nats.pid, signal.SIGKILL)
        await until(lambda: not wire.connected)
        for _ in range(9):
            await wire.publish(subject, bytes(1000))
        with pytest.raises(Unavailable):
            await wire.publish(subject, bytes(1000))
        await until(lambda: wire.connected)
        await wire.publish(subject, bytes(1000))


async def test_who_cannot_wait_is_never_told_that_there_is_no_room(
    nats: NatsServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while one connection takes over from another, what is too much is dropped."""
    monkeypatch.setattr(buffer, "BUFFER_BYTES_MAX", 10_000)
    async with connect_nats(settings(nats, someone(), Role.NODE)) as wire:
        subject, renewed = subjects.beat(Role.NODE, wire.party), anyio.Event()

        async def speak() -> None:
            while not renewed.is_set():
                for _ in range(20):
                    wire.publish_soon(subject, bytes(1000))
                await anyio.sleep(0)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(speak)
            await wire.renew()
            renewed.set()
        assert wire.connected


async def test_nobody_there(settings: Settings, nats: NatsServer) -> None:
    """With no server to be found, connecting gives up in time and says where it looked."""
    nowhere = replace(
        settings(nats, someone(), Role.NODE), urls=("nats://127.0.0.1:1",), first_connect_s=0.2
    )
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        async with connect_nats(nowhere):
            pass
    with pytest.raises(ConfigurationRefused, match="nats://host:port"):
        async with connect_nats(replace(nowhere, urls=("http://127.0.0.1",))):
            pass
    both = replace(nowhere, urls=("nats://127.0.0.1:1", nats.url), first_connect_s=5)
    async with connect_nats(both) as wire:
        assert wire.connected


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 70_000, b"INFO {\r\n"]
)
async def test_something_else_listens_there(
    settings: Settings, nats: NatsServer, said: bytes
) -> None:
    """A port on which something other than NATS listens is not waited for in vain."""
    served: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.current_task())
        writer.write(said)
        with suppress(ConnectionError):
            await reader.read(1)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        there = replace(
            settings(nats, someone(), Role.NODE),
            urls=(f"nats://127.0.0.1:{port}",),
            first_connect_s=0.2,
        )
        with pytest.raises(Unavailable, match="NATS"):
            async with connect_nats(there):
                pass
        # No connection may outlive its test.
        await asyncio.gather(*filter(None, served))


async def test_a_server_that_hangs_is_left(
    nats: NatsServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that keeps the connection but says nothing counts as gone, until it answers."""
    monkeypatch.setattr(dialing, "PING_INTERVAL_S", 0.05)
    monkeypatch.setattr(dialing, "PING_TIMEOUT_S", 0.1)
    async with connect_nats(settings(nats, someone(), Role.NODE)) as wire:
        os.kill(nats.pid, signal.SIGSTOP)
        try:
            await until(lambda: not wire.connected)
        finally:
            os.kill(nats.pid, signal.SIGCONT)
        await until(lambda: wire.connected)


async def test_tls(tmp_path: Path, nats: NatsServer, settings: Settings) -> None:
    """Over TLS it works the same with a certificate that it trusts, and not at all with another."""
    certificate, key = certify("127.0.0.1")
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)
    port = claim_port("127.0.0.1", 0)
    (tmp_path / "nats.conf").write_text(
        f"listen: 127.0.0.1:{port}\n"
        f'tls {{ cert_file: "{tmp_path}/cert.pem", key_file: "{tmp_path}/key.pem" }}\n'
    )
    process = await anyio.open_process(
        [str(find_nats_server()), "-c", str(tmp_path / "nats.conf")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    trust = ssl.create_default_context(cadata=certificate.decode())
    there = replace(
        settings(nats, someone(), Role.NODE), urls=(f"tls://127.0.0.1:{port}",), tls=trust
    )
    heard: list[Delivery] = []
    try:
        async with connect_nats(there) as wire, wire.subscribe("a", heard.append):
            await wire.publish("a", bytes(500_000))
            await until(lambda: heard)
        with pytest.raises(Unavailable, match="SSL"):
            async with connect_nats(replace(there, tls=None, first_connect_s=1.0)):
                pass
    finally:
        process.terminate()
        await process.aclose()


def certify(address: str) -> tuple[bytes, bytes]:
    """A certificate that ``address`` signed for itself, and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, address)])
    now = datetime.now(UTC)  # noqa: TID251 - TLS takes the machine's time
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return certificate.public_bytes(pem), key.private_bytes(
        pem, pkcs8, serialization.NoEncryption()
    )
