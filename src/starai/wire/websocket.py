"""A WebSocket under a link: for networks that let nothing out but HTTPS (RFC 6455).

NATS speaks the same bytes over a WebSocket as over TCP, so a `Link` never learns of it: what it
writes is put into binary frames, and what the frames carry is handed to it as it comes, whole or
not. `tunnel` gets out through an HTTP proxy (RFC 9110, section 9.3.6). Knows nothing of NATS.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - the wire's edge
import base64
import hashlib
import socket
import ssl
from typing import Final, NamedTuple, cast
from urllib.parse import urlsplit

from starai.core.errors import ConfigurationRefused
from starai.core.randomness import Randomness

#: The constant of RFC 6455, section 1.3.
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUED, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_FINAL: Final = 0x80
_MASKED: Final = 0x80
#: A control frame carries no more (RFC 6455, section 5.5).
_CONTROL_BYTES_MAX: Final = 125
#: Status line and headers of an HTTP answer; a proxy's page of refusal is not read.
HEAD_BYTES_MAX: Final = 16_384


class UpgradeRefused(OSError):
    """The other side, or a proxy on the way, speaks HTTP but opens no WebSocket."""


class HttpHead(NamedTuple):
    """The beginning of an HTTP answer: its status and its headers, by lower-case name."""

    status: int
    reason: str
    headers: dict[str, str]


def read_head(raw: bytes) -> HttpHead:
    """Read status line and headers; ``raw`` ends with the blank line.

    Raises:
        UpgradeRefused: it is not HTTP.
    """
    first, *rest = raw.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
        raise UpgradeRefused("it does not speak HTTP")
    pairs = (line.partition(":") for line in rest if ":" in line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return HttpHead(int(words[1]), words[2] if len(words) > 2 else "", headers)


def upgrade_request(host: str, port: int, path: str, nonce: bytes) -> bytes:
    """The request that asks for a WebSocket; ``nonce`` is 16 random bytes."""
    name = f"[{host}]" if ":" in host else host
    key = base64.b64encode(nonce).decode()
    return (
        f"GET {path or '/'} HTTP/1.1\r\nHost: {name}:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def check_upgrade(head: HttpHead, nonce: bytes) -> None:
    """See that the answer opens the WebSocket that was asked for.

    Raises:
        UpgradeRefused: it does not.
    """
    if head.status != 101:
        raise UpgradeRefused(f"it answers HTTP {head.status} {head.reason}, not with a WebSocket")
    digest = hashlib.sha1(base64.b64encode(nonce) + _GUID, usedforsecurity=False).digest()
    if head.headers.get("sec-websocket-accept") != base64.b64encode(digest).decode():
        raise UpgradeRefused("its answer is not to our question: something on the way repeats it")


def frame(opcode: int, payload: bytes, key: bytes) -> bytes:
    """One whole frame from a client: masked with the 4 bytes of ``key``."""
    size = len(payload)
    if size < 126:
        head = bytes((_FINAL | opcode, _MASKED | size))
    elif size < 1 << 16:
        head = bytes((_FINAL | opcode, _MASKED | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((_FINAL | opcode, _MASKED | 127)) + size.to_bytes(8, "big")
    # One big number each is the fastest exclusive or that Python has without numpy's overhead.
    pad = key * (size // 4 + 1)
    mixed = int.from_bytes(payload, "little") ^ int.from_bytes(pad[:size], "little")
    return head + key + mixed.to_bytes(size, "little")


def _frame_head(data: bytes, at: int) -> tuple[int, int, int] | None:
    """Opcode, payload's length and where it begins; None: there are too few bytes to say.

    Raises:
        ValueError: no server frames so.
    """
    if len(data) < at + 2:
        return None
    first, second = data[at], data[at + 1]
    if first & 0x70 or second & _MASKED:
        raise ValueError("an extension that nobody asked for, or a masked frame from a server")
    size, begin = second, at + 2
    if second == 126:
        begin += 2
        size = int.from_bytes(data[at + 2 : begin], "big")
    elif second == 127:
        begin += 8
        size = int.from_bytes(data[at + 2 : begin], "big")
    if len(data) < begin:
        return None
    return first & 0x0F, size, begin


class WebSocket(asyncio.Protocol):
    """The protocol between a socket and ``inner``: asks for the upgrade, then frames.

    ``opened`` is done once the WebSocket is open, or fails with `UpgradeRefused`.
    """

    def __init__(
        self, inner: asyncio.Protocol, host: str, port: int, path: str, randomness: Randomness
    ) -> None:
        """Take whose bytes travel, and where the WebSocket is asked for."""
        self._inner = inner
        self._randomness = randomness
        self._nonce = randomness.take(16)
        self._request = upgrade_request(host, port, path, self._nonce)
        self._transport: asyncio.Transport | None = None
        self._upgraded = False
        self._rest = b""
        self._left = 0
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- asyncio's side ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the WebSocket (asyncio calls this)."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell ``inner`` of the end (asyncio calls this)."""
        if self._upgraded:
            self._inner.connection_lost(exc)
        elif not self.opened.done():
            self.opened.set_exception(UpgradeRefused("it hangs up when asked for a WebSocket"))

    def pause_writing(self) -> None:
        """The network takes no more (asyncio calls this)."""
        if self._upgraded:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The network takes more again (asyncio calls this)."""
        if self._upgraded:
            self._inner.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Hand on what the frames carry (asyncio calls this)."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        try:
            if not self._upgraded:
                data = self._read_upgrade(data)
            self._read_frames(data)
        except UpgradeRefused as refused:
            if not self.opened.done():
                self.opened.set_exception(refused)
            self._abort()
        except ValueError:
            self._abort()

    # -- reading ----------------------------------------------------------------------------

    def _read_upgrade(self, data: bytes) -> bytes:
        """Read the answer to our request; what came after it."""
        head, blank, rest = data.partition(b"\r\n\r\n")
        if not blank:
            if len(data) > HEAD_BYTES_MAX:
                raise UpgradeRefused("it does not speak HTTP")
            self._rest = data
            return b""
        check_upgrade(read_head(head), self._nonce)
        self._upgraded = True
        if self._transport is not None:
            self._inner.connection_made(Framing(self._transport, self._randomness))
        if not self.opened.done():
            self.opened.set_result(None)
        return rest

    def _read_frames(self, data: bytes) -> None:
        at, size = 0, len(data)
        while at < size:
            if self._left:
                stop = min(size, at + self._left)
                self._left -= stop - at
                self._inner.data_received(data[at:stop])
                at = stop
                continue
            head = _frame_head(data, at)
            if head is None:
                self._rest = data[at:]
                return
            opcode, length, begin = head
            if opcode in (_CONTINUED, _TEXT, _BINARY):
                self._left, at = length, begin
                continue
            if length > _CONTROL_BYTES_MAX:
                raise ValueError("a control frame is short")
            if begin + length > size:
                self._rest = data[at:]
                return
            self._control(opcode, data[begin : begin + length])
            at = begin + length

    def _control(self, opcode: int, payload: bytes) -> None:
        if self._transport is None:
            return
        if opcode == _PING:
            self._transport.write(frame(_PONG, payload, self._randomness.take(4)))
        elif opcode == _CLOSE:
            self._transport.close()
        elif opcode != _PONG:
            raise ValueError("an unknown control frame")

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Framing(asyncio.Transport):
    """What ``inner`` takes for its transport: each write becomes one binary frame."""

    def __init__(self, under: asyncio.Transport, randomness: Randomness) -> None:
        """Write to ``under``."""
        super().__init__()
        self._under = under
        self._randomness = randomness

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data`` as one frame; its mask is fresh, as the RFC wants."""
        self._under.write(frame(_BINARY, bytes(data), self._randomness.take(4)))

    def get_write_buffer_size(self) -> int:
        """Bytes that the network has not taken yet."""
        return self._under.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """When writing is paused."""
        self._under.set_write_buffer_limits(high, low)

    def is_closing(self) -> bool:
        """Whether it ends."""
        return self._under.is_closing()

    def close(self) -> None:
        """Say so, then hang up."""
        if not self._under.is_closing():
            normally = (1000).to_bytes(2, "big")
            self._under.write(frame(_CLOSE, normally, self._randomness.take(4)))
        self._under.close()

    def abort(self) -> None:
        """Hang up at once."""
        self._under.abort()


async def open_websocket(
    inner: asyncio.Protocol,
    url: str,
    tls: ssl.SSLContext | None,
    randomness: Randomness,
    proxy: str = "",
) -> None:
    """Connect ``inner`` through a WebSocket at ``url`` (``ws://`` or ``wss://``).

    Args:
        inner: reads and writes what the frames carry.
        url: where the WebSocket is.
        tls: trust for ``wss://``; None for ``ws://``.
        randomness: masks and the upgrade's nonce.
        proxy: ``http://host:port`` of a proxy to go through, if any.

    Raises:
        OSError: nobody answers, or TLS failed.
        UpgradeRefused: no WebSocket is opened there, or the proxy does not let us through.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if tls else 80)
    made = WebSocket(inner, host, port, parts.path, randomness)
    loop = asyncio.get_running_loop()
    if proxy:
        through = await tunnel(proxy, host, port)
        name = host if tls else None
        await loop.create_connection(lambda: made, sock=through, ssl=tls, server_hostname=name)
    else:
        await loop.create_connection(lambda: made, host, port, ssl=tls)
    try:
        await made.opened
    except BaseException:
        made._abort()
        raise


def without_login(url: str) -> str:
    """``url`` as it may be shown: a proxy's address can hold a password."""
    scheme, slashes, rest = url.rpartition("//")
    return f"{scheme}{slashes}{rest.rpartition('@')[2]}"


async def tunnel(proxy: str, host: str, port: int) -> socket.socket:
    """A socket to ``host`` through an HTTP proxy, by its CONNECT.

    Raises:
        OSError: the proxy does not answer.
        UpgradeRefused: it does not let us through.
        ConfigurationRefused: ``proxy`` is no ``http://host:port``.
    """
    parts = urlsplit(proxy)
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigurationRefused(
            f"not a proxy's address: {without_login(proxy)!r}; expected http://host:port"
        )
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    try:
        await loop.sock_connect(made, address)
        name = f"[{host}]" if ":" in host else host
        login = ""
        if parts.username:
            pair = f"{parts.username}:{parts.password or ''}".encode()
            login = f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}\r\n"
        ask = f"CONNECT {name}:{port} HTTP/1.1\r\nHost: {name}:{port}\r\n{login}\r\n"
        await loop.sock_sendall(made, ask.encode())
        await _let_through(loop, made)
    except BaseException:
        made.close()
        raise
    return made


async def _let_through(loop: asyncio.AbstractEventLoop, made: socket.socket) -> None:
    """Read a proxy's answer; the far side speaks only once we have, so nothing comes after it."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = await loop.sock_recv(made, 4096)
        answer += more
        if not more or len(answer) > HEAD_BYTES_MAX:
            raise UpgradeRefused("the proxy hangs up")
    head = read_head(answer.partition(b"\r\n\r\n")[0])
    if head.status != 200:
        raise UpgradeRefused(f"the proxy answers HTTP {head.status} {head.reason}")
