"""The one answer to a request, whole or as a stream of server-sent events.

Knows nothing of models, keys or sockets: an `Outlet` takes what it says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from starai.core.clock import Clock
from starai.gateway.errors import Headers

_JSON: Final = (b"content-type", b"application/json")
_EVENTS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx would otherwise collect the stream before passing it on.
    (b"x-accel-buffering", b"no"),
]


class Outlet(Protocol):
    """Where an answer goes. What is said after the client has left is dropped."""

    def begin(self, status: int, headers: Headers, body: bytes | None) -> None:
        """Send status and headers, and with a ``body`` all of the answer."""
        ...

    def more(self, data: bytes) -> None:
        """Send a piece of a body that was begun without one."""
        ...

    def end(self, data: bytes) -> None:
        """Send the last piece of such a body."""
        ...

    @property
    def congested(self) -> bool:
        """Whether more has been said than the client takes."""
        ...

    async def drained(self) -> None:
        """Wait until the client takes more, or is gone."""
        ...


class Reply:
    """Writes one answer, and remembers what it was.

    ``headers`` go with it whatever it says: the request's id, CORS. ``late_headers`` are asked
    for when it begins: what is left of the caller's rate limits is only known then.
    """

    __slots__ = (
        "_clock",
        "_outlet",
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

    def __init__(self, outlet: Outlet, clock: Clock, headers: Headers) -> None:
        """Answer through ``outlet``."""
        self._outlet = outlet
        self._clock = clock
        self.headers = headers
        self.late_headers: Callable[[], Headers] | None = None
        self.started_s = clock.monotonic_s()
        self.last_write_s = self.started_s
        #: The HTTP status once an answer has begun, else 0.
        self.status = 0
        #: When the first event of a stream was sent.
        self.begun_s: float | None = None
        #: Whether the request asked for a stream.
        self.streaming = False
        self.complete = False
        #: Whether it told of an error, be it in the middle of a stream.
        self.failed = False

    @property
    def begun(self) -> bool:
        """Whether a status has been sent."""
        return self.status != 0

    def _common(self) -> Headers:
        elapsed_ms = (self._clock.monotonic_s() - self.started_s) * 1000
        elapsed = (b"openai-processing-ms", b"%d" % round(elapsed_ms))
        late = self.late_headers() if self.late_headers else ()
        return [*self.headers, *late, elapsed]

    def whole(
        self,
        status: int,
        body: bytes,
        *headers: tuple[bytes, bytes],
        content_type: tuple[bytes, bytes] = _JSON,
    ) -> None:
        """Send status, headers and body, and be done."""
        self.status = status
        self._outlet.begin(status, [content_type, *self._common(), *headers], body)
        self.complete = True

    def say(self, events: bytes) -> None:
        """Send server-sent events; the first begins the stream with status 200."""
        self.last_write_s = self._clock.monotonic_s()
        if self.status == 0:
            self.status = 200
            self.begun_s = self.last_write_s
            self._outlet.begin(200, [*_EVENTS, *self._common()], None)
        self._outlet.more(events)

    async def write(self, events: bytes) -> None:
        """Send server-sent events as `say` does, no faster than the client takes them."""
        self.say(events)
        if self._outlet.congested:
            await self._outlet.drained()

    def end(self, events: bytes) -> None:
        """Send the last events and end the stream."""
        self._outlet.end(events)
        self.complete = True

    def replay(self, status: int, headers: Headers, body: bytes | None) -> None:
        """Begin with what another reply, without headers of its own, began with."""
        self.status = status
        recorded = [pair for pair in headers if pair[0] != b"openai-processing-ms"]
        self._outlet.begin(status, [*recorded, *self._common()], body)
        self.complete = body is not None
