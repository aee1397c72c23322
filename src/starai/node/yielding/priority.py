"""Puts a process behind everything else on the machine, and on some of its cores only.

Linux: SCHED_IDLE (sched(7)), which also makes its disk access idle, and nice 19 where that is
refused; Windows: IDLE_PRIORITY_CLASS; macOS: background (setpriority with PRIO_DARWIN_BG). Threads
take it over from the thread that starts them, so it is done right after the start of a process.
None of it needs rights that an ordinary user lacks, and none of it can be undone by one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from starai.core.logging import event
from starai.node.yielding.base import Limits
from starai.node.yielding.sensors.looking import read_text
from starai.node.yielding.sensors.windows import library

_LOG = logging.getLogger(__name__)

_NICEST: Final = 19
#: The node itself only a little: who cannot beat in time counts as gone.
_NODE_NICE: Final = 5
_WINDOWS_IDLE: Final = 0x40
_WINDOWS_SET_INFORMATION: Final = 0x0200
_DARWIN_PROCESS, _DARWIN_BACKGROUND = 4, 0x1000


def lower_engine(pid: int) -> None:
    """Have a process compute only when nobody else wants to."""
    try:
        if sys.platform == "win32":
            _lower_on_windows(pid)
            return
        if sys.platform == "darwin":
            os.setpriority(_DARWIN_PROCESS, pid, _DARWIN_BACKGROUND)
            return
        # The nice value comes first: the kernel counts its time apart, and sensors go by that.
        os.setpriority(os.PRIO_PROCESS, pid, _NICEST)
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        _lower_session(pid)
    except OSError as error:
        event(_LOG, "priority_not_lowered", logging.WARNING, pid=pid, why=error.strerror)


def lower_node() -> None:
    """Put this process a little behind others; it must still be in time with its beats."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            if os.getpriority(os.PRIO_PROCESS, 0) < _NODE_NICE:
                os.setpriority(os.PRIO_PROCESS, 0, _NODE_NICE)


def keep_to_cores(pid: int, count: int) -> None:
    """Let a process run on ``count`` of the cores that it may use: the last ones."""
    if not hasattr(os, "sched_setaffinity"):
        return  # the number of threads is all that other systems let us limit
    with contextlib.suppress(OSError):
        allowed = sorted(os.sched_getaffinity(pid))
        os.sched_setaffinity(pid, allowed[-count:])


def tamed(limits: Limits) -> Callable[[int], None]:
    """What to do with an engine's process when it has started: given its number."""

    def tame(pid: int) -> None:
        if limits.polite:
            lower_engine(pid)
        if limits.max_cores:
            keep_to_cores(pid, limits.max_cores)

    return tame


def _lower_session(pid: int) -> None:
    """Lower the session that an engine has to itself, too.

    Linux shares cores out between sessions first (autogroups, sched(7)) and looks at priorities
    within each: measured, an idle engine in a session of its own got as much as anybody.
    """
    group, ours = Path(f"/proc/{pid}/autogroup"), Path("/proc/self/autogroup")
    name = read_text(group).split()[:1]
    if name and name != read_text(ours).split()[:1]:
        with contextlib.suppress(OSError):
            group.write_text(str(_NICEST))


def _lower_on_windows(pid: int) -> None:
    kernel32 = library("kernel32")
    handle = kernel32.OpenProcess(_WINDOWS_SET_INFORMATION, False, pid)
    if handle:
        kernel32.SetPriorityClass(handle, _WINDOWS_IDLE)
        kernel32.CloseHandle(handle)
