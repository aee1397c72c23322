"""Memory that is free for use, and what the engine has: /proc on Linux, the API on Windows.

macOS: ``vm_stat`` and ``ps``.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from starai.node.yielding.base import Reading, Sensor
from starai.node.yielding.sensors.looking import output_of, read_text
from starai.node.yielding.sensors.windows import memory_bytes

_PROC: Final = Path("/proc")
_LINE: Final = re.compile(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", re.MULTILINE)
_PAGE: Final = re.compile(r"page size of (\d+) bytes")
#: Pages of macOS that a program gets when it asks.
_FREE: Final = re.compile(
    r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)\.$", re.MULTILINE
)


def parse_meminfo(text: str) -> tuple[int, int] | None:
    """(available, all) bytes of /proc/meminfo."""
    found = {name: int(kib) << 10 for name, kib in _LINE.findall(text)}
    if len(found) < 2:
        return None
    return found["MemAvailable"], found["MemTotal"]


def parse_statm(text: str, page_bytes: int) -> int:
    """Resident bytes of /proc/PID/statm."""
    fields = text.split()
    return int(fields[1]) * page_bytes if len(fields) > 1 and fields[1].isdigit() else 0


def parse_vm_stat(text: str) -> int | None:
    """Available bytes by macOS's ``vm_stat``."""
    page = _PAGE.search(text)
    pages = [int(number) for number in _FREE.findall(text)]
    return sum(pages) * int(page[1]) if page and pages else None


class LinuxMemory:
    """Looks into /proc."""

    interval_s = 0.25
    blocking = False

    def __init__(self, pids: Callable[[], Sequence[int]], proc: Path = _PROC) -> None:
        """Count ``pids`` as ours; ``proc`` is where the kernel tells."""
        self._pids = pids
        self._proc = proc
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")

    def read(self) -> Reading:
        """See `Sensor.read`."""
        memory = parse_meminfo(read_text(self._proc / "meminfo"))
        own = sum(
            parse_statm(read_text(self._proc / str(pid) / "statm"), self._page_bytes)
            for pid in self._pids()
        )
        available, total = memory or (None, None)
        return Reading(available_bytes=available, total_bytes=total, own_bytes=own)


class WindowsMemory:
    """Asks GlobalMemoryStatusEx."""

    interval_s = 0.5
    blocking = False

    def read(self) -> Reading:
        """See `Sensor.read`."""
        available, total = memory_bytes() or (None, None)
        return Reading(available_bytes=available, total_bytes=total)


class MacMemory:
    """Asks ``vm_stat``, ``sysctl`` and ``ps``."""

    interval_s = 1.0
    blocking = True

    def __init__(self, pids: Callable[[], Sequence[int]]) -> None:
        """Count ``pids`` as ours."""
        self._pids = pids
        total = output_of("sysctl", "-n", "hw.memsize").strip()
        self._total = int(total) if total.isdigit() else None

    def read(self) -> Reading:
        """See `Sensor.read`."""
        pids = ",".join(str(pid) for pid in self._pids())
        sizes = output_of("ps", "-o", "rss=", "-p", pids).split() if pids else []
        return Reading(
            available_bytes=parse_vm_stat(output_of("vm_stat")),
            total_bytes=self._total,
            own_bytes=sum(int(kib) << 10 for kib in sizes if kib.isdigit()),
        )


def memory_sensor(pids: Callable[[], Sequence[int]]) -> Sensor | None:
    """The sensor of this platform."""
    if sys.platform == "win32":
        return WindowsMemory()
    if sys.platform == "darwin":
        return MacMemory(pids)
    return LinuxMemory(pids) if (_PROC / "meminfo").exists() else None
