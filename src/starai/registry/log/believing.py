"""Whether the registry's own clock is believed when it says that much time has passed.

What is closed, matured, cut or decided too early because a clock was ahead cannot be taken back. So
a clock that goes further than time went needs somebody else's word: the newest record's, whose
distributor has a clock of its own. Knows nothing of what is done with the time.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from starai.core.clock import Clock
from starai.core.errors import InternalFault
from starai.registry.schema import rows
from starai.registry.storage import Connection, Store

#: How much further than the time that passed the clock may be, before somebody else must say so.
JUMP_MS: Final = 3_600_000


class Look(NamedTuple):
    """What the clock said at ``passed_s`` of the time that never goes back."""

    now_ms: int
    passed_s: float
    has_jumped: bool

    def check(self, connection: Connection) -> None:
        """Go on if the clock did not jump, or if the newest record says the same.

        Raises:
            InternalFault: nobody does.
        """
        if not self.has_jumped:
            return
        newest = rows(connection, "SELECT closed_ms FROM task ORDER BY seq DESC LIMIT 1")
        if all(self.now_ms - closed_ms > JUMP_MS for (closed_ms,) in newest):
            raise InternalFault(
                "the clock jumped ahead, and no record says that it is so late: set the clock"
                " right; if it is right now, go on using the network, or start the registry again"
            )


class Believed:
    """A clock, and what it said when it was last believed: at first, what it says at the start."""

    def __init__(self, clock: Clock) -> None:
        """Believe the clock as it is."""
        self._clock = clock
        self._last = Look(clock.now_ms(), clock.monotonic_s(), has_jumped=False)

    def look(self) -> Look:
        """What the clock says."""
        now_ms, passed_s = self._clock.now_ms(), self._clock.monotonic_s()
        expected_ms = self._last.now_ms + (passed_s - self._last.passed_s) * 1000
        return Look(now_ms, passed_s, has_jumped=now_ms > expected_ms + JUMP_MS)

    def believe(self, look: Look) -> None:
        """From now on, time is counted from there."""
        self._last = look

    async def now_ms(self, store: Store) -> int:
        """The time, if it is believed; Unix milliseconds.

        Raises:
            InternalFault: the clock jumped ahead, and nobody says the same.
            StoreFailed: the database cannot be read.
        """
        look = self.look()
        await store.read(look.check)
        self.believe(look)
        return look.now_ms
