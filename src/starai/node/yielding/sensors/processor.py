"""How many cores the work of others keeps busy.

Linux: /proc/stat counts ticks of 10 ms; time of lowered processes has a column of its own (nice):
whoever lowered himself is no work that we disturb, but may leave nothing for us. From both we take
away our own.
Windows: GetSystemTimes less GetProcessTimes. macOS: ``ps``, whose figures are a smoothed average,
so that macOS is noticed later.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from starai.node.yielding.base import Reading, Sensor
from starai.node.yielding.sensors.looking import output_of, read_text
from starai.node.yielding.sensors.windows import process_times_s, system_times_s

_PROC: Final = Path("/proc")
#: Looks that one reading spans: half a second smooths ticks and the start of a small program.
_SPAN: Final = 2
INTERVAL_S: Final = 0.25


def parse_stat(text: str) -> tuple[int, int, int]:
    """Ticks of /proc/stat since boot, of all cores: (busy at normal priority, lowered, all).

    Nothing that looks like it gives zeros.
    """
    for line in text.splitlines():
        fields = line.split()
        if fields[:1] == ["cpu"] and len(fields) >= 8 and all(f.isdigit() for f in fields[1:8]):
            user, nice, system, idle, iowait, irq, softirq = (int(f) for f in fields[1:8])
            busy = user + system + irq + softirq
            return busy, nice, busy + nice + idle + iowait
    return 0, 0, 0


def parse_process(text: str) -> tuple[int, int]:
    """Ticks of /proc/PID/stat as `parse_stat` counts them: (busy, lowered).

    A lowered process's own code is in the nice column; what the kernel does for it is not.
    """
    # The name in parentheses may hold anything, also blanks and parentheses.
    fields = text.rpartition(")")[2].split()
    if len(fields) < 17:
        return 0, 0
    user, system, nice = fields[11], fields[12], fields[16]
    if not (user.isdigit() and system.isdigit()):
        return 0, 0
    if nice.isdigit() and int(nice) > 0:
        return int(system), int(user)
    return int(system) + int(user), 0


def parse_ps(text: str, own: Iterable[int]) -> float:
    """Cores that others keep busy, by macOS's ``ps -A -o pid=,nice=,%cpu=``."""
    ours, cores = set(own), 0.0
    for line in text.splitlines():
        fields = line.replace(",", ".").split()
        try:
            pid, nice, percent = int(fields[0]), int(fields[1]), float(fields[2])
        except (IndexError, ValueError):
            continue
        if pid not in ours and nice <= 0 and 0 < percent < 1e5:
            cores += percent / 100
    return cores


class _Ticks:
    """Turns growing counters into cores: others' busy time over the last looks."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, float]] = deque(maxlen=_SPAN + 1)
        self._own: Mapping[int, float] = {}
        self._own_total = 0.0

    def push(self, busy: float, wall: float, own: Mapping[int, float]) -> float | None:
        """Cores of others, from busy and elapsed core time; None at the first look.

        ``wall`` counts time, not cores: both in the same unit. A process of ours that ended keeps
        what it had used; one that is new begins with what it has.
        """
        for pid, used in own.items():
            self._own_total += max(0.0, used - self._own.get(pid, 0.0))
        self._own = own
        self._looks.append((busy - self._own_total, wall))
        others, began = self._looks[0]
        if wall <= began:
            return None
        return max(0.0, (busy - self._own_total - others) / (wall - began))


class LinuxProcessor:
    """Looks into /proc."""

    interval_s = INTERVAL_S
    blocking = False

    def __init__(self, pids: Callable[[], Sequence[int]], proc: Path = _PROC) -> None:
        """Leave out ``pids``; ``proc`` is where the kernel tells."""
        self._pids = pids
        self._proc = proc
        self._busy, self._lowered = _Ticks(), _Ticks()
        self._cores = os.cpu_count() or 1

    def read(self) -> Reading:
        """See `Sensor.read`."""
        busy, lowered, total = parse_stat(read_text(self._proc / "stat"))
        if not total:
            return Reading(num_cores=self._cores)
        own = {
            pid: parse_process(read_text(self._proc / str(pid) / "stat")) for pid in self._pids()
        }
        wall = total / self._cores
        return Reading(
            num_cores=self._cores,
            others_cores=self._busy.push(busy, wall, {p: one[0] for p, one in own.items()}),
            lowered_cores=self._lowered.push(lowered, wall, {p: one[1] for p, one in own.items()}),
        )


class WindowsProcessor:
    """Asks the kernel's counters of Windows."""

    interval_s = INTERVAL_S
    blocking = False

    def __init__(self, pids: Callable[[], Sequence[int]]) -> None:
        """Leave out ``pids``."""
        self._pids = pids
        self._ticks = _Ticks()
        self._cores = os.cpu_count() or 1

    def read(self) -> Reading:
        """See `Sensor.read`."""
        busy_s, total_s = system_times_s()
        own = {pid: process_times_s(pid) for pid in self._pids()}
        others = self._ticks.push(busy_s, total_s / self._cores, own) if total_s else None
        return Reading(num_cores=self._cores, others_cores=others)


class MacProcessor:
    """Asks ``ps``."""

    interval_s = 0.5
    blocking = True

    def __init__(self, pids: Callable[[], Sequence[int]]) -> None:
        """Leave out ``pids``."""
        self._pids = pids

    def read(self) -> Reading:
        """See `Sensor.read`."""
        text = output_of("ps", "-A", "-o", "pid=,nice=,%cpu=")
        others = parse_ps(text, self._pids()) if text else None
        return Reading(num_cores=os.cpu_count(), others_cores=others)


def processor_sensor(pids: Callable[[], Sequence[int]]) -> Sensor | None:
    """The sensor of this platform."""
    if sys.platform == "win32":
        return WindowsProcessor(pids)
    if sys.platform == "darwin":
        return MacProcessor(pids)
    return LinuxProcessor(pids) if (_PROC / "stat").exists() else None
