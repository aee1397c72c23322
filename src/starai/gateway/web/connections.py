"""HTTP/1.1 on asyncio: reads requests off connections and writes their answers (RFC 9112).

llhttp (httptools) parses in C; each request runs in one task, and its answer is written without
another hop: a quarter of what a request costs in a general ASGI server. Bounds whoever is slow,
large or many. Knows nothing of what requests mean.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - the HTTP server's edge
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, cast

import httptools

from starai.core.clock import Clock
from starai.core.logging import event
from starai.gateway.errors import Headers
from starai.gateway.web.incoming import Incoming
from starai.gateway.web.replies import Outlet

_LOG: Final = logging.getLogger(__name__)

#: A head comes in one packet; this is for the worst of mobile networks.
_HEAD_DEADLINE_S: Final = 20.0
#: Twice what the application admits: beyond that nothing is parsed any more.
_HEAD_BYTES_MAX: Final = 64 << 10
#: How long a connection may stay without a request.
_KEEP_ALIVE_S: Final = 60.0
#: How often slow and idle connections are looked for.
_LOOK_S: Final = 0.5
#: What may wait for a slow client before whoever writes to it has to wait, too.
_CONGESTED_BYTES: Final = 256 << 10
_STATUS_LINE: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

#: Answers one request through an outlet.
Application = Callable[[Incoming, Outlet], Awaitable[None]]


def _plain(status: int, text: str) -> bytes:
    """A last answer to a connection that is then closed."""
    body = text.encode()
    head = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
    return b"%bcontent-length: %d\r\n%b\r\n%b" % (_STATUS_LINE[status], len(body), head, body)


_MALFORMED: Final = _plain(400, "Invalid HTTP request received.")
_HEAD_TOO_LARGE: Final = _plain(400, "The request headers are too large.")
_CROWDED: Final = _plain(503, "Too many connections; try again shortly.")


class Connections:
    """All connections of one listener, and the answers in progress on them."""

    def __init__(
        self, application: Application, clock: Clock, *, most: int, body_bytes_max: int
    ) -> None:
        """Have ``application`` answer requests on at most ``most`` connections at once."""
        self.application = application
        self.loop = asyncio.get_running_loop()
        self.clock = clock
        self.body_bytes_max = body_bytes_max
        #: The header that dates answers; it changes once a second.
        self.date = b""
        self.stopping = False
        self.open: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._most = most
        self._set_date()

    def accept(self) -> Connection:
        """A protocol for a new connection (an asyncio protocol factory)."""
        return Connection(self)

    @property
    def crowded(self) -> bool:
        """Whether no more connections are served."""
        return len(self.open) > self._most

    async def run(self) -> None:
        """Close slow and idle connections and keep the date, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self._set_date()
            now_s = self.clock.monotonic_s()
            for connection in [*self.open]:
                connection.close_if_late(now_s)

    async def stop(self, grace_s: float) -> None:
        """Let answers in progress end for ``grace_s`` seconds, then end them; hang up."""
        self.stopping = True
        for connection in [*self.open]:
            connection.close_if_idle()
        if self.tasks:
            await asyncio.wait([*self.tasks], timeout=grace_s)
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait([*self.tasks])
        for connection in [*self.open]:
            connection.abort()

    def _set_date(self) -> None:
        self.date = b"date: %b\r\n" % formatdate(self.clock.now_ms() // 1000, usegmt=True).encode()


class Connection(asyncio.Protocol):
    """One connection: requests in the order in which they come, one at a time."""

    def __init__(self, connections: Connections) -> None:
        """Belong to ``connections``."""
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: Headers = []
        self._head_bytes = 0
        #: The request whose body is still coming.
        self._incoming: Incoming | None = None
        self._answering: Answering | None = None
        #: Requests that were sent before the answers to those before them were complete.
        self._pipeline: deque[Answering] = deque()
        #: After this nothing more is read: what followed was no HTTP/1.1.
        self._deaf = False
        self._since_s = connections.clock.monotonic_s()
        self._in_head = True
        self._paused = False
        self._drained = asyncio.Event()
        self._drained.set()

    # -- asyncio's side ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin (asyncio calls this)."""
        # A cast, since uvloop's stream transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_CONGESTED_BYTES)
        self._connections.open.add(self)
        if self._connections.crowded or self._connections.stopping:
            self._hang_up(_CROWDED)

    def connection_lost(self, exc: Exception | None) -> None:
        """End: whoever works for this client learns of it (asyncio calls this)."""
        self._connections.open.discard(self)
        self._transport = None
        self._pipeline.clear()
        self._drained.set()
        if self._answering is not None:
            self._answering.incoming.leave()

    def pause_writing(self) -> None:
        """The client takes no more (asyncio calls this)."""
        self._drained.clear()

    def resume_writing(self) -> None:
        """The client takes more again (asyncio calls this)."""
        self._drained.set()

    def data_received(self, data: bytes) -> None:
        """Parse what came (asyncio calls this)."""
        if self._deaf:
            return
        in_head = self._in_head
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._deaf = True  # this server speaks nothing else: the answer says it by being one
        except httptools.HttpParserError:
            self._hang_up(_MALFORMED)
            return
        if in_head and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES_MAX:
                self._hang_up(_HEAD_TOO_LARGE)

    # -- the parser's side ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins (httptools calls this)."""
        self._in_head = True
        self._head_bytes = 0
        self._since_s = self._connections.clock.monotonic_s()
        self._target = b""
        self._headers = []

    def on_url(self, target: bytes) -> None:
        """A piece of the request's target (httptools calls this)."""
        self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header (httptools calls this)."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is there: answer it, or let it wait for its turn (httptools calls this)."""
        parser, limit = self._parser, self._connections.body_bytes_max
        incoming = Incoming(parser.get_method().decode(), self._target, self._headers, limit)
        keep = parser.should_keep_alive() and not parser.should_upgrade()
        answering = Answering(self, incoming, keep)
        if not keep:
            answering.chunked = parser.get_http_version() == "1.1"
        if (b"expect", b"100-continue") in self._headers:
            incoming.on_wanted = self._continue
        self._incoming = incoming
        self._in_head = False
        if self._answering is None:
            self._answer(answering)
        else:
            self._pipeline.append(answering)
            if self._transport is not None and not self._paused:
                self._transport.pause_reading()
                self._paused = True

    def on_body(self, data: bytes) -> None:
        """A piece of the body (httptools calls this)."""
        if self._incoming is not None:
            self._incoming.feed(data)

    def on_message_complete(self) -> None:
        """The body is complete (httptools calls this)."""
        if self._incoming is not None:
            self._incoming.finish()
            self._incoming = None

    # -- answering --------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send, if the client is still there."""
        if self._transport is not None:
            self._transport.write(data)

    @property
    def congested(self) -> bool:
        """Whether more was written than the client takes."""
        return not self._drained.is_set()

    async def drained(self) -> None:
        """Wait until the client takes more, or is gone."""
        await self._drained.wait()

    def _continue(self) -> None:
        self.write(_CONTINUE)

    def _answer(self, answering: Answering) -> None:
        connections = self._connections
        self._answering = answering
        answering.date = connections.date
        task = connections.loop.create_task(self._run(answering))
        connections.tasks.add(task)
        task.add_done_callback(connections.tasks.discard)

    async def _run(self, answering: Answering) -> None:
        """Have a request answered; then come the next one, or the end of the connection."""
        try:
            await self._connections.application(answering.incoming, answering)
        except Exception as error:  # noqa: BLE001 - a boundary: one request must not end the rest
            event(_LOG, "answer_failed", logging.ERROR, fault=type(error).__name__)
        finally:
            self._answering = None
            self._go_on(answering)

    def _go_on(self, answering: Answering) -> None:
        transport = self._transport
        if transport is None:
            return
        if not answering.complete or not answering.keep or self._deaf:
            transport.close()
        elif self._pipeline:
            self._answer(self._pipeline.popleft())
        elif self._connections.stopping:
            transport.close()
        self._since_s = self._connections.clock.monotonic_s()
        if self._paused and not self._pipeline:
            self._paused = False
            transport.resume_reading()

    # -- closing ----------------------------------------------------------------------------

    def _hang_up(self, last_words: bytes) -> None:
        """Close a connection that cannot be understood; after the answer in progress, if any."""
        self._deaf = True
        if self._answering is None and self._transport is not None:
            self._transport.write(last_words)
            self._transport.close()

    def close_if_late(self, now_s: float) -> None:
        """Close when the client is too slow with a head, or has had nothing to ask for long."""
        if self._answering is None:
            # A request that was answered before its body had come counts as slow, too.
            slow = self._in_head or self._incoming is not None
            patience_s = _HEAD_DEADLINE_S if slow else _KEEP_ALIVE_S
            if now_s - self._since_s >= patience_s:
                self.abort()

    def close_if_idle(self) -> None:
        """Close unless an answer is in progress."""
        if self._answering is None and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


class Answering:
    """One request's answer on its connection (a `starai.gateway.web.replies.Outlet`)."""

    __slots__ = ("_connection", "chunked", "complete", "date", "incoming", "keep")

    def __init__(self, connection: Connection, incoming: Incoming, keep: bool) -> None:
        """Answer ``incoming``; ``keep`` the connection afterwards, if nothing speaks against it."""
        self.incoming = incoming
        self.keep = keep
        self.complete = False
        self._connection = connection
        self.date = b""
        #: Whether a stream says where it ends; HTTP/1.0 ends it with the connection.
        self.chunked = True

    def begin(self, status: int, headers: Headers, body: bytes | None) -> None:
        """Write the head, and with a ``body`` all of the answer."""
        lines = [_STATUS_LINE[status], self.date]
        for name, value in headers:
            if name == b"connection":
                self.keep = False
            else:
                lines.append(b"%b: %b\r\n" % (name, value))
        if body is None and self.chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        elif body is not None and status != HTTPStatus.NO_CONTENT:
            lines.append(b"content-length: %d\r\n" % len(body))
        if not self.keep:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        if body is not None:
            if self.incoming.method != "HEAD":
                lines.append(body)
            self.complete = True
        self._connection.write(b"".join(lines))

    def more(self, data: bytes) -> None:
        """Write a piece."""
        self._connection.write(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    def end(self, data: bytes) -> None:
        """Write the last piece and the end."""
        last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if self.chunked else data
        self._connection.write(last)
        self.complete = True

    @property
    def congested(self) -> bool:
        """Whether more was written than the client takes."""
        return self._connection.congested

    async def drained(self) -> None:
        """Wait until the client takes more, or is gone."""
        await self._connection.drained()
