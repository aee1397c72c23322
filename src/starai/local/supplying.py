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
from starai.exchange.callee.leaving import STOPPED
from starai.exchange.member import Member
from starai.exchange.recording.cosigning import cosigning
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
    admission = None
    if not is_admitted(home, name, supplier.clock):
        admission = supplier.ticket(token, url)
    spec = supplier.spec()  # refused before the token is used up
    await stopped_gently(
        lambda: supplier.run(admission, spec), supplier.leave, STOPPED.sum_s + OVERTIME_S
    )


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
        self._runner: Runner | None = None
        self._fits: tuple[str, ...] = ()
        self._measured = anyio.Event()

    def ticket(self, token: str, url: str) -> JoinTicket:
        """What lets it in: of ``token``, with ``url`` to be tried first.

        Raises:
            ConfigurationRefused: there is none, or it is damaged.
        """
        if not token:
            raise ConfigurationRefused(self._why_no_way_in())
        ticket = JoinTicket.parse(token)
        if url:
            parse_address(url)
            rest = tuple(other for other in ticket.urls if other != url)
            ticket = msgspec.structs.replace(ticket, urls=(url, *rest))
        return ticket

    def spec(self) -> EngineSpec:
        """How its model is served here."""
        return engine_spec(self._home.models, self._options)

    async def run(self, ticket: JoinTicket | None, spec: EngineSpec) -> None:
        """Join by ``ticket``, if there is one, and serve until cancelled.

        The device is measured and the engine starts meanwhile: each waits for something else.
        """
        if self._options.limits.polite:
            lower_node()
        async with task_group() as group:
            group.start_soon(self._run_engine, spec)
            if ticket is not None:
                await self._join(ticket)
            try:
                await self._serve()
            except (PartyRefused, Unavailable) as error:
                if self._is_in:
                    raise
                raise await self._explained(error) from error
            group.cancel_scope.cancel()

    async def _run_engine(self, spec: EngineSpec) -> None:
        """Measure first: two that compute at once would tell little of the device."""
        self._telling.stage(Stage.MEASURING, "what this device can do")
        known = await fitness_of_node(self._home, spec, self.clock)
        if known is not None:
            self._fits = known.fits(self._home.models)
        expected = known.expect(spec) if known is not None else None
        self._runner = Runner(spec, self.clock, tamed(self._options.limits), expected)
        self._measured.set()
        self._telling.stage(Stage.LOADING, self._options.model)
        await self._runner.run()

    async def _join(self, ticket: JoinTicket) -> None:
        self._telling.stage(Stage.CONNECTING, f"{ticket.network} at {', '.join(ticket.urls)}")
        joined = await join(
            self._home, self._name, ticket, self._label, self.clock, self._randomness
        )
        self._tell_admitted(f"; {joined.answer_ms:.0f} ms to the registry, and the clock agrees")

    async def _serve(self) -> None:
        limits = self._options.limits
        server = ServerProcesses(self._options.engine_url, self.clock)
        yielding = Yielding(
            limits, self.clock, lambda pids: sensors_here(lambda: (*pids(), *server()))
        )
        async with (
            membership(self._home, self._name, clock=self.clock) as member,
            confirming(self._home, self._name, member, Side.NODE) as confirmer,
            cosigning(member, Role.NODE, self._home.witness(self._name)),
            task_group() as group,
        ):
            self._is_in = True
            if not self._told:
                self._tell_admitted()
            runner = await self._started()
            group.start_soon(self._tell_life, member, runner)
            moving = Moving(runner, self.clock, self._fits, self._spec_of)
            self._node = Node(
                *(member, runner, confirmer, self._label, yielding),
                moving=moving,
                prices=LeastPrices(self.clock),
                region=self._options.region,
            )
            await self._node.run()
            group.cancel_scope.cancel()  # it was told to leave

    async def _started(self) -> Runner:
        """The runner, once the device is measured."""
        await self._measured.wait()
        assert self._runner is not None  # noqa: S101 - set before it was said
        return self._runner

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
