"""Whether the device runs on its battery, and how full that is.

Linux: /sys/class/power_supply; Windows: GetSystemPowerStatus; macOS: ``pmset -g batt``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from starai.node.yielding.base import Reading, Sensor
from starai.node.yielding.sensors.looking import has, output_of, read_text
from starai.node.yielding.sensors.windows import power

_SUPPLIES: Final = Path("/sys/class/power_supply")
_FILES: Final = ("type", "status", "capacity", "online", "scope")
_PERCENT: Final = re.compile(r"(\d{1,3})%")


def parse_supplies(supplies: Sequence[Mapping[str, str]]) -> Reading:
    """What the files of each folder in /sys/class/power_supply say together.

    Batteries of mice and headsets (scope Device) do not count. Mains that are plugged in win over
    a battery that discharges: some docks cannot keep up and are mains all the same.
    """
    batteries = [
        one for one in supplies if one.get("type") == "Battery" and one.get("scope") != "Device"
    ]
    if not batteries:
        return Reading()
    mains = [one for one in supplies if one.get("type") in ("Mains", "USB")]
    plugged = any(one.get("online") == "1" for one in mains)
    discharging = any(one.get("status") == "Discharging" for one in batteries)
    levels = [int(one["capacity"]) for one in batteries if one.get("capacity", "").isdigit()]
    return Reading(
        on_battery=discharging and not plugged,
        battery_percent=float(min(levels)) if levels else None,
    )


def parse_pmset(text: str) -> Reading:
    """What macOS's ``pmset -g batt`` says; a Mac without a battery lists none."""
    if "InternalBattery" not in text:
        return Reading()
    percent = _PERCENT.search(text)
    return Reading(
        on_battery="'Battery Power'" in text,
        battery_percent=float(percent[1]) if percent else None,
    )


class LinuxBattery:
    """Looks into /sys."""

    interval_s = 0.5
    blocking = True  # some firmware takes tens of milliseconds to answer

    def __init__(self, folder: Path = _SUPPLIES) -> None:
        """Look into ``folder``."""
        self._folder = folder

    def read(self) -> Reading:
        """See `Sensor.read`."""
        try:
            folders = sorted(self._folder.iterdir())
        except OSError:
            return Reading()
        return parse_supplies(
            [{name: read_text(one / name).strip() for name in _FILES} for one in folders]
        )


class WindowsBattery:
    """Asks GetSystemPowerStatus."""

    interval_s = 0.5
    blocking = False

    def read(self) -> Reading:
        """See `Sensor.read`."""
        on_battery, percent = power() or (None, None)
        return Reading(on_battery=on_battery, battery_percent=percent)


class MacBattery:
    """Asks ``pmset``."""

    interval_s = 1.0
    blocking = True

    def read(self) -> Reading:
        """See `Sensor.read`."""
        return parse_pmset(output_of("pmset", "-g", "batt"))


def battery_sensor() -> Sensor | None:
    """The sensor of this platform, if there is a battery."""
    sensor: Sensor
    if sys.platform == "win32":
        sensor = WindowsBattery()
    elif sys.platform == "darwin":
        sensor = MacBattery()
    else:
        sensor = LinuxBattery()
    if sys.platform == "darwin" and not has("pmset"):
        return None
    return sensor if sensor.read().on_battery is not None else None
