"""What a node can see of its device: one file a sensor, each a parser and a look.

`sensors_here` makes those that can see anything on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starai.node.yielding.base import Sensor
from starai.node.yielding.sensors.battery import battery_sensor
from starai.node.yielding.sensors.graphics import graphics_sensor
from starai.node.yielding.sensors.heat import heat_sensor
from starai.node.yielding.sensors.memory import memory_sensor
from starai.node.yielding.sensors.pressure import pressure_sensor
from starai.node.yielding.sensors.processor import processor_sensor
from starai.node.yielding.sensors.screen import screen_sensor

#: The processes of the node itself: its own and its engine's.
Pids = Callable[[], Sequence[int]]


def sensors_here(pids: Pids) -> list[Sensor]:
    """The sensors of this machine; ``pids`` are the node's own processes at the time."""
    made: list[Sensor | None] = [
        processor_sensor(pids),
        pressure_sensor(),
        memory_sensor(pids),
        battery_sensor(),
        heat_sensor(),
        screen_sensor(),
        graphics_sensor(pids),
    ]
    return [sensor for sensor in made if sensor is not None]
