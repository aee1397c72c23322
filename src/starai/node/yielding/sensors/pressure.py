"""Pressure stall information of Linux (kernel documentation, accounting/psi): who waits for cores.

It counts everybody's waiting, also our own, so it means something only while we hardly run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from starai.node.yielding.base import Reading, Sensor
from starai.node.yielding.sensors.looking import read_text

_FILE: Final = Path("/proc/pressure/cpu")
_SOME: Final = re.compile(r"^some avg10=(\d{1,3}(?:\.\d+)?) ", re.MULTILINE)


def parse_pressure(text: str) -> float | None:
    """The share of the last 10 s, 0 to 1, in which something waited for a core."""
    match = _SOME.search(text)
    return min(1.0, float(match[1]) / 100) if match else None


class Pressure:
    """Looks into /proc/pressure/cpu."""

    interval_s = 0.5
    blocking = False

    def __init__(self, file: Path = _FILE) -> None:
        """Read ``file``."""
        self._file = file

    def read(self) -> Reading:
        """See `Sensor.read`."""
        return Reading(pressure=parse_pressure(read_text(self._file)))


def pressure_sensor() -> Sensor | None:
    """The sensor, where the kernel tells."""
    return Pressure() if parse_pressure(read_text(_FILE)) is not None else None
