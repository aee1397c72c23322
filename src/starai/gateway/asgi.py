"""HTTP as ASGI hands it over: the head, the body and one reply. Knows nothing of models or keys.

(ASGI specification, HTTP message format 2.3.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import anyio
import msgspec

from starai.core.clock import Clock
from starai.core.errors import RequestTooLarge
from starai.gateway.errors import Headers, RequestRefused

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Path and query together. No address of this API is longer than a model's name.
_URL_BYTES_MAX: Final = 4096
#: All headers together; browsers with many cookies stay under it.
_HEAD_BYTES_MAX: Final = 32 << 10
#: How much of a body that is too large is read, and how long, so that its sender hears why.
_DISCARDED_BYTES_MAX: Final = 64 << 20
_DISCARD_S: Final = 2.0
_JSON: Final = (b"content-type", b"application/json")
_EVENTS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx would otherwise collect the stream before passing it on.
    (b"x-accel-buffering", b"no"),
]


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


def read_head(scope: Scope) -> Head:
    """The parts of a request's head that matter.

    Raises:
        RequestRefused: the address, the headers or the length of the body are impossible.
    """
    found: dict[bytes, bytes] = {}
    size = 0
    for name, value in scope["headers"]:
        size += len(name) + len(value)
        found[name] = value
    if size > _HEAD_BYTES_MAX:
        raise RequestRefused("The request headers are too large.", reason=None, status=431)
    if len(scope.get("raw_path") or b"") + len(scope.get("query_string", b"")) > _URL_BYTES_MAX:
        raise RequestRefused("The URL is too long.", reason=None, status=414)
    length = found.get(b"content-length")
    if length is not None and not (length.isdigit() and len(length) < 16):
        raise RequestRefused("The content-length header is not a number.", reason=None)
    return Head(
        method=scope["method"],
        path=scope["path"],
        authorization=found.get(b"authorization", b""),
        content_length=int(length) if length is not None else None,
        idempotency_key=found.get(b"idempotency-key", b""),
        origin=found.get(b"origin", b""),
        host=found.get(b"host", b""),
        content_encoding=found.get(b"content-encoding", b""),
        asked_headers=found.get(b"access-control-request-headers", b""),
        asked_method=found.get(b"access-control-request-method", b""),
    )


class ClientGone(Exception):
    """The client closed the connection before its request was complete; nobody is to be told."""


async def read_body(receive: Receive, head: Head, *, bytes_max: int, deadline_s: float) -> bytes:
    """The whole body of a request.

    Raises:
        RequestTooLarge: it has more than ``bytes_max`` bytes.
        RequestRefused: it took longer than ``deadline_s``, or is compressed.
        ClientGone: the client left meanwhile.
    """
    if head.content_encoding not in (b"", b"identity"):
        raise RequestRefused(
            "Compressed request bodies are not supported; send the body without content-encoding.",
            reason="unsupported_content_encoding",
            status=415,
        )
    too_large = RequestTooLarge(f"The request body may have at most {bytes_max} bytes.")
    if head.content_length is not None and head.content_length > bytes_max:
        await _discard(receive)
        raise too_large
    with anyio.move_on_after(deadline_s):
        body = b""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body = message.get("body", b"")
            size += len(body)
            if size > bytes_max:
                await _discard(receive)
                raise too_large
            if not message.get("more_body", False):
                return b"".join((*parts, body)) if parts else body
            parts.append(body)
    raise RequestRefused(
        f"The request body did not arrive within {deadline_s:g} seconds.",
        reason="request_timeout",
        status=408,
    )


async def _discard(receive: Receive) -> None:
    """Read on for a while without keeping anything.

    A client that is still sending when its connection closes never sees the answer.
    """
    left = _DISCARDED_BYTES_MAX
    with anyio.move_on_after(_DISCARD_S):
        while left > 0:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            left -= len(message.get("body", b""))
            if not message.get("more_body", False):
                return


class Reply:
    """The one answer to a request, whole or as a stream of server-sent events.

    ``headers`` go with it whatever it says: the request's id, CORS. ``late_headers`` are asked
    for when it begins: what is left of the caller's rate limits is only known then.
    """

    __slots__ = (
        "_clock",
        "_send",
        "begun_s",
        "complete",
        "failed",
        "headers",
        "last_write_s",
        "late_headers",
        "started_s",
        "status",
        "streaming",
    )

    def __init__(self, send: Send, clock: Clock, headers: Headers) -> None:
        """Answer through ``send``."""
        self._send = send
        self._clock = clock
        self.headers = headers
        self.late_headers: Callable[[], Headers] | None = None
        self.started_s = clock.monotonic_s()
        self.last_write_s = self.started_s
        #: The HTTP status once an answer has begun, else 0.
        self.status = 0
        #: When the first event of a stream was sent.
        self.begun_s: float | None = None
        #: Whether the request asked for a stream; None: not yet known.
        self.streaming: bool | None = None
        self.complete = False
        #: Whether it told of an error, be it in the middle of a stream.
        self.failed = False

    @property
    def begun(self) -> bool:
        """Whether a status has been sent."""
        return self.status != 0

    def _common(self) -> Headers:
        elapsed_ms = (self._clock.monotonic_s() - self.started_s) * 1000
        elapsed = (b"openai-processing-ms", str(round(elapsed_ms)).encode())
        late = self.late_headers() if self.late_headers else ()
        return [*self.headers, *late, elapsed]

    async def whole(
        self,
        status: int,
        body: bytes,
        *headers: tuple[bytes, bytes],
        content_type: tuple[bytes, bytes] = _JSON,
    ) -> None:
        """Send status, headers and body, and be done."""
        self.status = status
        length = (b"content-length", str(len(body)).encode())
        every = [content_type, length, *self._common(), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": every})
        await self._send({"type": "http.response.body", "body": body})
        self.complete = True

    async def write(self, events: bytes) -> None:
        """Send server-sent events; the first begins the stream with status 200."""
        if self.status == 0:
            self.status = 200
            every = [*_EVENTS, *self._common()]
            await self._send({"type": "http.response.start", "status": 200, "headers": every})
        self.last_write_s = self._clock.monotonic_s()
        if self.begun_s is None:
            self.begun_s = self.last_write_s
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self, events: bytes = b"") -> None:
        """Send the last events and end the stream."""
        await self._send({"type": "http.response.body", "body": events})
        self.complete = True

    async def pass_on(self, message: Message, *headers: tuple[bytes, bytes]) -> None:
        """Send a message that another reply without headers of its own recorded."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            recorded = [pair for pair in message["headers"] if pair[0] != b"openai-processing-ms"]
            message = {**message, "headers": [*recorded, *self._common(), *headers]}
        elif not message.get("more_body", False):
            self.complete = True
        await self._send(message)
