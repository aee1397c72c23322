"""Has a node serve another model when a distributor asks for it and the node may.

A node follows only to models that it said it could load, when nothing runs on it, and not again
for a while: however a distributor errs, it cannot keep a device busy with loading.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from starai.core.clock import Clock
from starai.core.errors import MalformedFrame, StarAIError
from starai.core.logging import event
from starai.engines.base import EngineSpec
from starai.node.runner import Runner
from starai.protocol.frames import decode
from starai.protocol.identity import PartyId
from starai.protocol.ports import Delivery, Wire
from starai.protocol.presence import Control
from starai.protocol.subjects import place

_LOG = logging.getLogger(__name__)

#: A node serves a model at least so long before it takes another one.
STAY_S: Final = 60.0


class Moving:
    """Hears which model is wanted."""

    def __init__(
        self,
        runner: Runner,
        clock: Clock,
        loadable: tuple[str, ...],
        spec_of: Callable[[str], EngineSpec],
    ) -> None:
        """Let ``runner`` serve any of ``loadable``, opened as ``spec_of`` says.

        ``spec_of`` may raise a `StarAIError` for a model that cannot be served after all.
        """
        self.loadable = loadable
        self._runner = runner
        self._clock = clock
        self._spec_of = spec_of
        self._moved_s = float("-inf")

    @asynccontextmanager
    async def hearing(self, wire: Wire, me: PartyId) -> AsyncIterator[None]:
        """Hear distributors inside the context."""
        async with wire.subscribe(place(me), self._on_order):
            yield

    def _on_order(self, delivery: Delivery) -> None:
        try:
            message = decode(delivery.payload, Control)
        except MalformedFrame:
            return
        if message.order != "load":
            return
        model = message.argument
        refusal = self._why_not(model)
        if not refusal:
            try:
                self._runner.change(self._spec_of(model))
            except StarAIError as error:
                refusal = error.message
            else:
                self._moved_s = self._clock.monotonic_s()
        event(_LOG, "asked_to_load", model=model, refused=refusal)

    def _why_not(self, model: str) -> str:
        info = self._runner.info
        if model not in self.loadable:
            return "this device could not serve it"
        if info is None or info.name == model:
            return "it is loading, or serves it already"
        if self._runner.num_running:
            return "it is at work"
        if self._clock.monotonic_s() - self._moved_s < STAY_S:
            return "it has changed its model a moment ago"
        return ""
