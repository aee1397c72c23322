"""The worker's loop, without a process around it."""

from __future__ import annotations

import queue

from starai.engines.base import Emitted
from starai.engines.frames import FrameReader, Stepped, read_report
from starai.engines.worker import Commands, serve


class Busy:
    """An engine whose steps are quick and bring nothing for a while."""

    def __init__(self, commands: Commands, *, steps: int) -> None:
        """Bring one token in the last of ``steps`` steps; then the parent is gone."""
        self._commands = commands
        self._left = steps

    @property
    def has_work(self) -> bool:
        """There always is."""
        return True

    def step(self) -> list[Emitted]:
        """Nothing, but for the last one."""
        self._left -= 1
        if self._left:
            return []
        self._commands.put(None)
        return [Emitted(b"k", (1,), ())]


class Pipe:
    """Takes all reports."""

    def __init__(self) -> None:
        """Begin empty."""
        self.reports: list[object] = []
        self._reader = FrameReader()

    def write(self, data: memoryview) -> int:
        """Take all of it."""
        self.reports += map(read_report, self._reader.feed(bytes(data)))
        return len(data)


def test_a_worker_at_work_pulses_though_its_quick_steps_bring_nothing() -> None:
    """Its parent would take it for hung; but not every quick step is a report."""
    commands: Commands = queue.SimpleQueue()
    pipe = Pipe()
    serve(Busy(commands, steps=200_000), commands, pipe)  # type: ignore[arg-type]
    assert 10 < len(pipe.reports) < 20_000
    assert all(isinstance(one, Stepped) for one in pipe.reports)
