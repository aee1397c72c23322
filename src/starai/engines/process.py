"""An engine in a process of its own, as its parent sees it: a crash there is an error here.

Runs on asyncio and on trio. Knows nothing about what the engine computes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, Process

from starai.core.concurrency import task_group
from starai.core.errors import (
    ConfigurationRefused,
    EngineDied,
    MalformedFrame,
    ModelFileRefused,
    ModelNotFound,
    StarAIError,
)
from starai.core.waking import Bell
from starai.engines.base import Emitted, EngineInfo, EngineSpec
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
    read_report,
)
from starai.protocol.generation import Generation

#: How long a worker may take to be ready: it reads every weight once, 40 GB from a slow disk in 7
#: minutes, and the first one of all compiles kernels.
START_S: Final = 600.0
#: How long a worker may take to end by itself before it is killed: it may be inside a step. One
#: that only loads is killed at once.
_END_S: Final = 1.5
#: A pipe that takes nothing for so long has a hung worker behind it: it reads in a thread.
_SEND_S: Final = 10.0
#: What may wait for the pipe: some of the longest prompts.
_UNSENT_BYTES_MAX: Final = 64 << 20
_NO_MORE: Final = "the process that runs the model takes no requests any more"
_REFUSALS: Final = {
    error.code: error for error in (ConfigurationRefused, ModelFileRefused, ModelNotFound)
}


class EngineWorker:
    """A running engine. One task may call `events`; any may call `admit` and `cancel`."""

    def __init__(self, process: Process, info: EngineInfo, link: _Link) -> None:
        """Made by `engine_process`."""
        self.info = info
        self.pid = process.pid
        self._link = link

    def admit(self, key: bytes, generation: Generation) -> None:
        """Send a sequence to the engine; a refusal comes as an `Emitted` with its error code.

        Raises:
            EngineDied: the process ended, or takes nothing any more.
        """
        self._link.send(Admit(key, generation))

    def cancel(self, key: bytes) -> None:
        """Have the engine forget a sequence; something of it may already be on its way.

        Raises:
            EngineDied: the process ended, or takes nothing any more.
        """
        self._link.send(Cancel(key))

    def pace(self, share: float) -> None:
        """Have the engine compute for this share of the time, above 0 and up to 1.

        Raises:
            EngineDied: the process ended, or takes nothing any more.
        """
        self._link.send(Pace(share))

    async def events(self) -> list[Emitted]:
        """What the next step emitted; nothing is a pulse, which comes at least every 0.2 s.

        A single step may take longer (a slow model); put a deadline around this to find a hung
        worker.

        Raises:
            EngineDied: the process ended.
        """
        report = await self._link.receive()
        if not isinstance(report, Stepped):
            raise EngineDied("the engine's worker broke the protocol of its pipe")
        return list(report.emitted)


class _Link:
    """The two pipes of a worker. What is sent in one turn of the loop is written at once."""

    def __init__(self, send: ByteSendStream, receive: ByteReceiveStream) -> None:
        self._send = send
        self._receive = receive
        self._bell = Bell()
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._ended = ""
        self._reader = FrameReader()
        self._reports: list[Report] = []

    def send(self, command: Command) -> None:
        if self._unsent_bytes > _UNSENT_BYTES_MAX:
            self._ended = _NO_MORE
        if self._ended:
            raise EngineDied(self._ended)
        data = frame(command)
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        self._bell.ring()

    async def write(self) -> None:
        """Write what is sent, until cancelled; a worker that takes no more is told to end."""
        try:
            while not self._ended:
                await self._bell.wait()
                data = b"".join(self._unsent)
                self._unsent.clear()
                with anyio.fail_after(_SEND_S):
                    await self._send.send(data)
                self._unsent_bytes -= len(data)
        except TimeoutError:
            self._ended = _NO_MORE
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._ended = EngineDied().message
        await self._send.aclose()  # which ends it: nobody can ask it for anything

    async def receive(self) -> Report:
        while not self._reports:
            try:
                data = await self._receive.receive()
                self._reports += map(read_report, self._reader.feed(data))
            except (anyio.EndOfStream, anyio.BrokenResourceError, MalformedFrame) as error:
                ended = EngineDied()
                self._ended = self._ended or ended.message
                raise ended from error
        return self._reports.pop(0)


@asynccontextmanager
async def engine_process(
    spec: EngineSpec,
    *,
    start_timeout_s: float = START_S,
    on_spawned: Callable[[int], None] = lambda _pid: None,
) -> AsyncIterator[EngineWorker]:
    """Run an engine in a child process; leaving the context ends it, by force if need be.

    ``on_spawned`` is told the process's number before it does anything.

    Raises:
        ConfigurationRefused, ModelNotFound, ModelFileRefused: as `open_engine` says.
        EngineDied: the process ended or was not ready within ``start_timeout_s`` seconds.
    """
    process = await anyio.open_process(
        # -P: no file of the current folder may pose as a module
        [sys.executable, "-P", "-m", "starai.engines.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None,  # the child's logging is this process's logging
        # Ctrl-C reaches the whole terminal group; the parent alone decides when a child ends.
        start_new_session=True,
    )
    patience_s = 0.0
    try:
        assert process.stdin is not None  # noqa: S101 - asked for above
        assert process.stdout is not None  # noqa: S101
        on_spawned(process.pid)
        link = _Link(process.stdin, process.stdout)
        async with task_group() as tasks:
            tasks.start_soon(link.write)
            try:
                info = await _opened(link, spec, start_timeout_s)
                patience_s = _END_S
                yield EngineWorker(process, info, link)
            finally:
                tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await _end(process, patience_s)


async def _opened(link: _Link, spec: EngineSpec, timeout_s: float) -> EngineInfo:
    try:
        with anyio.fail_after(timeout_s):
            link.send(Open(spec))
            report = await link.receive()
    except TimeoutError as error:
        raise EngineDied(f"the engine was not ready within {timeout_s:g} s") from error
    if isinstance(report, Opened):
        return report.info
    if isinstance(report, Refused):
        refusal: type[StarAIError] = _REFUSALS.get(report.code, EngineDied)
        raise refusal(report.message)
    raise EngineDied("the engine's worker broke the protocol of its pipe")


async def _end(process: Process, patience_s: float) -> None:
    """Close stdin, which asks the worker to end; kill it when it does not."""
    if process.stdin is not None:
        await process.stdin.aclose()
    with anyio.move_on_after(patience_s):
        await process.wait()
    if process.returncode is None:
        process.kill()
    await process.aclose()
