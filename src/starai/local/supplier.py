"""The network's part of a supplier: it joins if it must, and serves with what computes here.

Imported while the engine's process starts, which takes longer (see `supplying`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import anyio

from starai.core.clock import Clock
from starai.core.concurrency import task_group
from starai.core.errors import PartyRefused, StarAIError, Unavailable
from starai.core.randomness import SystemRandomness
from starai.engines.base import EngineSpec
from starai.exchange.callee.leaving import STOPPED
from starai.exchange.member import Member
from starai.exchange.recording.cosigning import cosigning
from starai.local.computing import Computing
from starai.local.home import Home
from starai.local.joining import applicant_of, join
from starai.local.membership import membership
from starai.local.nodes import NodeOptions, engine_spec
from starai.local.services import confirming
from starai.local.telling import LIVE_S, Life, Stage, Telling
from starai.node.moving import Moving
from starai.node.pricing import LeastPrices
from starai.node.runner import Runner
from starai.node.service import Node
from starai.node.yielding import Yielding
from starai.node.yielding.sensors import sensors_here
from starai.node.yielding.server import ServerProcesses
from starai.protocol.identity import Identity
from starai.protocol.registry import Side
from starai.protocol.subjects import Role
from starai.protocol.tickets import JoinTicket
from starai.wire.diagnosis import first_failure

#: How often a loading engine is looked at.
_LOOK_S: Final = 0.02


class Supplier:
    """One node of this home."""

    def __init__(
        self,
        home: Home,
        name: str,
        options: NodeOptions,
        computing: Computing,
        telling: Telling,
        clock: Clock,
    ) -> None:
        """Serve as ``name`` with what ``computing`` runs, which whoever made it runs."""
        self._home = home
        self._name = name
        self._options = options
        self._computing = computing
        self._telling = telling
        self._clock = clock
        self._label = options.label or name
        self._randomness = SystemRandomness()
        self._is_in = False
        self._told = False
        self._node: Node | None = None

    async def run(self, ticket: JoinTicket | None) -> None:
        """Join by ``ticket``, if there is one, and serve until cancelled, or told to leave."""
        if ticket is not None:
            await self._join(ticket)
        try:
            await self._serve()
        except (PartyRefused, Unavailable) as error:
            if self._is_in:
                raise
            raise await self._explained(error) from error

    async def _join(self, ticket: JoinTicket) -> None:
        self._telling.stage(Stage.CONNECTING, f"{ticket.network} at {', '.join(ticket.urls)}")
        joined = await join(
            self._home, self._name, ticket, self._label, self._clock, self._randomness
        )
        self._tell_admitted(f"; {joined.answer_ms:.0f} ms to the registry, and the clock agrees")

    async def _serve(self) -> None:
        limits = self._options.limits
        server = ServerProcesses(self._options.engine_url, self._clock)
        yielding = Yielding(
            limits, self._clock, lambda pids: sensors_here(lambda: (*pids(), *server()))
        )
        async with (
            membership(self._home, self._name, clock=self._clock) as member,
            confirming(self._home, self._name, member, Side.NODE) as confirmer,
            cosigning(member, Role.NODE, self._home.witness(self._name)),
            task_group() as group,
        ):
            self._is_in = True
            if not self._told:
                self._tell_admitted()
            runner = await self._computing.runner()
            group.start_soon(self._tell_life, member, runner)
            moving = Moving(runner, self._clock, self._computing.fits, self._spec_of)
            self._node = Node(
                *(member, runner, confirmer, self._label, yielding),
                moving=moving,
                prices=LeastPrices(self._clock),
                region=self._options.region,
            )
            await self._node.run()
            group.cancel_scope.cancel()  # it was told to leave

    def leave(self) -> bool:
        """Have others go on with what runs here; whether there is anything to leave."""
        if self._node is not None:
            self._node.leave(STOPPED)
        return self._node is not None

    def _spec_of(self, model: str) -> EngineSpec:
        """How another model would be served here."""
        return engine_spec(self._home.models, replace(self._options, model=model))

    async def _tell_life(self, member: Member, runner: Runner) -> None:
        while runner.info is None:  # noqa: ASYNC110 - an engine tells nobody else
            await anyio.sleep(_LOOK_S)
        model = runner.info.name
        self._telling.stage(Stage.SERVING, model)
        while True:
            self._telling.life(
                Life(model, runner.num_running, runner.num_tokens, member.wire.connected)
            )
            await anyio.sleep(LIVE_S)

    def _tell_admitted(self, more: str = "") -> None:
        party = Identity.from_seed(self._home.party(self._name).seed).party
        network = self._home.network().name
        self._telling.stage(Stage.ADMITTED, f"{network}, as {party[:12]}…{more}")
        self._told = True

    async def _explained(self, error: StarAIError) -> StarAIError:
        """The failing hop, if it can be found."""
        network = self._home.network()
        party = applicant_of(network, self._home.party(self._name).seed, self._clock)
        party = replace(party, credential=self._home.party(self._name).credential, verb="renew")
        return await first_failure(network.urls, party) or error
