"""Waiting that costs little: a bell that wakes one reader, the loop's time, and calls from threads.

The road of every token leads through the first two. On asyncio they use its futures and timers,
for a tenth of what `anyio.Event` inside a cancel scope costs; elsewhere (trio, virtual time)
anyio's.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - what the road waits on
import math
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel


def loop_time() -> float:
    """The event loop's clock in seconds: `anyio.current_time`, without its detours."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return anyio.current_time()


def call_soon(token: anyio.lowlevel.EventLoopToken, call: Callable[[], object]) -> None:
    """From any thread: have the event loop of ``token`` make a call soon, without waiting for it.

    Raises:
        RuntimeError: the loop has ended.
    """
    loop: Any = token.native_token
    if isinstance(loop, asyncio.AbstractEventLoop):
        loop.call_soon_threadsafe(call)
    else:
        loop.run_sync_soon(call)


class Bell:
    """Wakes one reader, who looks for everything that may have come; rings add up to one."""

    __slots__ = ("_event", "_future", "_rung")

    def __init__(self) -> None:
        """Hang there in silence."""
        self._rung = False
        self._future: asyncio.Future[None] | None = None
        self._event: anyio.Event | None = None

    def ring(self) -> None:
        """Wake the reader, now or as soon as it waits."""
        self._rung = True
        if self._future is not None:
            _end(self._future)
        elif self._event is not None:
            self._event.set()

    async def wait(self, until_s: float = math.inf) -> bool:
        """Wait until it has been rung since the last wait ended, or ``until_s`` (`loop_time`).

        Returns whether it was rung.
        """
        if not self._rung:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                await self._wait_for_event(until_s)
            else:
                future = self._future = loop.create_future()
                timer = None if until_s == math.inf else loop.call_at(until_s, _end, future)
                try:
                    await future
                finally:
                    self._future = None
                    if timer is not None:
                        timer.cancel()
        rung, self._rung = self._rung, False
        return rung

    async def _wait_for_event(self, until_s: float) -> None:
        self._event = anyio.Event()
        try:
            with anyio.CancelScope(deadline=until_s):
                await self._event.wait()
        finally:
            self._event = None


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
