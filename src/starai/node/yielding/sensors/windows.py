"""What Windows tells through its libraries: times, memory, battery, full-screen programs.

Every function returns nothing (zeros, None) on other systems and where a call fails. Structures
and constants are those of the Windows API's documentation.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

_QUERY_LIMITED: Final = 0x1000
_TICKS_A_SECOND: Final = 10_000_000
#: States of SHQueryUserNotificationState: full screen, a full-screen game, a presentation.
_BUSY_STATES: Final = (2, 3, 4)


class _FileTime(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint32), ("high", ctypes.c_uint32)]

    @property
    def seconds(self) -> float:
        return float((self.high << 32) + self.low) / _TICKS_A_SECOND


class _MemoryStatus(ctypes.Structure):
    _fields_ = [
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 5),
    ]


class _PowerStatus(ctypes.Structure):
    _fields_ = [
        ("ac_line", ctypes.c_uint8),
        ("battery_flag", ctypes.c_uint8),
        ("percent", ctypes.c_uint8),
        ("saver", ctypes.c_uint8),
        ("life_s", ctypes.c_uint32),
        ("full_life_s", ctypes.c_uint32),
    ]


def library(name: str) -> Any:
    """A library of Windows; None elsewhere."""
    return getattr(getattr(ctypes, "windll", None), name, None)


def system_times_s() -> tuple[float, float]:
    """Core seconds since boot: (busy, all)."""
    kernel32 = library("kernel32")
    idle, kernel, user = _FileTime(), _FileTime(), _FileTime()
    if kernel32 is None or not kernel32.GetSystemTimes(
        ctypes.byref(idle), ctypes.byref(kernel), ctypes.byref(user)
    ):
        return 0.0, 0.0
    total_s = kernel.seconds + user.seconds  # the kernel's time includes the idle time
    return total_s - idle.seconds, total_s


def process_times_s(pid: int) -> float:
    """Core seconds that a process has used."""
    kernel32 = library("kernel32")
    if kernel32 is None:
        return 0.0
    handle = kernel32.OpenProcess(_QUERY_LIMITED, False, pid)
    if not handle:
        return 0.0
    times = [_FileTime() for _ in range(4)]
    good = kernel32.GetProcessTimes(handle, *(ctypes.byref(time) for time in times))
    kernel32.CloseHandle(handle)
    return times[2].seconds + times[3].seconds if good else 0.0


def memory_bytes() -> tuple[int, int] | None:
    """(available, all) of the machine's memory."""
    kernel32 = library("kernel32")
    status = _MemoryStatus()
    status.length = ctypes.sizeof(status)
    if kernel32 is None or not kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.available), int(status.total)


def power() -> tuple[bool, float | None] | None:
    """(runs on its battery, the charge in percent); None without a battery."""
    kernel32 = library("kernel32")
    status = _PowerStatus()
    if kernel32 is None or not kernel32.GetSystemPowerStatus(ctypes.byref(status)):
        return None
    no_battery = 128
    if status.battery_flag & no_battery or status.ac_line not in (0, 1):
        return None
    return status.ac_line == 0, float(status.percent) if status.percent <= 100 else None


def full_screen() -> bool | None:
    """Whether a program fills the screen, plays in full screen, or presents."""
    shell32 = library("shell32")
    state = ctypes.c_int()
    if shell32 is None or shell32.SHQueryUserNotificationState(ctypes.byref(state)):
        return None
    return state.value in _BUSY_STATES
