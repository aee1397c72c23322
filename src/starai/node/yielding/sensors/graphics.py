"""Who uses the GPUs, how much memory we have there, and what they draw: ``nvidia-smi``.

Others' share is the GPU's while we have nothing on it, else what ``pmon`` counts for other
processes. GPUs of other makers are not seen here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from starai.node.yielding.base import Reading, Sensor
from starai.node.yielding.sensors.looking import has, output_of

#: Memory and power change slowly, and each look starts a program.
_SLOW_EVERY: Final = 8
_POWER: Final = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(?:W\s*)?$", re.MULTILINE)


def parse_pmon(text: str, own: Iterable[int]) -> float | None:
    """The busiest GPU's share, 0 to 1, of others, by ``nvidia-smi pmon -c 1 -s u``.

    Its lines are ``gpu pid type sm mem ...``; ``-`` stands for nothing, a comment names the
    columns. None when there is no such table.
    """
    ours, used = set(own), dict[str, float]()
    table = False
    for line in text.splitlines():
        fields = line.split()
        if line.startswith("#"):
            table = table or "sm" in fields
            continue
        if len(fields) < 4 or not fields[0].isdigit():
            continue
        used.setdefault(fields[0], 0.0)
        if fields[1].isdigit() and fields[3].isdigit() and int(fields[1]) not in ours:
            used[fields[0]] += int(fields[3]) / 100
    return min(1.0, max(used.values(), default=0.0)) if table else None


def parse_memory(text: str, own: Iterable[int]) -> int:
    """Our bytes on all GPUs, by ``--query-compute-apps=pid,used_memory --format=csv,noheader``."""
    ours, mib = set(own), 0
    for line in text.splitlines():
        fields = line.replace("MiB", "").replace(",", " ").split()
        if len(fields) == 2 and all(f.isdigit() for f in fields) and int(fields[0]) in ours:
            mib += int(fields[1])
    return mib << 20


def parse_power(text: str) -> float | None:
    """Watts of all GPUs, by ``--query-gpu=power.draw --format=csv,noheader``."""
    watts = [float(number) for number in _POWER.findall(text)]
    return sum(watts) if watts else None


class NvidiaGraphics:
    """Asks ``nvidia-smi``."""

    interval_s = 0.5
    blocking = True

    def __init__(self, pids: Callable[[], Sequence[int]]) -> None:
        """Count ``pids`` as ours."""
        self._pids = pids
        self._looks = 0
        self._slow = Reading()

    def read(self) -> Reading:
        """See `Sensor.read`."""
        own = self._pids()
        if self._looks % _SLOW_EVERY == 0:
            apps = ("--query-compute-apps=pid,used_memory", "--format=csv,noheader")
            power = ("--query-gpu=power.draw", "--format=csv,noheader")
            self._slow = Reading(
                gpu_own_bytes=parse_memory(output_of("nvidia-smi", *apps), own),
                gpu_power_w=parse_power(output_of("nvidia-smi", *power)),
            )
        self._looks += 1
        others = parse_pmon(output_of("nvidia-smi", "pmon", "-c", "1", "-s", "u"), own)
        return self._slow.with_known(Reading(gpu_others=others))


def graphics_sensor(pids: Callable[[], Sequence[int]]) -> Sensor | None:
    """The sensor, where ``nvidia-smi`` is and answers."""
    if not has("nvidia-smi"):
        return None
    sensor = NvidiaGraphics(pids)
    return sensor if sensor.read().gpu_others is not None else None
