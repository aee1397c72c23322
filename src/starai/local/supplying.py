"""A device as a supplier: it joins if it must, and serves until it is stopped, telling how it goes.

One road for `starai join`, `starai node start` and the nodes of `starai up`. Knows the order of
the stages; what each of them does is elsewhere.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace

import anyio
import msgspec

from starai.core.clock import Clock, SystemClock
from starai.core.concurrency import stopped_gently, task_group
from starai.core.errors import ConfigurationRefused, PartyRefused, StarAIError, Unavailable
from starai.core.randomness import SystemRandomness
from starai.engines.base import EngineSpec
from starai.exchange.cosigning import cosigning
from starai.exchange.leaving import STOPPED
from starai.exchange.member import Member
from starai.local.fitness import fitness_of_node
from starai.local.home import Home
from starai.local.joining import applicant_of, expired_credential, is_admitted, join
from starai.local.membership import membership
from starai.local.services import OVERTIME_S, NodeOptions, confirming, engine_spec
from starai.node.moving import Moving
from starai.node.pricing import LeastPrices
from starai.node.runner import Runner
from starai.node.service import Node
from starai.node.yielding import Yielding
from starai.node.yielding.priority import lower_node, tamed
from starai.node.yielding.sensors import sensors_here
from starai.node.yielding.server import ServerProcesses
from starai.protocol.identity import Identity
from starai.protocol.registry import Side
from starai.protocol.subjects import Role
from starai.protocol.tickets import JoinTicket
from starai.wire.diagnosis import first_failure
from starai.wire.dialing import parse_address
from starai.wire.hops import SET_CLOCK, day

#: How often the live line is made anew, and how often a loading engine is looked at.
LIVE_S = 0.5
LOOK_S = 0.02


class Stage(enum.Enum):
    """Where a supplier is on its way."""

    CONNECTING = "connecting"
    ADMITTED = "admitted"
    MEASURING = "measuring"
    LOADING = "loading"
    SERVING = "serving"


@dataclass(frozen=True)
class Life:
    """How a node that serves is doing; ``tokens`` counts since its start."""

    model: str
    running: int
    tokens: int
    connected: bool


@dataclass(frozen=True)
class Telling:
    """Who hears how it goes: of each stage once, and of the node's life while it serves."""

    stage: Callable[[Stage, str], None] = lambda _stage, _detail: None
    life: Callable[[Life], None] = lambda _life: None


async def join_and_serve(
    home: Home,
    name: str,
    token: str,
    options: NodeOptions,
    *,
    url: str = "",
    telling: Telling | None = None,
    clock: Clock | None = None,
) -> None:
    """Run a node until cancelled; it joins first if it must, and has a token.

    Args:
        home: where its key, credential and outbox are kept.
        name: what it is called there.
        token: a join token's text; empty to be let in by the credential of an earlier time.
        options: what it serves.
        url: where the network is, to be tried before what the token says.
        telling: who hears how it goes.
        clock: the device's.

    Raises:
        PartyRefused: the network does not let it in.
        Unavailable: a hop on the way to the network fails; the message says which.
        ConfigurationRefused: the token is damaged, or the device's clock is wrong.
        ModelNotFound, ModelFileRefused: its model cannot be served.
    """
    supplier = _Supplier(home, name, options, telling or Telling(), clock or SystemClock())
    if not is_admitted(home, name, supplier.clock):
        await supplier.join(token, url)
    await supplier.serve()


class _Supplier:
    """One node of this home."""

    def __init__(
        self, home: Home, name: str, options: NodeOptions, telling: Telling, clock: Clock
    ) -> None:
        self.clock = clock
        self._home = home
        self._name = name
        self._options = options
        self._label = options.label or name
        self._telling = telling
        self._randomness = SystemRandomness()
        self._is_in = False
        self._told = False
        self._node: Node | None = None

    async def join(self, token: str, url: str) -> None:
        """Become a party of the network."""
        if not token:
            raise ConfigurationRefused(self._why_no_way_in())
        ticket = JoinTicket.parse(token)
        if url:
            parse_address(url)
            rest = tuple(other for other in ticket.urls if other != url)
            ticket = msgspec.structs.replace(ticket, urls=(url, *rest))
        self._spec()  # refused before the token is used up
        self._telling.stage(Stage.CONNECTING, f"{ticket.network} at {', '.join(ticket.urls)}")
        joined = await join(
            self._home, self._name, ticket, self._label, self.clock, self._randomness
        )
        self._tell_admitted(f"; {joined.answer_ms:.0f} ms to the registry, and the clock agrees")

    async def serve(self) -> None:
        """Serve until cancelled; then others go on with what runs here."""
        try:
            await stopped_gently(self._serve, self._leave, STOPPED.sum_s + OVERTIME_S)
        except (PartyRefused, Unavailable) as error:
            if self._is_in:
                raise
            raise await self._explained(error) from error

    async def _serve(self) -> None:
        limits = self._options.limits
        if limits.polite:
            lower_node()
        server = ServerProcesses(self._options.engine_url, self.clock)
        yielding = Yielding(
            limits, self.clock, lambda pids: sensors_here(lambda: (*pids(), *server()))
        )
        spec = self._spec()
        self._telling.stage(Stage.MEASURING, "what this device can do")
        known = await fitness_of_node(self._home, spec, self.clock)
        expected = known.expect(spec) if known is not None else None
        runner = Runner(spec, self.clock, tamed(limits), expected)
        async with (
            membership(self._home, self._name, clock=self.clock) as member,
            confirming(self._home, self._name, member, Side.NODE) as confirmer,
            cosigning(member, Role.NODE, self._home.witness(self._name)),
            task_group() as group,
        ):
            self._is_in = True
            if not self._told:
                self._tell_admitted()
            self._telling.stage(Stage.LOADING, self._options.model)
            group.start_soon(self._tell_life, member, runner)
            fits = known.fits(self._home.models) if known is not None else ()
            moving = Moving(runner, self.clock, fits, self._spec_of)
            self._node = Node(
                *(member, runner, confirmer, self._label, yielding),
                moving=moving,
                prices=LeastPrices(self.clock),
                region=self._options.region,
            )
            await self._node.run()
            group.cancel_scope.cancel()  # it was told to leave

    def _leave(self) -> bool:
        if self._node is not None:
            self._node.leave(STOPPED)
        return self._node is not None

    def _spec_of(self, model: str) -> EngineSpec:
        """How another model would be served here."""
        return engine_spec(self._home.models, replace(self._options, model=model))

    async def _tell_life(self, member: Member, runner: Runner) -> None:
        while runner.info is None:  # noqa: ASYNC110 - an engine tells nobody else
            await anyio.sleep(LOOK_S)
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

    def _spec(self) -> EngineSpec:
        return engine_spec(self._home.models, self._options)

    def _why_no_way_in(self) -> str:
        before = expired_credential(self._home, self._name)
        how = "an operator makes one with `starai tokens create`"
        if before is None:
            return (
                f"{self._name} is in no network yet: pass a token, by `starai join TOKEN` or with "
                f"--token ({how})"
            )
        return (
            f"{self._name}'s credential expired at {day(before.expires_ms)}; this device's clock "
            f"says {day(self.clock.now_ms())}. If that is right, join again: pass a new token "
            f"({how}). If not: {SET_CLOCK}"
        )

    async def _explained(self, error: StarAIError) -> StarAIError:
        """The failing hop, if it can be found."""
        network = self._home.network()
        party = applicant_of(network, self._home.party(self._name).seed, self.clock)
        party = replace(party, credential=self._home.party(self._name).credential, verb="renew")
        return await first_failure(network.urls, party) or error
