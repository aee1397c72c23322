"""What is seen of a device, what its owner allows, and how far a node gives way.

Values only: nothing here looks or acts.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Protocol, Self

import msgspec

from starai.node.yielding.hours import Hours


class Yield(enum.IntEnum):
    """How far a node gives way; each step includes those before it."""

    #: All there is may be used, at the lowest priority.
    NOTHING = 0
    #: Running answers go on more slowly.
    SLOW = 1
    #: No new tasks are taken.
    PAUSE = 2
    #: Running answers are handed over to other nodes.
    HAND_OVER = 3
    #: The model's memory is given back.
    UNLOAD = 4


@dataclass(frozen=True)
class Limits:
    """What the owner of a device allows; 0 is no limit.

    ``polite`` gives way to the owner's own work; without it only the hours and the caps hold.
    ``max_memory_bytes`` counts resident memory of the node and its engine, ``max_cores`` the cores
    that the engine may run on, ``max_gpu_bytes`` its memory on GPUs, ``max_power_w`` what all GPUs
    draw. ``hours`` None is always. ``on_battery`` works without mains, too.
    """

    polite: bool = True
    max_memory_bytes: int = 0
    max_cores: int = 0
    max_gpu_bytes: int = 0
    max_power_w: float = 0.0
    hours: Hours | None = None
    on_battery: bool = False

    @property
    def needs_watching(self) -> bool:
        """Whether anything can make a node give way."""
        watched = (self.max_memory_bytes, self.max_gpu_bytes, self.max_power_w, self.hours)
        return self.polite or any(watched)


#: A device that belongs to the network alone, as in tests and in `starai up`.
UNLIMITED: Final = Limits(polite=False)


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The device at one moment. None: unknown here, so that nothing is concluded from it.

    ``others_cores`` is how many cores the work of others keeps busy, without what runs at a
    lowered priority, which is in ``lowered_cores``; ``pressure`` the share of time (0 to 1) in
    which something waited for a core, averaged over 10 s. Memory is in bytes: ``own_bytes`` that
    of the node and its engine, ``unloaded_bytes`` what it was when it was last unloaded.
    ``hottest_c`` and ``critical_c`` belong to the zone that is nearest to its limit, in degrees
    Celsius; ``throttled`` says that heat slows the processor down already. ``gpu_others`` is the
    busiest GPU's share (0 to 1) that others use; ``minute`` counts from local midnight.
    """

    num_cores: int | None = None
    others_cores: float | None = None
    lowered_cores: float | None = None
    pressure: float | None = None
    available_bytes: int | None = None
    total_bytes: int | None = None
    own_bytes: int | None = None
    unloaded_bytes: int | None = None
    on_battery: bool | None = None
    battery_percent: float | None = None
    hottest_c: float | None = None
    critical_c: float | None = None
    throttled: bool | None = None
    full_screen: bool | None = None
    gpu_others: float | None = None
    gpu_own_bytes: int | None = None
    unloaded_gpu_bytes: int | None = None
    gpu_power_w: float | None = None
    minute: int | None = None

    def with_known(self, other: Reading) -> Self:
        """This reading, overlaid by whatever the other one knows."""
        return msgspec.structs.replace(self, **known(other))


def known(reading: Reading) -> dict[str, float]:
    """The fields of a reading that are known."""
    values = ((name, getattr(reading, name)) for name in reading.__struct_fields__)
    return {name: value for name, value in values if value is not None}


class Verdict(msgspec.Struct, frozen=True):
    """How far to give way, and why in a few words (empty: for no reason).

    ``share`` is the part of the time that the engine may compute, 0 to 1.
    """

    step: Yield
    reason: str
    share: float


class Sensor(Protocol):
    """One thing that can be seen of a device.

    ``interval_s`` is how often it is worth looking; ``blocking`` says that a look takes more than
    a millisecond, so that it happens in a thread.
    """

    interval_s: float
    blocking: bool

    def read(self) -> Reading:
        """What is seen now; fields that cannot be told stay None. Never raises."""
        ...
