"""Deadlines and bounds that uvicorn leaves open: a client that sends its request's head slowly.

Works on the attributes that uvicorn's two HTTP protocols (httptools, h11) share; a test holds a
new version of uvicorn to it.
"""

from __future__ import annotations

from typing import Any, Final

#: A head comes in one packet; this is for the worst of mobile networks.
_HEAD_DEADLINE_S: Final = 20.0
#: Twice what the application admits: beyond that nothing is parsed any more.
_HEAD_BYTES_MAX: Final = 64 << 10


class HeadGuard:
    """Goes in front of one of uvicorn's protocols: one connection."""

    cycle: Any
    loop: Any
    transport: Any
    _timer: Any = None
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """A client connected: its first head is due."""
        super().connection_made(transport)  # type: ignore[misc]
        self._timer = self.loop.call_later(_HEAD_DEADLINE_S, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._disarm()
        super().connection_lost(exc)  # type: ignore[misc]

    def data_received(self, data: bytes) -> None:
        """Parse; whoever is still in the middle of a head then has a deadline and a bound."""
        super().data_received(data)  # type: ignore[misc]
        if not self._awaits_head():
            self._disarm()
            return
        self._head_bytes += len(data)
        if self._timer is None:
            self._timer = self.loop.call_later(_HEAD_DEADLINE_S, self._head_is_late)
        if self._head_bytes > _HEAD_BYTES_MAX and not self.transport.is_closing():
            self.send_400_response("The request headers are too large.")  # type: ignore[attr-defined]

    def _awaits_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _disarm(self) -> None:
        self._head_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_is_late(self) -> None:
        self._timer = None
        if self._awaits_head():
            self.transport.close()


def guarded_protocol() -> type[Any]:
    """The fastest of uvicorn's protocols here, behind a `HeadGuard`."""
    base: type[Any]
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: PLC0415

        base = HttpToolsProtocol
    except ImportError:  # httptools has no wheel for this platform
        from uvicorn.protocols.http.h11_impl import H11Protocol  # noqa: PLC0415

        base = H11Protocol
    return type("GuardedProtocol", (HeadGuard, base), {})
