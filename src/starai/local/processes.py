"""Runs a network's services as child processes: logged, watched, restarted, stopped in order.

Children live in the parent's process group but leave Ctrl-C to the parent, which stops them one
after the other. Each child holds the read end of a pipe to the parent and ends when that breaks,
so that even a killed parent leaves nothing behind. Knows nothing of what the services do.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from anyio.abc import Process, TaskGroup

from starai.core.clock import Clock
from starai.core.concurrency import task_group
from starai.core.logging import event
from starai.local.stopping import cancel_on_signal

_LOG = logging.getLogger(__name__)

#: A service has this long to finish what it does once it is told to stop.
STOP_S = 25.0
#: The pause before a restart grows from the first to the last of these while it keeps dying.
RESTART_FIRST_S, RESTART_LAST_S = 0.2, 5.0
#: A service that lived this long died of something new.
SETTLED_S = 20.0
#: A log that has grown over this is begun anew at the next start.
LOG_BYTES_MAX = 16 << 20
#: Set for the children of `processes`: their standard input is a pipe from their parent.
CHILD_MARK = "STARAI_CHILD"
#: How a child ends that was told to stop, by its parent or by somebody else; 0 is for good.
TOLD_TO_STOP = 128 + signal.SIGTERM
#: What runs a service, given its arguments.
PROGRAM = (sys.executable, "-m", "starai.cli")


@dataclass(frozen=True)
class Service:
    """A child to run: `starai ARGUMENTS...`, logging to ``log``; ``secret`` goes by environment."""

    name: str
    arguments: tuple[str, ...]
    log: Path
    secret: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass
class _Child:
    service: Service
    process: Process | None = None
    restarts: int = 0
    stopping: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)


class Processes:
    """The running services, stopped in the order opposite to that of their start."""

    def __init__(self, group: TaskGroup, clock: Clock, program: Sequence[str]) -> None:
        """Made by `processes`."""
        self._group = group
        self._program = program
        self._clock = clock
        self._children: dict[str, _Child] = {}

    async def start(self, service: Service) -> None:
        """Run a service until it is stopped, restarting it when it dies."""
        child = _Child(service, await _spawn(self._program, service))
        self._children[service.name] = child
        self._group.start_soon(self._watch, child)

    def pid(self, name: str) -> int:
        """The process of a service; 0 while it is being restarted."""
        process = self._children[name].process
        return process.pid if process is not None else 0

    def restarts(self, name: str) -> int:
        """How often a service has died and been started again."""
        return self._children[name].restarts

    @property
    def names(self) -> Sequence[str]:
        """The services, in the order of their start."""
        return tuple(self._children)

    async def stop_all(self) -> None:
        """Stop the services, last started first, each with time to finish."""
        for child in reversed(self._children.values()):
            child.stopping.set()
            _signal(child, signal.SIGTERM)
            with anyio.move_on_after(STOP_S):
                await child.ended.wait()
            if not child.ended.is_set():
                event(_LOG, "service_killed", logging.WARNING, service=child.service.name)
                if child.process is not None:
                    with suppress(ProcessLookupError):
                        child.process.kill()
                await child.ended.wait()

    async def _watch(self, child: _Child) -> None:
        # Shielded: a cancelled owner still has to see its children end; `stop_all` ends this.
        with anyio.CancelScope(shield=True):
            try:
                await self._keep_running(child)
            finally:
                child.ended.set()

    async def _keep_running(self, child: _Child) -> None:
        wait_s = RESTART_FIRST_S
        while child.process is not None:
            began_s = self._clock.monotonic_s()
            code = await child.process.wait()
            await child.process.aclose()
            child.process = None
            if child.stopping.is_set():
                return
            if code == 0:  # it left of its own accord, as it was told to
                event(_LOG, "service_left", service=child.service.name)
                return
            level = logging.INFO if code == TOLD_TO_STOP else logging.ERROR
            event(_LOG, "service_ended", level, service=child.service.name, code=code)
            settled = self._clock.monotonic_s() - began_s > SETTLED_S
            wait_s = RESTART_FIRST_S if settled else min(wait_s * 2, RESTART_LAST_S)
            with anyio.move_on_after(wait_s):
                await child.stopping.wait()
                return
            child.restarts += 1
            child.process = await _spawn(self._program, child.service)
            if child.stopping.is_set():  # while it was being made, nobody could tell it
                _signal(child, signal.SIGTERM)


def _signal(child: _Child, number: signal.Signals) -> None:
    if child.process is not None:
        with suppress(ProcessLookupError):
            child.process.send_signal(number)


@asynccontextmanager
async def processes(clock: Clock, program: Sequence[str] = PROGRAM) -> AsyncIterator[Processes]:
    """Own services inside the context, run by ``program``; leaving it stops them all."""
    async with task_group() as group:
        owned = Processes(group, clock, program)
        try:
            yield owned
        finally:
            with anyio.CancelScope(shield=True):
                await owned.stop_all()
            group.cancel_scope.cancel()


async def _spawn(program: Sequence[str], service: Service) -> Process:
    mode = "ab"
    with suppress(FileNotFoundError):
        if service.log.stat().st_size > LOG_BYTES_MAX:
            mode = "wb"
    with service.log.open(mode) as log:
        return await anyio.open_process(
            [*program, *service.arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, CHILD_MARK: "1", "PYTHONUNBUFFERED": "1", **service.secret},
        )


def is_child() -> bool:
    """Whether this process is one that `processes` started."""
    return bool(os.environ.get(CHILD_MARK))


@asynccontextmanager
async def as_child() -> AsyncIterator[anyio.CancelScope]:
    """Run a service's body: cancelled on SIGTERM, or, for a child, when its parent is gone.

    A child leaves SIGINT to its parent, which turns one Ctrl-C into an orderly stop of all.
    """
    stops = [signal.SIGTERM]
    if is_child():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    else:
        stops.append(signal.SIGINT)
    async with task_group() as group:
        group.start_soon(cancel_on_signal, group.cancel_scope, stops)
        if is_child():
            threading.Thread(target=_terminate_at_end_of_input, daemon=True).start()
        yield group.cancel_scope
        group.cancel_scope.cancel()


def _terminate_at_end_of_input() -> None:
    # Nothing is ever written to this pipe; it ends when the parent does, however that happens.
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
