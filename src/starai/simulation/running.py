"""Runs a scenario through the event-driven simulation, to the last answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from starai.simulation.churning import Churn
from starai.simulation.network import Network
from starai.simulation.oracle import Verdict
from starai.simulation.scenario import Scenario
from starai.simulation.sources import Sources
from starai.simulation.tally import Tally
from starai.simulation.world import World, make_world

#: After the last request this much virtual time at most; every task has ended long before.
AFTERMATH_S: Final = 3600.0
#: Events between two looks at the progress.
LOOK_EVERY: Final = 20_000

Progress = Callable[[float], None]


class Outcome(msgspec.Struct):
    """What a run left behind."""

    scenario: Scenario
    world: World
    tally: Tally
    verdict: Verdict
    num_events: int
    virtual_s: float
    num_hedged: int = 0
    num_won: int = 0


def simulate(
    scenario: Scenario, sources: Sources, progress: Progress = lambda _share: None
) -> Outcome:
    """Run a scenario to its end; ``progress`` hears the share of virtual time that has passed.

    Raises:
        ConfigurationRefused: data is absent, or the scenario makes no sense.
    """
    world = make_world(scenario, sources)
    network = Network(scenario, world)
    Churn(network).start(sources)
    network.start()
    events, end_s = network.events, scenario.seconds + AFTERMATH_S
    while network.num_open and events.now_s < end_s:
        for _ in range(LOOK_EVERY):
            if not network.num_open or not events.step():
                break
        progress(min(1.0, events.now_s / scenario.seconds))
    return Outcome(
        scenario=scenario,
        world=world,
        tally=network.tally,
        verdict=network.oracle.verdict(),
        num_events=events.num_events,
        virtual_s=events.now_s,
        num_hedged=sum(one.hedging.num_hedged for one in network.distributors),
        num_won=sum(one.hedging.num_won for one in network.distributors),
    )
