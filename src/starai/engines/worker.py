"""The child process of an engine: ``python -m starai.engines.worker``.

Reads commands from stdin, steps while there is work, writes reports to stdout (`frames`). Whatever
libraries print goes to stderr. It ends when stdin closes, so it never outlives its parent. A
request that fails takes nobody else with it. Knows nothing about the parent's event loop.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import sys
import threading
import time
from typing import BinaryIO, Final

from starai.core.errors import EngineDied, MalformedFrame, StarAIError
from starai.engines.base import Emitted, Engine
from starai.engines.entrance import Entrance
from starai.engines.frames import (
    Admit,
    Cancel,
    Command,
    FrameReader,
    Open,
    Opened,
    Pace,
    Refused,
    Report,
    Stepped,
    frame,
    read_command,
)
from starai.engines.registry import open_engine

#: Commands that wait between two steps; the parent's pipe holds the rest.
_COMMANDS_MAX: Final = 1024
#: How long an idle worker sleeps before it shows that it lives. Working ones show it each step.
_PULSE_S: Final = 0.2
#: The same while a request waits for what is made ready aside.
_LOOK_S: Final = 0.01
_READ_BYTES: Final = 1 << 16
#: A worker that rests hears commands and gives signs of life at least this often.
_REST_S: Final = 0.5
#: Less would be a stall.
_SHARE_MIN: Final = 0.01


class _Pacing:
    """How much of its time the worker computes: after each step it rests in proportion."""

    def __init__(self) -> None:
        self._share = 1.0

    def set(self, share: float) -> None:
        """Compute for this share of the time."""
        self._share = min(1.0, max(_SHARE_MIN, share))

    def rest_after(self, step_s: float) -> None:
        if self._share < 1:
            time.sleep(min(_REST_S, step_s * (1 / self._share - 1)))


def main() -> None:
    """Serve one engine until stdin closes."""
    reports = _take_stdout()
    commands: queue.Queue[Command | None] = queue.Queue(_COMMANDS_MAX)
    threading.Thread(target=_read, args=(commands,), daemon=True).start()
    first = commands.get()
    if not isinstance(first, Open):
        return
    # Imports make a million objects that stay: collecting among them costs a fifth of the start.
    gc.disable()
    try:
        engine = open_engine(first.spec)
    except StarAIError as error:
        _write(reports, Refused(error.code, error.message))
        return
    gc.freeze()
    gc.enable()
    _write(reports, Opened(engine.info))
    serve(engine, commands, reports)


def serve(engine: Engine, commands: queue.Queue[Command | None], reports: BinaryIO) -> None:
    """The worker's loop: take what was commanded, step, report; until ``commands`` yields None."""
    pacing, entrance = _Pacing(), Entrance(engine)
    while True:
        pause_s = 0.0 if engine.has_work else _LOOK_S if len(entrance) else _PULSE_S
        refused, ended = _drain(entrance, commands, pacing, pause_s)
        if ended:
            return
        began_s = time.monotonic()
        emitted = engine.step() if engine.has_work else []
        _write(reports, Stepped((*refused, *emitted)))
        pacing.rest_after(time.monotonic() - began_s)


def _drain(
    entrance: Entrance, commands: queue.Queue[Command | None], pacing: _Pacing, pause_s: float
) -> tuple[list[Emitted], bool]:
    """Carry out what was commanded, waiting ``pause_s`` for the first; who was refused, the end."""
    refused: list[Emitted] = []
    while True:
        try:
            command = commands.get(block=pause_s > 0, timeout=pause_s)
        except queue.Empty:
            return refused + entrance.let_in(), False
        pause_s = 0.0
        match command:
            case Admit():
                refused += entrance.admit(command.key, command.generation)
            case Cancel():
                entrance.cancel(command.key)
            case Pace():
                pacing.set(command.share)
            case None:
                return refused, True


def _read(commands: queue.Queue[Command | None]) -> None:
    """Runs in a thread: stdin into ``commands``; None at its end."""
    reader = FrameReader()
    try:
        while data := os.read(0, _READ_BYTES):
            for payload in reader.feed(data):
                commands.put(read_command(payload))
    except (OSError, MalformedFrame):
        pass  # a parent that talks nonsense is as good as gone
    commands.put(None)


def _take_stdout() -> BinaryIO:
    """Keep the real stdout for reports and send everyone's prints to stderr."""
    reports = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return reports


def _write(reports: BinaryIO, report: Report) -> None:
    data = memoryview(frame(report))
    while data:
        data = data[reports.write(data) :]


if __name__ == "__main__":
    # A parent that is gone, or a terminal that stops everyone at once, is no fault of ours; nor is
    # a server that an external engine has lost: the parent says that the engine ended.
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt, EngineDied):
        main()
    # Taking torch apart costs a second that nobody needs; no thread of ours holds anything.
    os._exit(0)
