"""One TCP (or TLS) connection to one NATS server, speaking the NATS client protocol.

The protocol is small and frozen (docs.nats.io, "Client Protocol"); reading it in the event loop's
own callback, with no task and no queue per message, costs about half of what nats-py does and
lets `starai.wire.nats` decide what a refusal means. Knows nothing of subscriptions' owners,
reconnection or credentials' contents: `greet` makes the CONNECT line, `receive` takes messages.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - the wire's edge
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final, cast

import anyio
import msgspec

from starai.core.limits import FRAME_BYTES_MAX
from starai.protocol.ports import Delivery

#: A protocol line; INFO of a large cluster is the longest, at a few KB.
LINE_BYTES_MAX: Final = 65_536
#: A message with its headers; the server's own limit is lower.
MESSAGE_BYTES_MAX: Final = 2 * FRAME_BYTES_MAX
#: Commands gathered in one turn of the event loop before they are written out early.
_GATHERED_BYTES_MAX: Final = 262_144
#: The kernel takes no more: publishers that can wait do so from here on.
_CONGESTED_BYTES: Final = 1 << 20

#: Takes (subscription id, message, whether it says "nobody listens").
Receive = Callable[[int, Delivery, bool], None]


class LinkLost(Exception):
    """The connection ended; the text is what the server said last, if it said why."""


class ServerInfo(msgspec.Struct, frozen=True):
    """What a server says of itself first: the fields of INFO that matter here."""

    max_payload: int = FRAME_BYTES_MAX
    nonce: str = ""
    tls_required: bool = False


class Link(asyncio.Protocol):
    """A connection; open one with `open_link`."""

    def __init__(self, receive: Receive, complain: Callable[[Link, str], None]) -> None:
        """Take who hears messages, and who hears the server's complaints (in lower case)."""
        self.receive = receive
        self.info = ServerInfo()
        self.fault = ""
        self.closed = anyio.Event()
        self.greeted = anyio.Event()
        #: Patterns that the server would not let this connection hear.
        self.denied: set[str] = set()
        self._complain = complain
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._rest = bytearray()
        self._needed = 0
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        #: Writes out what is gathered, at the end of this turn.
        self._due: asyncio.Handle | None = None
        self._pongs: deque[asyncio.Future[None]] = deque()
        self._drained = anyio.Event()
        self._paused = False

    # -- sending ----------------------------------------------------------------------------

    def send(self, command: bytes) -> None:
        """Send whole protocol lines, gathered with all others of this turn of the loop.

        Each packet wakes the server: written at once instead, 16 requests at a time cost all
        processes together 1.6 times as much, and the server 2.9 times.
        """
        if self._due is None:
            self._due = self._loop.call_soon(self._flush)
        self._gathered.append(command)
        self._gathered_bytes += len(command)
        if self._gathered_bytes > _GATHERED_BYTES_MAX:
            self._flush()

    @property
    def congested(self) -> bool:
        """Whether more has been sent than the network takes."""
        return self._paused

    @property
    def backlog_bytes(self) -> int:
        """What has been sent here and not yet taken by the network."""
        if self._transport is None:
            return 0
        return self._transport.get_write_buffer_size() + self._gathered_bytes

    async def wait_drained(self) -> None:
        """Wait until the network takes more, or the link ends."""
        while self._paused and not self.closed.is_set():
            await self._drained.wait()

    async def round_trip(self) -> None:
        """Wait until the server has handled all that was sent so far.

        Raises:
            LinkLost: the connection ended first.
        """
        if self.closed.is_set():
            raise LinkLost(self.fault)
        pong: asyncio.Future[None] = self._loop.create_future()
        self._pongs.append(pong)
        self.send(b"PING\r\n")
        await pong

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Speak TLS from here on.

        Raises:
            OSError: the handshake failed.
        """
        if self._transport is not None:
            upgraded = await self._loop.start_tls(
                self._transport, self, context, server_hostname=host
            )
            if upgraded is None:
                raise ConnectionResetError("the TLS handshake ended early")
            self.connection_made(upgraded)

    def close(self) -> None:
        """Write out what is gathered and hang up."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Hang up at once: the other side does not answer."""
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._gathered and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._gathered))
        self._gathered.clear()
        self._gathered_bytes = 0

    # -- asyncio's side ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin (asyncio calls this)."""
        # A cast, since uvloop's stream transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_CONGESTED_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        """End: whoever waits learns of it (asyncio calls this)."""
        self.closed.set()
        self.greeted.set()
        self._drained.set()
        while self._pongs:
            pong = self._pongs.popleft()
            if not pong.done():
                pong.set_exception(LinkLost(self.fault))

    def pause_writing(self) -> None:
        """The network takes no more (asyncio calls this)."""
        self._paused = True
        self._drained = anyio.Event()

    def resume_writing(self) -> None:
        """The network takes more again (asyncio calls this)."""
        self._paused = False
        self._drained.set()

    def data_received(self, data: bytes) -> None:
        """Read protocol lines and messages; keep an unfinished one (asyncio calls this)."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
        try:
            read = self._read(data)
        except (ValueError, IndexError, msgspec.MsgspecError):
            # Not NATS at the other end, or bytes were lost: nothing later can be trusted.
            self.fault = "the server's bytes are not the NATS protocol"
            self.abort()
            return
        if read < len(data):
            self._rest += memoryview(data)[read:]

    # -- reading ----------------------------------------------------------------------------

    def _read(self, data: bytes) -> int:
        """Handle each whole line or message; the number of bytes handled."""
        at, size = 0, len(data)
        while at < size:
            end = data.find(b"\r\n", at)
            if end < 0:
                if size - at > LINE_BYTES_MAX:
                    raise ValueError("line too long")
                self._needed = 0
                return at
            headed = data.startswith(b"HMSG ", at)
            if headed or data.startswith(b"MSG ", at):
                fields = data[at:end].split(b" ")
                begin, stop = end + 2, end + 2 + int(fields[-1])
                if stop + 2 > size:
                    if stop - begin > MESSAGE_BYTES_MAX:
                        raise ValueError("message too long")
                    self._needed = stop + 2 - at
                    return at
                absent = False
                if headed:
                    headers = begin + int(fields.pop(-2))
                    absent = data.startswith(b"NATS/1.0 503", begin)
                    begin = headers
                reply = fields[3].decode() if len(fields) == 5 else ""
                delivery = Delivery(fields[1].decode(), data[begin:stop], reply)
                self.receive(int(fields[2]), delivery, absent)
                at = stop + 2
            else:
                self._control(data[at:end])
                at = end + 2
        return at

    def _control(self, line: bytes) -> None:
        word, _, rest = line.partition(b" ")
        if word == b"PING":
            self.send(b"PONG\r\n")
        elif word == b"PONG":
            if self._pongs and not (pong := self._pongs.popleft()).done():
                pong.set_result(None)
        elif word == b"-ERR":
            self.fault = rest.decode(errors="replace").strip(" '").lower()
            self._complain(self, self.fault)
        elif word == b"INFO":
            self.info = msgspec.json.decode(rest, type=ServerInfo)
            self.greeted.set()
        elif word != b"+OK":
            raise ValueError("unknown word")


async def open_link(
    host: str,
    port: int,
    link: Link,
    greet: Callable[[ServerInfo], bytes],
    tls: ssl.SSLContext | None,
) -> None:
    """Connect ``link``, upgrade to TLS where either side asks for it, and log in.

    Raises:
        OSError: nobody answers there, or TLS failed.
        LinkLost: the server hung up; its reason is the text.
    """
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: link, host, port)
    try:
        await link.greeted.wait()
        if not link.closed.is_set() and (tls is not None or link.info.tls_required):
            await link.start_tls(tls or ssl.create_default_context(), host)
        if not link.closed.is_set():
            link.send(greet(link.info))
        await link.round_trip()
    except BaseException:
        link.abort()
        raise
