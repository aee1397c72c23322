"""Stays with a request until it is answered: notices who leaves, who is late, who hears nothing."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from starai.core.clock import Clock
from starai.gateway.asgi import Receive, Reply

#: A comment of server-sent events: clients skip it, connections stay open.
_HEARTBEAT: Final = b": still working\n\n"


class Ending(enum.Enum):
    """How a request ended."""

    DONE = "done"
    #: The client left before its answer was complete; the work was cancelled.
    GONE = "gone"
    #: The time was up; the work was cancelled.
    LATE = "late"


async def attend(
    work: Callable[[], Awaitable[None]],
    receive: Receive,
    reply: Reply,
    clock: Clock,
    *,
    heartbeat_s: float,
    deadline_s: float,
) -> Ending:
    """Do ``work``, which writes ``reply``, until it is done, its client leaves or time is up.

    ``receive`` says ``http.disconnect`` when the client leaves and, as ASGI promises, also when
    the answer is complete: so the watch over it ends by itself, which is cheaper than to cancel
    it. A stream that is silent for ``heartbeat_s`` gets a heartbeat.
    """
    gone = finished = False

    async def watch() -> None:
        nonlocal gone
        while not gone:
            if reply.streaming is False:
                gone = (await receive())["type"] == "http.disconnect"
                continue
            silent_s = clock.monotonic_s() - reply.last_write_s
            if silent_s >= heartbeat_s:
                silent_s = 0.0
                if reply.streaming:
                    await reply.write(_HEARTBEAT)
            with anyio.move_on_after(heartbeat_s - silent_s):
                gone = (await receive())["type"] == "http.disconnect"
        if not reply.complete:
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.cancel_scope.deadline = anyio.current_time() + deadline_s
        group.start_soon(watch)
        await work()
        finished = True
        if not reply.complete:
            group.cancel_scope.cancel()
    if reply.complete:
        return Ending.DONE
    if gone:
        return Ending.GONE
    return Ending.DONE if finished else Ending.LATE
