"""The child process of an engine: ``python -m starai.engines.worker``.

Reads commands from stdin, steps while there is work, writes reports to stdout (`frames`): one a
step, or one for all the steps of a millisecond. Whatever libraries print goes to stderr. It ends
when stdin closes, so it never outlives its parent. A request that fails takes nobody else with it.
Knows nothing about the parent's event loop.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from typing import BinaryIO, Final

from starai.core.collecting import lasting
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
    gathered,
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
#: Steps that are quicker than this share a report: it wakes the parent, and costs both as much as
#: many tokens of a quick engine. No reader sees a millisecond.
_GATHER_S: Final = 0.001
#: A worker that rests hears commands and gives signs of life at least this often.
_REST_S: Final = 0.5
#: Less would be a stall.
_SHARE_MIN: Final = 0.01


#: What the parent said; None: it is gone. Its reader keeps the bound, `_COMMANDS_MAX`.
Commands = queue.SimpleQueue[Command | None]


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
    commands: Commands = queue.SimpleQueue()
    threading.Thread(target=_read, args=(commands,), daemon=True).start()
    first = commands.get()
    if not isinstance(first, Open):
        return
    try:
        with lasting():  # it imports a million objects
            engine = open_engine(first.spec)
    except StarAIError as error:
        _write(reports, Refused(error.code, error.message))
        return
    _write(reports, Opened(engine.info))
    serve(engine, commands, reports)


def serve(engine: Engine, commands: Commands, reports: BinaryIO) -> None:
    """The worker's loop: take what was commanded, step, report; until ``commands`` yields None."""
    pacing, entrance = _Pacing(), Entrance(engine)
    news: list[Emitted] = []
    since_s: float | None = None  # when the first step began that is not reported
    while True:
        pause_s = 0.0 if engine.has_work else _LOOK_S if len(entrance) else _PULSE_S
        refused, ended = _drain(entrance, commands, pacing, pause_s)
        if ended:
            return
        began_s = time.monotonic()
        if since_s is None:
            since_s = began_s
        news += refused
        if engine.has_work:
            news += engine.step()
        ended_s = time.monotonic()
        if ended_s - since_s >= _GATHER_S or not engine.has_work:
            _write(reports, Stepped(gathered(news)))
            news.clear()
            since_s = None
        pacing.rest_after(ended_s - began_s)


def _drain(
    entrance: Entrance, commands: Commands, pacing: _Pacing, pause_s: float
) -> tuple[list[Emitted], bool]:
    """Carry out what was commanded, waiting ``pause_s`` for the first; who was refused, the end."""
    refused: list[Emitted] = []
    while pause_s or not commands.empty():
        try:
            command = commands.get(timeout=pause_s)
        except queue.Empty:
            break
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
    if len(entrance):
        refused += entrance.let_in()
    return refused, False


def _read(commands: Commands) -> None:
    """Runs in a thread: stdin into ``commands``; None at its end."""
    reader = FrameReader()
    try:
        while data := os.read(0, _READ_BYTES):
            for payload in reader.feed(data):
                commands.put(read_command(payload))
            while commands.qsize() >= _COMMANDS_MAX:
                time.sleep(_LOOK_S)
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
