"""Stays with requests until they are answered: who leaves, who is late, who hears nothing.

A client that leaves tells of it itself; for the rest one look over all requests, twice a second,
does what a timer and a watching task for each would do at many times the cost.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Coroutine
from typing import Final

import anyio

from starai.core.clock import Clock
from starai.core.cutting import Cut
from starai.core.errors import Overloaded
from starai.gateway.web.incoming import Audience
from starai.gateway.web.replies import Reply

#: A comment of server-sent events: clients skip it, connections stay open.
_HEARTBEAT: Final = b": still working\n\n"
#: How late a heartbeat or the end of a deadline may come.
_LOOK_S: Final = 0.5


class Ending(enum.Enum):
    """How a request ended."""

    DONE = "done"
    #: The client left before its answer was complete; the work was cancelled.
    GONE = "gone"
    #: The time was up; the work was cancelled.
    LATE = "late"


class _Attended:
    """A request in progress."""

    __slots__ = ("cut", "late", "reply")

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.cut = Cut()
        self.late = False

    def end(self) -> None:
        """Cancel the work, unless only its clearing up is left."""
        if not self.reply.complete:
            self.cut.make()


class Attendance:
    """All requests in progress; `run` looks after them."""

    def __init__(self, clock: Clock, *, heartbeat_s: float, deadline_s: float) -> None:
        """Break a stream's silence after ``heartbeat_s``; end work ``deadline_s`` after its begin.

        The times count from the last write, and from the beginning, of a request's reply.
        """
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._deadline_s = deadline_s
        self._attended: set[_Attended] = set()

    def __len__(self) -> int:
        return len(self._attended)

    async def run(self) -> None:
        """Look after them until cancelled."""
        while True:
            await anyio.sleep(_LOOK_S)
            now_s = self._clock.monotonic_s()
            for one in self._attended:
                if now_s - one.reply.started_s >= self._deadline_s:
                    one.late = True
                    one.end()
                elif one.reply.streaming and now_s - one.reply.last_write_s >= self._heartbeat_s:
                    # A recording that is full says so to whoever makes the answer, too.
                    with contextlib.suppress(Overloaded):
                        one.reply.say(_HEARTBEAT)

    async def attend(
        self, work: Coroutine[object, object, None], audience: Audience, reply: Reply
    ) -> Ending:
        """Do ``work``, which writes ``reply``, until it is done, its client leaves or time is up.

        ``reply.streaming`` says whether silence may be broken.
        """
        if audience.gone:
            work.close()
            return Ending.GONE
        one = _Attended(reply)
        self._attended.add(one)
        audience.on_gone = one.end
        try:
            with one.cut:
                await work
        finally:
            self._attended.discard(one)
            audience.on_gone = None
        if reply.complete or not one.cut.made:
            return Ending.DONE
        return Ending.LATE if one.late else Ending.GONE
