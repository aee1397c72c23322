"""WebSockets: frames in any pieces, refused upgrades, and proxies on the way."""

from __future__ import annotations

import asyncio  # noqa: TID251 - a WebSocket is an asyncio protocol
import base64
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from starai.core.clock import SystemClock
from starai.core.errors import ConfigurationRefused, PartyRefused, Unavailable
from starai.core.randomness import SeededRandomness, SystemRandomness
from starai.protocol import subjects
from starai.protocol.identity import Identity
from starai.protocol.ports import Delivery
from starai.protocol.subjects import Role
from starai.wire.diagnosis import Applicant, probe
from starai.wire.hops import Hop
from starai.wire.listening import NatsServerSettings, WebSocketListener
from starai.wire.nats import NatsSettings, connect_nats
from starai.wire.server import NatsServer, nats_server
from starai.wire.websocket import (
    Framing,
    UpgradeRefused,
    WebSocket,
    check_upgrade,
    frame,
    open_websocket,
    read_head,
)

CHANCE = SeededRandomness(7)
Settings = Callable[..., NatsSettings]


@pytest.fixture
def anyio_backend() -> str:
    """The real wire needs asyncio."""
    return "asyncio"


class Inner(asyncio.Protocol):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard = b""
        self.lost = False

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        self.heard += data

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self.lost = True


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        self.written += bytes(data)

    def abort(self) -> None:
        """Note it."""
        self.aborted = True

    def close(self) -> None:
        """Note it."""
        self.closed = True

    def is_closing(self) -> bool:
        """Whether it was closed."""
        return self.closed


def accept(nonce: bytes) -> bytes:
    """The answer that opens a WebSocket."""
    key = base64.b64encode(nonce) + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    token = base64.b64encode(hashlib.sha1(key, usedforsecurity=False).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + token + b"\r\n\r\n"
    )


def served(opcode: int, payload: bytes) -> bytes:
    """A frame as a server sends it: not masked."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 1 << 16:
        return bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big") + payload


def unmasked(raw: bytes) -> tuple[int, bytes, bytes]:
    """Opcode and payload of the first of a client's frames, and what follows."""
    assert raw[1] & 0x80
    size, at = raw[1] & 0x7F, 2
    if size == 126:
        size, at = int.from_bytes(raw[2:4], "big"), 4
    elif size == 127:
        size, at = int.from_bytes(raw[2:10], "big"), 10
    key, body = raw[at : at + 4], raw[at + 4 : at + 4 + size]
    plain = bytes(byte ^ key[i % 4] for i, byte in enumerate(body))
    return raw[0] & 0x0F, plain, raw[at + 4 + size :]


def heard(chunks: list[bytes]) -> tuple[Inner, Wire, WebSocket]:
    """What comes out of bytes that follow an accepted upgrade in these pieces."""

    async def run() -> tuple[Inner, Wire, WebSocket]:
        inner, wire = Inner(), Wire()
        socket = WebSocket(inner, "h", 1, "", CHANCE)
        socket.connection_made(wire)
        nonce = base64.b64decode(wire.written.partition(b"Key: ")[2].partition(b"\r\n")[0])
        wire.written = b""
        socket.data_received(accept(nonce))
        await socket.opened
        for chunk in chunks:
            socket.data_received(chunk)
        return inner, wire, socket

    return asyncio.run(run())


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0, 2]), st.binary(max_size=300)), max_size=6),
    st.integers(0, 70_000),
    st.data(),
)
def test_frames_in_any_pieces(
    frames: list[tuple[int, bytes]], long: int, data: st.DataObject
) -> None:
    """However the network cuts it, the bytes come out in order; pings between are answered."""
    stream, expected = b"", b""
    for opcode, payload in [*frames, (2, bytes(long))]:
        stream += served(opcode, payload) + served(9, b"hi")
        expected += payload
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *cuts, len(stream)]
    inner, wire, _ = heard([stream[a:b] for a, b in pairwise(edges)])
    assert inner.heard == expected
    rest, pongs = wire.written, 0
    while rest:
        opcode, payload, rest = unmasked(rest)
        assert (opcode, payload) == (10, b"hi")
        pongs += 1
    assert pongs == len(frames) + 1


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=5))
def test_any_bytes_are_read_calmly(chunks: list[bytes]) -> None:
    """Bytes that are no frames end the connection; they never crash it."""
    heard(chunks)


@given(st.binary(max_size=70_000), st.binary(min_size=4, max_size=4))
def test_what_is_written_is_masked(payload: bytes, key: bytes) -> None:
    """A server takes the mask off and finds what was written."""
    assert unmasked(frame(2, payload, key)) == (2, payload, b"")


def test_the_example_of_the_rfc() -> None:
    """RFC 6455, section 5.7: a masked "Hello"; section 1.3: the accept of its nonce."""
    assert frame(1, b"Hello", bytes.fromhex("37fa213d")).hex() == "818537fa213d7f9f4d5158"
    nonce = base64.b64decode("dGhlIHNhbXBsZSBub25jZQ==")
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in accept(nonce)
    check_upgrade(read_head(accept(nonce).partition(b"\r\n\r\n")[0]), nonce)


@pytest.mark.parametrize("bad", [b"\xc2\x00", b"\x82\x80", b"\x89\x7e\x01\x00", b"\x8b\x00"])
def test_what_no_server_sends_ends_it(bad: bytes) -> None:
    """Unknown extensions, masked or unknown frames, long control frames: hung up."""
    _, wire, _ = heard([bad])
    assert wire.aborted


def test_a_goodbye_is_heard_and_said() -> None:
    """A close frame closes; closing from our side says so first."""
    inner, wire, socket = heard([served(8, b"\x03\xe8")])
    assert wire.closed
    socket.connection_lost(None)
    assert inner.lost
    mine = Wire()
    Framing(mine, CHANCE).close()
    assert unmasked(mine.written)[:2] == (8, b"\x03\xe8")
    assert mine.closed


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "HTTP 403 Forbidden"),
        (b"HTTP/1.1 101 X\r\nSec-WebSocket-Accept: bm8=\r\n\r\n", "not to our question"),
        (b'INFO {"nonce":""}\r\n\r\n', "does not speak HTTP"),
        (b"x" * 20_000, "does not speak HTTP"),
        (b"", "hangs up"),
    ],
)
@pytest.mark.anyio
async def test_an_upgrade_that_is_refused_says_why(answer: bytes, said: str) -> None:
    """The status of a web server or proxy that is in the way is part of the message."""
    async with answering(answer) as port:
        with pytest.raises(UpgradeRefused, match=said):
            await open_websocket(Inner(), f"ws://127.0.0.1:{port}", None, CHANCE)


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """A server that says ``answer`` to whatever it hears."""
    tasks: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await end(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield int(server.sockets[0].getsockname()[1])
        await asyncio.gather(*filter(None, tasks))


async def end(writer: asyncio.StreamWriter) -> None:
    """Hang up."""
    with suppress(ConnectionError):
        await writer.drain()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@asynccontextmanager
async def proxy(status: bytes = b"200 OK") -> AsyncIterator[tuple[str, list[bytes]]]:
    """An HTTP proxy that knows CONNECT and keeps the requests."""
    asked: list[bytes] = []
    tasks: set[asyncio.Task[None] | None] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        request = await reader.readuntil(b"\r\n\r\n")
        asked.append(request)
        writer.write(b"HTTP/1.1 " + status + b"\r\n\r\n")
        if status.startswith(b"200"):
            host, _, port = request.split()[1].decode().rpartition(":")
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
            await end(far_writer)
        await end(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://me:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
        await asyncio.gather(*filter(None, tasks))


@asynccontextmanager
async def websocket_server(home: Path) -> AsyncIterator[NatsServer]:
    """NATS with a WebSocket door on loopback."""
    listener = WebSocketListener("127.0.0.1", 0)
    async with nats_server(NatsServerSettings(home, port=0, websocket=listener)) as server:
        yield server


def party(server: NatsServer) -> NatsSettings:
    """A node that connects by WebSocket."""
    identity = Identity.create(SystemRandomness())
    now_ms = SystemClock().now_ms()
    jwt = server.authority.user_jwt(identity.party, Role.NODE, 3_600_000, now_ms)
    return NatsSettings((server.websocket_url,), identity, lambda: jwt)


@pytest.mark.anyio
async def test_a_party_works_over_a_websocket_and_a_proxy(tmp_path: Path) -> None:
    """Large and small messages come back whole, directly and through an HTTP proxy."""
    async with websocket_server(tmp_path) as server, proxy() as (through, asked):
        direct = party(server)
        for there in (direct, replace(direct, proxy=through)):
            heard: list[Delivery] = []
            async with connect_nats(there) as wire:
                subject = subjects.control(wire.party)
                async with wire.subscribe(subject, heard.append), asyncio.timeout(5):
                    for size in (10, 1000, 900_000):
                        await wire.publish(subject, bytes(size))
                    while len(heard) < 3:
                        await asyncio.sleep(0.005)
            assert [len(one.payload) for one in heard] == [10, 1000, 900_000]
        assert len(asked) == 1
        assert b"Proxy-Authorization: Basic " in asked[0]


@pytest.mark.anyio
async def test_a_proxy_that_says_no(tmp_path: Path) -> None:
    """Its status is told; what is no proxy's address is refused."""
    async with websocket_server(tmp_path) as server, proxy(b"407 Log in first") as (through, _):
        there = replace(party(server), proxy=through, first_connect_s=0.3)
        with pytest.raises(Unavailable, match="the proxy answers HTTP 407"):
            async with connect_nats(there):
                pass
        with pytest.raises(ConfigurationRefused, match="http://host:port") as caught:
            async with connect_nats(replace(there, proxy="socks5://me:secret@x")):
                pass
        assert "secret" not in caught.value.message
        assert "secret" not in repr(there)


@pytest.mark.anyio
async def test_the_probe_goes_by_the_proxy_too(tmp_path: Path) -> None:
    """Through it to the open WebSocket; one that says no is the hop that fails, unnamed login."""
    async with websocket_server(tmp_path) as server:
        async with proxy() as (through, _):
            who = Applicant(SystemClock(), CHANCE, proxy=through)
            steps = await probe(server.websocket_url, who)
            assert [step.hop for step in steps] == [Hop.TCP, Hop.WEBSOCKET]
            assert steps[-1].ok
        async with proxy(b"403 Not there") as (through, _):
            steps = await probe(server.websocket_url, replace(who, proxy=through))
    assert (steps[-1].hop, steps[-1].ok) == (Hop.TCP, False)
    assert "HTTP 403 Not there" in steps[-1].found
    assert "secret" not in "".join(step.found for step in steps)


@pytest.mark.anyio
async def test_a_bad_credential_is_refused_over_a_websocket_too(tmp_path: Path) -> None:
    """The refusal is a refusal, not a broken connection."""
    async with websocket_server(tmp_path) as server:
        with pytest.raises(PartyRefused):
            async with connect_nats(replace(party(server), credential=lambda: "")):
                pass
