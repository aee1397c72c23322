"""What computes on a device that supplies: measured first, then its engine, kept running."""

from __future__ import annotations

import anyio

from starai.core.clock import Clock
from starai.engines.base import EngineSpec
from starai.local.fitness import fitness_of_node
from starai.local.home import Home
from starai.local.nodes import NodeOptions
from starai.local.telling import Stage, Telling
from starai.node.runner import Runner
from starai.node.yielding.priority import tamed


class Computing:
    """One node's engine. ``started`` is set when its process is there and loads."""

    def __init__(
        self, home: Home, options: NodeOptions, spec: EngineSpec, telling: Telling, clock: Clock
    ) -> None:
        """Run the engine of ``spec``, which serves what ``options`` say."""
        self._home = home
        self._options = options
        self._spec = spec
        self._telling = telling
        self._clock = clock
        self._measured = anyio.Event()
        self._runner: Runner | None = None
        self.started = anyio.Event()
        #: Models that the device could serve at once; known when `runner` is.
        self.fits: tuple[str, ...] = ()

    async def run(self) -> None:
        """Measure the device, if it is not known, and keep the engine running until cancelled.

        In this order: two that compute at once would tell little of the device.

        Raises:
            ConfigurationRefused, ModelNotFound, ModelFileRefused: the engine cannot serve.
        """
        self._telling.stage(Stage.MEASURING, "what this device can do")
        known = await fitness_of_node(self._home, self._spec, self._clock)
        if known is not None:
            self.fits = known.fits(self._home.models)
        expected = known.expect(self._spec) if known is not None else None
        self._runner = Runner(self._spec, self._clock, self._on_process, expected)
        self._measured.set()
        self._telling.stage(Stage.LOADING, self._options.model)
        await self._runner.run()

    async def runner(self) -> Runner:
        """What runs tasks here, once the device is measured; its engine may still load."""
        await self._measured.wait()
        assert self._runner is not None  # noqa: S101 - set before it was said
        return self._runner

    def _on_process(self, pid: int) -> None:
        tamed(self._options.limits)(pid)
        self.started.set()
