"""Whether the engine answers at all: asked by a tiny inference, at its start and while it is idle.

A process that lives, and a model that is loaded, prove nothing: drivers hang, weights load wrongly.
A node whose engine does not draw a token says so in its beats, and is given no tasks until it does.
A busy engine is not asked: its tokens show it, and their lack is noticed by whoever waits for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol

import anyio

from starai.core.concurrency import task_group
from starai.core.logging import event

_LOG = logging.getLogger(__name__)

#: How often it is looked whether an engine is there that was not: whoever joins waits for that.
LOOK_S: Final = 0.02
#: How often an idle engine is asked: often enough to be found out before most requests are.
PROBE_EVERY_S: Final = 15.0
#: How soon again when it was not ready.
PROBE_AGAIN_S: Final = 0.1
#: One token of one token takes milliseconds; who takes this long is not ready.
SLOW_S: Final = 5.0


class Probed(Protocol):
    """What can be asked for a sign of understanding; `starai.node.runner.Runner` can."""

    @property
    def engine_pid(self) -> int:
        """The engine's process; 0 while there is none."""
        ...

    async def probe(self) -> bool:
        """Whether the engine draws a token; True without asking while it is at work."""
        ...


class Readiness:
    """Asks an engine again and again. ``is_ready`` is about the process that runs now."""

    def __init__(self, engine: Probed, on_change: Callable[[], None] = lambda: None) -> None:
        """Nothing is ready before it has answered once; ``on_change`` hears when that changes."""
        self._engine = engine
        self._on_change = on_change
        self._answered_pid = 0

    @property
    def is_ready(self) -> bool:
        """Whether the engine that runs now has answered, and not failed to since."""
        return self._answered_pid != 0 and self._answered_pid == self._engine.engine_pid

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            pid = self._engine.engine_pid
            if pid == 0:
                self._set(0)
                await anyio.sleep(LOOK_S)
                continue
            async with task_group() as group:
                group.start_soon(self._doubt)
                answered = await self._engine.probe()
                group.cancel_scope.cancel()
            self._set(pid if answered else 0)
            left_s = PROBE_EVERY_S
            while self.is_ready and left_s > 0:  # an engine that was replaced is asked at once
                await anyio.sleep(PROBE_AGAIN_S)
                left_s -= PROBE_AGAIN_S
            await anyio.sleep(PROBE_AGAIN_S)

    async def _doubt(self) -> None:
        """Not ready any more when the answer takes too long; it may still come."""
        await anyio.sleep(SLOW_S)
        self._set(0)

    def _set(self, pid: int) -> None:
        changes, self._answered_pid = bool(pid) != bool(self._answered_pid), pid
        if changes:
            level = logging.INFO if pid else logging.WARNING
            event(_LOG, "engine_answers" if pid else "engine_does_not_answer", level, pid=pid)
            self._on_change()
