"""The watcher under virtual time: it acts within a second, tells why, and takes it back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

from starai.core.clock import AnyioClock
from starai.node.yielding import Limits, Reading, Yield, Yielding
from starai.node.yielding.hours import Hours
from starai.node.yielding.sensors.processor import _Ticks
from starai.node.yielding.watching import DECIDE_S

pytestmark = pytest.mark.anyio

GIB = 1 << 30


@pytest.fixture
def anyio_backend(virtual_time):
    return virtual_time


@dataclass
class Device:
    """A device whose state a test sets, and a node on it that remembers what it was told."""

    reading: Reading = field(default_factory=Reading)
    interval_s: float = 0.25
    blocking: bool = False
    told: list[object] = field(default_factory=list)
    num_running: int = 0

    def read(self) -> Reading:
        return self.reading

    def pids(self) -> list[int]:
        return [1]

    async def pace(self, share: float) -> None:
        self.told.append(share)

    def unload(self) -> None:
        self.told.append("unload")

    def load(self) -> None:
        self.told.append("load")


@asynccontextmanager
async def watched(
    limits: Limits | None = None, clock: AnyioClock | None = None, interval_s: float = DECIDE_S
) -> AsyncIterator[tuple[Device, Yielding]]:
    device = Device(interval_s=interval_s)
    made = Yielding(limits or Limits(), clock or AnyioClock(), lambda _pids: [device])
    async with anyio.create_task_group() as group:
        await group.start(made.run, device)
        yield device, made
        group.cancel_scope.cancel()


async def test_it_acts_within_a_second_and_comes_back():
    """The owner's work pauses admission within a second; calm brings it back."""
    async with watched() as (device, made):
        assert (made.paused, made.hands_over) == ("", False)
        device.reading = Reading(num_cores=2, others_cores=2.0)
        await anyio.sleep(1)
        assert made.paused == "owner's work"
        await anyio.sleep(3)
        assert made.hands_over
        device.reading = Reading(num_cores=2, others_cores=0.0)
        await anyio.sleep(5)
        assert made.paused
        await anyio.sleep(10)
        assert (made.paused, made.hands_over) == ("", False)
        assert device.told[-1] == 1.0
        assert min(device.told) > 0


class Ticking(Device):
    """A device of two cores whose owner keeps some busy since a moment."""

    def __init__(self, since_s: float, cores: float) -> None:
        super().__init__()
        self._since_s, self._cores, self._ticks = since_s, cores, _Ticks()

    def read(self) -> Reading:
        now_s = anyio.current_time()
        used_s = self._cores * max(0.0, now_s - self._since_s)
        return Reading(num_cores=2, others_cores=self._ticks.push(used_s, now_s, {}))


@pytest.mark.parametrize(("cores", "within_s"), [(0.75, 0.76), (1.0, 0.63), (2.0, 0.51)])
@pytest.mark.parametrize("phase", range(10))
async def test_whenever_work_begins_the_pause_comes_within_three_looks(
    cores: float, within_s: float, phase: int
) -> None:
    """However the moment lies between two looks: half a second of work, and the look after it."""
    began_s = anyio.current_time() + 2 + phase * DECIDE_S / 10
    device = Ticking(began_s, cores)
    made = Yielding(Limits(), AnyioClock(), lambda _pids: [device])
    async with anyio.create_task_group() as group:
        await group.start(made.run, device)
        while not made.paused:
            await anyio.sleep(0.01)
        assert 0 < anyio.current_time() - began_s <= within_s
        group.cancel_scope.cancel()


async def test_memory_goes_back_when_nothing_runs_or_after_a_grace():
    """An idle node unloads at once, a busy one after two seconds; both load again."""
    async with watched() as (device, made):
        device.reading = Reading(available_bytes=0, total_bytes=16 * GIB, own_bytes=GIB)
        device.num_running = 1
        await anyio.sleep(1.5)
        assert "unload" not in device.told
        await anyio.sleep(1.5)
        assert device.told[-1] == "unload"
        assert made.verdict.step is Yield.UNLOAD
        device.reading = Reading(available_bytes=8 * GIB, total_bytes=16 * GIB, own_bytes=0)
        await anyio.sleep(40)
        assert device.told[-1] == "load"
        assert device.told.count("unload") == 1


async def test_the_hours_follow_the_clock():
    """At the end of its hours a node hands over; at their beginning it is back."""

    class Shifted(AnyioClock):
        """A wall clock that a test sets forward."""

        by_s = 0

        def now_ms(self) -> int:
            return super().now_ms() + self.by_s * 1000

    clock = Shifted()
    now = clock.now_ms() / 1000
    local = time.localtime(now)
    minute = local.tm_hour * 60 + local.tm_min
    hours = Hours((((minute - 10) % 1440, (minute + 10) % 1440),))
    async with watched(Limits(polite=False, hours=hours), clock) as (_device, made):
        await anyio.sleep(1)
        assert made.paused == ""
        clock.by_s = 11 * 60
        await anyio.sleep(1)
        assert made.paused == "outside hours"
        clock.by_s = (24 * 60 - 9) * 60
        await anyio.sleep(40)
        assert made.paused == ""


async def test_a_sensor_that_hangs_does_not_speak_for_ever():
    """What was seen long ago is not believed."""
    async with watched(interval_s=0.5) as (device, made):
        device.reading = Reading(on_battery=True)
        await anyio.sleep(1)
        assert made.paused == "battery"
        device.interval_s = 1e6
        await anyio.sleep(60)
        assert made.paused == ""


async def test_nothing_to_watch_is_not_watched():
    """Without politeness and without caps no sensor is made."""

    def no_sensors(_pids):
        raise AssertionError

    await Yielding(Limits(polite=False, max_cores=1), AnyioClock(), no_sensors).run(Device())
