"""A request as it comes in: its head at once, its body when it is there, its client while it stays.

Knows HTTP's meaning and nothing of sockets: `starai.gateway.web.connections` feeds it. Knows
nothing of models or keys.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Final
from urllib.parse import unquote_to_bytes

import anyio
import msgspec

from starai.core.errors import RequestTooLarge
from starai.gateway.errors import Headers, RequestRefused

#: Path and query together. No address of this API is longer than a model's name.
_URL_BYTES_MAX: Final = 4096
#: All headers together; browsers with many cookies stay under it.
_HEAD_BYTES_MAX: Final = 32 << 10
#: How much of a body that is too large is read, and how long, so that its sender hears why.
_DISCARDED_BYTES_MAX: Final = 64 << 20
_DISCARD_S: Final = 2.0


class Head(msgspec.Struct, frozen=True, gc=False):
    """What the gateway reads of a request's head."""

    method: str
    path: str
    authorization: bytes
    content_length: int | None
    idempotency_key: bytes
    origin: bytes
    host: bytes
    content_encoding: bytes
    asked_headers: bytes
    asked_method: bytes


class ClientGone(Exception):
    """The client closed the connection before its request was complete; nobody is to be told."""


class Audience:
    """Whoever an answer is for: there, or gone. ``on_gone`` is called once, when it leaves."""

    __slots__ = ("gone", "on_gone")

    def __init__(self) -> None:
        """Be there."""
        self.gone = False
        self.on_gone: Callable[[], None] | None = None

    def leave(self) -> None:
        """Be gone."""
        if not self.gone:
            self.gone = True
            if self.on_gone is not None:
                self.on_gone()


class Incoming(Audience):
    """One request. ``method``, ``path`` and ``headers`` (lower-case names) are as they came.

    ``on_wanted`` is called when its body is waited for: a client that sent "Expect: 100-continue"
    is told then.
    """

    __slots__ = (
        "_bytes_max",
        "_news",
        "_parts",
        "_size",
        "complete",
        "headers",
        "method",
        "on_wanted",
        "path",
        "target",
    )

    def __init__(self, method: str, target: bytes, headers: Headers, bytes_max: int) -> None:
        """Begin with a head; keep at most ``bytes_max`` of the body."""
        super().__init__()
        self.method = method
        self.target = target
        self.headers = headers
        self.path = _path(target)
        #: Whether all of the body has come.
        self.complete = False
        self.on_wanted: Callable[[], None] | None = None
        self._bytes_max = bytes_max
        self._parts: list[bytes] = []
        self._size = 0
        self._news: anyio.Event | None = None

    def feed(self, data: bytes) -> None:
        """Take a piece of the body; what is too much is counted and dropped."""
        self._size += len(data)
        if self._size <= self._bytes_max:
            self._parts.append(data)
        else:
            self._parts.clear()
        self._tell()

    def finish(self) -> None:
        """The body is complete."""
        self.complete = True
        self._tell()

    def leave(self) -> None:
        """The client is gone."""
        super().leave()
        self._tell()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()

    def head(self) -> Head:
        """The parts of the head that matter.

        Raises:
            RequestRefused: the address, the headers or the length of the body are impossible.
        """
        found = dict(self.headers)
        if sum(map(len, chain.from_iterable(self.headers))) > _HEAD_BYTES_MAX:
            raise RequestRefused("The request headers are too large.", reason=None, status=431)
        if len(self.target) > _URL_BYTES_MAX:
            raise RequestRefused("The URL is too long.", reason=None, status=414)
        length = found.get(b"content-length")
        if length is not None and not (length.isdigit() and len(length) < 16):
            raise RequestRefused("The content-length header is not a number.", reason=None)
        return Head(
            method=self.method,
            path=self.path,
            authorization=found.get(b"authorization", b""),
            content_length=int(length) if length is not None else None,
            idempotency_key=found.get(b"idempotency-key", b""),
            origin=found.get(b"origin", b""),
            host=found.get(b"host", b""),
            content_encoding=found.get(b"content-encoding", b""),
            asked_headers=found.get(b"access-control-request-headers", b""),
            asked_method=found.get(b"access-control-request-method", b""),
        )

    async def body(self, head: Head, *, deadline_s: float) -> bytes:
        """All of the body.

        Raises:
            RequestTooLarge: it has too many bytes.
            RequestRefused: it took longer than ``deadline_s``, or is compressed.
            ClientGone: the client left meanwhile.
        """
        if head.content_encoding not in (b"", b"identity"):
            raise RequestRefused(
                "Compressed request bodies are not supported; send the body without "
                "content-encoding.",
                reason="unsupported_content_encoding",
                status=415,
            )
        if not self.complete or self._size > self._bytes_max:
            await self._arrive(head.content_length or 0, deadline_s)
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    async def _arrive(self, announced: int, deadline_s: float) -> None:
        if announced <= self._bytes_max:
            if self.on_wanted is not None and not self.complete:
                self.on_wanted()
            await self._wait(deadline_s, self._bytes_max)
        if max(announced, self._size) > self._bytes_max:
            # A client that is still sending when its connection closes never sees the answer.
            await self._wait(_DISCARD_S, _DISCARDED_BYTES_MAX)
        if self.gone and not self.complete:
            raise ClientGone
        if max(announced, self._size) > self._bytes_max:
            raise RequestTooLarge(f"The request body may have at most {self._bytes_max} bytes.")
        if not self.complete:
            raise RequestRefused(
                f"The request body did not arrive within {deadline_s:g} seconds.",
                reason="request_timeout",
                status=408,
            )

    async def _wait(self, seconds: float, bytes_max: int) -> None:
        """Until all is there, the client is gone, too much has come, or the time is up."""
        with anyio.move_on_after(seconds):
            while not (self.complete or self.gone) and self._size <= bytes_max:
                self._news = anyio.Event()
                await self._news.wait()


def _path(target: bytes) -> str:
    """The path of a request's target, decoded; also of one in absolute form (RFC 9112, 3.2.2)."""
    if not target.startswith(b"/") and b"://" in target:
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    path = target.partition(b"?")[0].partition(b"#")[0]
    if b"%" in path:
        path = unquote_to_bytes(path)
    return path.decode("utf-8", "replace")
