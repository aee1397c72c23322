"""How hot the device is: thermal zones of Linux, and whether macOS slows its processor down."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from starai.node.yielding.base import Reading, Sensor
from starai.node.yielding.sensors.looking import has, output_of, read_text

_ZONES: Final = Path("/sys/class/thermal")
_TRIPS: Final = ("hot", "critical")
_SPEED: Final = re.compile(r"CPU_Speed_Limit\s*=\s*(\d+)")
#: What a zone may say and be believed, in degrees Celsius.
_SANE: Final = range(1, 150)
_CRITICAL_C: Final = 100.0


def parse_celsius(text: str) -> float | None:
    """A temperature in thousandths of a degree, as /sys gives it; None when it makes no sense."""
    text = text.strip()
    if not text.lstrip("-").isdigit():
        return None
    celsius = int(text) / 1000
    return celsius if int(celsius) in _SANE else None


def nearest_to_limit(zones: Iterable[tuple[str, Iterable[tuple[str, str]]]]) -> Reading:
    """The zone that is nearest to its limit.

    Args:
        zones: each zone's ``temp``, and the ``type`` and ``temp`` of its trip points.
    """
    best: tuple[float, float] | None = None
    for temperature, trips in zones:
        now_c = parse_celsius(temperature)
        if now_c is None:
            continue
        limits = [parse_celsius(temp) for kind, temp in trips if kind.strip() in _TRIPS]
        limit_c = min((limit for limit in limits if limit is not None), default=_CRITICAL_C)
        if best is None or limit_c - now_c < best[1] - best[0]:
            best = now_c, limit_c
    return Reading(hottest_c=best[0], critical_c=best[1]) if best else Reading()


def parse_therm(text: str) -> Reading:
    """What macOS's ``pmset -g therm`` says: a processor below full speed is too warm."""
    speed = _SPEED.search(text)
    return Reading(throttled=int(speed[1]) < 100) if speed else Reading()


class LinuxHeat:
    """Looks into /sys/class/thermal."""

    interval_s = 0.5
    blocking = True  # a zone may ask the firmware

    def __init__(self, folder: Path = _ZONES) -> None:
        """Look into ``folder``."""
        self._folder = folder

    def read(self) -> Reading:
        """See `Sensor.read`."""
        return nearest_to_limit(
            (
                read_text(zone / "temp"),
                [
                    (read_text(kind), read_text(kind.with_name(kind.name[:-4] + "temp")))
                    for kind in sorted(zone.glob("trip_point_*_type"))
                ],
            )
            for zone in sorted(self._folder.glob("thermal_zone*"))
        )


class MacHeat:
    """Asks ``pmset``."""

    interval_s = 2.0
    blocking = True

    def read(self) -> Reading:
        """See `Sensor.read`."""
        return parse_therm(output_of("pmset", "-g", "therm"))


def heat_sensor() -> Sensor | None:
    """The sensor of this platform; Windows tells no ordinary program."""
    if sys.platform == "darwin":
        return MacHeat() if has("pmset") else None
    if sys.platform == "win32":
        return None
    sensor = LinuxHeat()
    return sensor if sensor.read().hottest_c is not None else None
