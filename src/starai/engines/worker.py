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
from typing import BinaryIO, Final

from starai.core.errors import InternalFault, MalformedFrame, StarAIError
from starai.engines.base import Emitted, Engine
from starai.engines.frames import (
    Admit,
    Cancel,
    Command,
    FrameReader,
    Open,
    Opened,
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
_READ_BYTES: Final = 1 << 16


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
    while True:
        refused, ended = _drain(engine, commands)
        if ended:
            return
        emitted = engine.step() if engine.has_work else []
        _write(reports, Stepped((*refused, *emitted)))


def _drain(engine: Engine, commands: queue.Queue[Command | None]) -> tuple[list[Emitted], bool]:
    """Carry out what waits; without work, wait for the first command until the next pulse."""
    refused: list[Emitted] = []
    wait = not engine.has_work
    while True:
        try:
            command = commands.get(block=wait, timeout=_PULSE_S)
        except queue.Empty:
            return refused, False
        wait = False
        if command is None:
            return refused, True
        refused += _carry_out(engine, command)


def _carry_out(engine: Engine, command: Command) -> list[Emitted]:
    if isinstance(command, Cancel):
        engine.cancel(command.key)
    elif isinstance(command, Admit):
        try:
            engine.admit(command.key, command.generation)
        except StarAIError as error:
            return [Emitted(command.key, (), (), error=error.code)]
        except (ValueError, OverflowError, MemoryError):
            return [Emitted(command.key, (), (), error=InternalFault.code)]
    return []


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
    # A parent that is gone, or a terminal that stops everyone at once, is no fault of ours.
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        main()
    # Taking torch apart costs a second that nobody needs; no thread of ours holds anything.
    os._exit(0)
