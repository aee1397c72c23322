"""Decides how far a node gives way: readings and time in, a verdict with its reason out.

Every rule says what it looks at, how far it makes the node give way, and for how long it must have
held. The heaviest rule that holds wins at once. The way back is slower: a rule that held lets go
only well below where it began, and a step is taken back only after it was not asked for some time.
Pure: no clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from starai.node.yielding.base import Limits, Reading, Verdict, Yield

#: What part of the time the engine computes at each step; 0 would look like a stall to whoever
#: waits for an answer that nobody else can carry on.
SHARES: Final = {
    Yield.NOTHING: 1.0,
    Yield.SLOW: 0.5,
    Yield.PAUSE: 0.25,
    Yield.HAND_OVER: 0.15,
    Yield.UNLOAD: 0.15,
}
#: For how long a step must not have been asked for before it is taken back, in seconds.
CALM_S: Final = {Yield.SLOW: 2.0, Yield.PAUSE: 4.0, Yield.HAND_OVER: 8.0, Yield.UNLOAD: 30.0}
#: A rule that held lets go below this part of where it began.
EASE: Final = 0.7
#: The owner is at work when programs of normal priority keep this many cores busy, or this part of
#: all; beside half as much we slow down, because caches and memory are shared.
WORK_CORES: Final = 0.75
WORK_PART: Final = 0.1
#: Beside programs that use this part of all cores at whatever priority, an engine at the lowest
#: hardly computes: whoever waits for it is better served elsewhere.
FULL_PART: Final = 0.85
#: A load that lasts for so long is no passing start of a program: answers move to other nodes.
LASTING_S: Final = 2.0
#: While we hardly run, waiting for cores is the owner's waiting.
PRESSURE: Final = 0.4
#: Free memory that belongs to the owner: at least so many bytes, and this part of all.
RESERVE_BYTES: Final = 512 << 20
RESERVE_PART: Final = 0.06
#: Degrees below a zone's limit; where none is known, this is the limit.
HOT_BELOW_C: Final = 10.0
TOO_HOT_BELOW_C: Final = 5.0
CRITICAL_C: Final = 100.0
#: A charge below this is for the owner.
BATTERY_PERCENT: Final = 20.0
#: A part of a GPU that others use; smaller ones are a desktop being drawn.
GPU_PART: Final = 0.15
#: A game wants the memory, too.
GAME_S: Final = 10.0
#: Outside its hours a node gives its memory back after this long.
OFF_HOURS_S: Final = 60.0

Holds = Callable[[Reading, Limits, float], bool]


@dataclass(frozen=True)
class Rule:
    """When ``holds`` has been true for ``after_s`` seconds, a node gives way as far as ``step``.

    ``holds`` takes the reading, the limits, and 1 or, once it held, `EASE`.
    """

    reason: str
    step: Yield
    holds: Holds
    after_s: float = 0.0


def _work(part: float) -> Holds:
    def holds(seen: Reading, limits: Limits, ease: float) -> bool:
        if not limits.polite or seen.others_cores is None:
            return False
        limit = part * max(WORK_CORES, WORK_PART * (seen.num_cores or 1))
        waits = ease < 1 and part == 1 and (seen.pressure or 0.0) >= PRESSURE
        return seen.others_cores >= limit * ease or waits

    return holds


def _full(seen: Reading, limits: Limits, ease: float) -> bool:
    used = (seen.others_cores or 0.0) + (seen.lowered_cores or 0.0)
    return limits.polite and used >= FULL_PART * (seen.num_cores or 1) * ease


def _memory(part: float) -> Holds:
    def holds(seen: Reading, limits: Limits, ease: float) -> bool:
        if not limits.polite or seen.available_bytes is None:
            return False
        reserve = part * max(RESERVE_BYTES, RESERVE_PART * (seen.total_bytes or 0))
        # What was unloaded comes back into this very memory.
        back = seen.unloaded_bytes or 0
        return seen.available_bytes - back < reserve / ease

    return holds


def _heat(below_c: float) -> Holds:
    def holds(seen: Reading, limits: Limits, ease: float) -> bool:
        if not limits.polite:
            return False
        limit = (seen.critical_c or CRITICAL_C) - below_c
        if ease < 1:
            limit -= HOT_BELOW_C / 2
        return bool(seen.throttled) or (seen.hottest_c is not None and seen.hottest_c >= limit)

    return holds


def _battery(seen: Reading, limits: Limits, _ease: float) -> bool:
    return limits.polite and not limits.on_battery and bool(seen.on_battery)


def _low_battery(seen: Reading, limits: Limits, ease: float) -> bool:
    level = seen.battery_percent
    low = level is not None and level < BATTERY_PERCENT / ease
    return limits.polite and bool(seen.on_battery) and low


def _full_screen(seen: Reading, limits: Limits, _ease: float) -> bool:
    return limits.polite and bool(seen.full_screen)


def _gpu(seen: Reading, limits: Limits, ease: float) -> bool:
    return limits.polite and (seen.gpu_others or 0.0) >= GPU_PART * ease


def _off_hours(seen: Reading, limits: Limits, _ease: float) -> bool:
    hours = limits.hours
    return hours is not None and seen.minute is not None and not hours.contain(seen.minute)


def _over_memory(seen: Reading, limits: Limits, _ease: float) -> bool:
    # It would be as large again: what was unloaded for this stays away.
    most = max(seen.own_bytes or 0, seen.unloaded_bytes or 0)
    return 0 < limits.max_memory_bytes < most


def _over_gpu_memory(seen: Reading, limits: Limits, _ease: float) -> bool:
    most = max(seen.gpu_own_bytes or 0, seen.unloaded_gpu_bytes or 0)
    return 0 < limits.max_gpu_bytes < most


def _over_power(seen: Reading, limits: Limits, ease: float) -> bool:
    return 0 < limits.max_power_w * ease < (seen.gpu_power_w or 0.0)


RULES: Final = (
    Rule("owner's work", Yield.SLOW, _work(0.5)),
    Rule("owner's work", Yield.PAUSE, _work(1)),
    Rule("owner's work", Yield.HAND_OVER, _work(1), LASTING_S),
    Rule("device is full", Yield.PAUSE, _full, LASTING_S),
    Rule("device is full", Yield.HAND_OVER, _full, 2 * LASTING_S),
    Rule("memory short", Yield.PAUSE, _memory(1)),
    Rule("memory short", Yield.UNLOAD, _memory(0.5)),
    Rule("heat", Yield.SLOW, _heat(HOT_BELOW_C)),
    Rule("heat", Yield.HAND_OVER, _heat(TOO_HOT_BELOW_C)),
    Rule("battery", Yield.HAND_OVER, _battery),
    Rule("battery low", Yield.UNLOAD, _low_battery),
    Rule("full screen", Yield.HAND_OVER, _full_screen),
    Rule("full screen", Yield.UNLOAD, _full_screen, GAME_S),
    Rule("GPU in use", Yield.PAUSE, _gpu),
    Rule("GPU in use", Yield.HAND_OVER, _gpu, LASTING_S),
    Rule("GPU power", Yield.SLOW, _over_power),
    Rule("outside hours", Yield.HAND_OVER, _off_hours),
    Rule("outside hours", Yield.UNLOAD, _off_hours, OFF_HOURS_S),
    Rule("over memory cap", Yield.UNLOAD, _over_memory),
    Rule("over GPU cap", Yield.UNLOAD, _over_gpu_memory),
)


class Policy:
    """How far one node gives way, from reading to reading."""

    def __init__(self, limits: Limits) -> None:
        """Begin by giving way to nothing."""
        self._limits = limits
        #: Since when each rule holds, in the seconds that `decide` is given.
        self._since_s: dict[int, float] = {}
        self._calm_since_s: float | None = None
        self._now = Verdict(Yield.NOTHING, "", SHARES[Yield.NOTHING])

    def decide(self, reading: Reading, now_s: float) -> Verdict:
        """The verdict at ``now_s``, in seconds that only grow."""
        asked = self._heaviest(reading, now_s)
        if asked.step >= self._now.step:
            self._now, self._calm_since_s = asked, None
            return self._now
        if self._calm_since_s is None:
            self._calm_since_s = now_s
        if now_s - self._calm_since_s >= CALM_S[self._now.step]:
            self._now, self._calm_since_s = asked, None
        return self._now

    def _heaviest(self, reading: Reading, now_s: float) -> Verdict:
        step, reason = Yield.NOTHING, ""
        for number, rule in enumerate(RULES):
            ease = EASE if number in self._since_s else 1.0
            if not rule.holds(reading, self._limits, ease):
                self._since_s.pop(number, None)
                continue
            since_s = self._since_s.setdefault(number, now_s)
            if now_s - since_s >= rule.after_s and rule.step > step:
                step, reason = rule.step, rule.reason
        return Verdict(step, reason, SHARES[step])
