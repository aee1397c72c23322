"""Watches the device and makes the node give way within a second; takes it back later.

It knows sensors, the policy, and what a node can do about it (`Gives`); nothing of networks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import anyio
import anyio.abc
import anyio.to_thread

from starai.core.clock import Clock
from starai.core.concurrency import task_group
from starai.core.logging import event
from starai.node.yielding.base import Limits, Reading, Sensor, Verdict, Yield
from starai.node.yielding.policy import SHARES, Policy

_LOG = logging.getLogger(__name__)

#: How often is decided, at once after a look at whatever changes so fast. The processor's readings
#: span two looks, so that even a load that just counts shows after three: within 0.75 s.
DECIDE_S: Final = 0.25
#: What a look tells is believed for this long; a sensor that hangs does not speak for ever.
BELIEVED_S: Final = 5.0
#: Answers that run have this long to be taken over before the model's memory is given back.
UNLOAD_S: Final = 2.0


class Gives(Protocol):
    """What a node can do to give way; its beats tell the rest (`Yielding.paused`)."""

    def pids(self) -> Sequence[int]:
        """The processes of the node and its engine."""
        ...

    @property
    def num_running(self) -> int:
        """Answers on the engine."""
        ...

    async def pace(self, share: float) -> None:
        """Have the engine compute for this part of the time, 0 to 1."""
        ...

    def unload(self) -> None:
        """Give the model's memory back."""
        ...

    def load(self) -> None:
        """Take the model into memory again."""
        ...


class Yielding:
    """One node's giving way.

    Attributes:
        limits: what it keeps to.
        verdict: how far it gives way now, and why.
    """

    def __init__(
        self,
        limits: Limits,
        clock: Clock,
        sensors: Callable[[Callable[[], Sequence[int]]], list[Sensor]],
    ) -> None:
        """Keep to ``limits``; ``sensors`` makes the sensors, given what tells our processes."""
        self.limits = limits
        self.verdict = Verdict(Yield.NOTHING, "", SHARES[Yield.NOTHING])
        self._clock = clock
        self._make_sensors = sensors
        self._policy = Policy(limits)
        self._seen: dict[int, tuple[float, Reading]] = {}
        self._unloaded: Reading | None = None
        self._unload_at_s = 0.0

    @property
    def paused(self) -> str:
        """Why no new tasks are taken; empty when they are."""
        return self.verdict.reason if self.verdict.step >= Yield.PAUSE else ""

    @property
    def hands_over(self) -> bool:
        """Whether other nodes shall carry on what runs here."""
        return self.verdict.step >= Yield.HAND_OVER

    async def run(
        self, node: Gives, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Watch and act until cancelled."""
        if not self.limits.needs_watching:
            return
        sensors = await anyio.to_thread.run_sync(self._make_sensors, node.pids)
        task_status.started()
        async with task_group() as group:
            fast = {n: one for n, one in enumerate(sensors) if _is_fast(one)}
            for number, sensor in enumerate(sensors):
                if number not in fast:
                    group.start_soon(self._look, number, sensor)
            while True:
                for number, sensor in fast.items():
                    self._seen[number] = self._now_s(), sensor.read()
                await self._act(node, self._policy.decide(self._reading(), self._now_s()))
                await anyio.sleep(DECIDE_S)

    def _now_s(self) -> float:
        return self._clock.monotonic_s()

    async def _look(self, number: int, sensor: Sensor) -> None:
        while True:
            if sensor.blocking:
                seen = await anyio.to_thread.run_sync(sensor.read, abandon_on_cancel=True)
            else:
                seen = sensor.read()
            self._seen[number] = self._now_s(), seen
            await anyio.sleep(sensor.interval_s)

    def _reading(self) -> Reading:
        reading = self._unloaded or Reading()
        for at_s, seen in self._seen.values():
            if self._now_s() - at_s < BELIEVED_S:
                reading = reading.with_known(seen)
        if self.limits.hours is not None:
            local = time.localtime(self._clock.now_ms() / 1000)
            reading = reading.with_known(Reading(minute=local.tm_hour * 60 + local.tm_min))
        return reading

    async def _act(self, node: Gives, verdict: Verdict) -> None:
        before, self.verdict = self.verdict, verdict
        if verdict.step != before.step:
            reason = verdict.reason or before.reason
            event(_LOG, "yields", step=verdict.step.name.lower(), reason=reason)
            self._unload_at_s = self._now_s() + UNLOAD_S
            await node.pace(verdict.share)
        if verdict.step == Yield.UNLOAD:
            is_time = not node.num_running or self._now_s() >= self._unload_at_s
            if self._unloaded is None and is_time:
                seen = self._reading()
                self._unloaded = Reading(
                    unloaded_bytes=seen.own_bytes, unloaded_gpu_bytes=seen.gpu_own_bytes
                )
                node.unload()
        elif self._unloaded is not None:
            self._unloaded = None
            node.load()


def _is_fast(sensor: Sensor) -> bool:
    """Whether it is looked at before every decision, and not in a rhythm of its own."""
    return not sensor.blocking and sensor.interval_s <= DECIDE_S
